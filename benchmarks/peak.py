"""What the multiply-add units of this machine give at most, measured in the same rounds as everything else.

Independent chains of fused multiply-adds of the full vector width on every thread, as the kernels are
compiled: nothing is loaded, nothing waits. The unit is lanes: one multiply-add of one number.
"""

from __future__ import annotations

from ctypes import c_int64, c_void_p

import numpy as np

from benchmarks.measure import Times, timed
from farsum_kernels.backends.cpu import native
from farsum_kernels.backends.cpu.threads import POOL

TURNS = 1 << 19
PER_TURN = 4  # multiply-adds of each chain in one turn of the loop


class Peak:
    """Call it for the times of one run; `rate(seconds)` says what that is in lanes per second."""

    def __init__(self, dtype: str) -> None:
        machine = native.machine()
        lanes = machine.vector_bytes // np.dtype(dtype).itemsize
        chains = 16 if machine.registers >= 32 else 12  # and two registers for the factor and the term
        self._library = native.load(kernel("float" if dtype == "float32" else "double", lanes, chains))
        self._run = self._library.function("peak", c_int64, c_void_p)
        self._held = [np.ones(lanes, dtype) for _ in range(machine.threads)]
        self._work = machine.threads * TURNS * PER_TURN * chains * lanes
        self()

    def __call__(self) -> Times:
        return timed(self._all)

    def _all(self) -> None:
        free = list(self._held)
        POOL.run(lambda: self._run(TURNS, free.pop().ctypes.data), len(self._held))

    def rate(self, seconds: float) -> float:
        return self._work / seconds


def kernel(scalar: str, lanes: int, chains: int) -> str:
    vector = f"<{lanes} x {scalar}>"
    fma = f"@llvm.fmuladd.v{lanes}f{32 if scalar == 'float' else 64}"
    # The factor and the term are loaded, so that nothing can be folded. 1 stays 1: no denormals.
    phis = [f"  %v0_{c} = phi {vector} [ %one, %entry ], [ %v{PER_TURN}_{c}, %loop ]" for c in range(chains)]
    steps = [
        f"  %v{s + 1}_{c} = call contract {vector} {fma}({vector} %v{s}_{c}, {vector} %half, {vector} %half)"
        for s in range(PER_TURN)
        for c in range(chains)
    ]
    sums = [
        f"  %s{c} = fadd {vector} {'%one' if c == 0 else f'%s{c - 1}'}, %v{PER_TURN}_{c}"
        for c in range(chains)
    ]
    return "\n".join(
        [
            f"declare {vector} {fma}({vector}, {vector}, {vector})",
            "define void @peak(i64 %turns, ptr %held) {",
            "entry:",
            f"  %one = load {vector}, ptr %held, align 4",
            f"  %half = fmul {vector} %one, splat ({scalar} 0.5)",
            "  br label %loop",
            "loop:",
            "  %i = phi i64 [ 0, %entry ], [ %next, %loop ]",
            *phis,
            *steps,
            "  %next = add i64 %i, 1",
            "  %more = icmp ult i64 %next, %turns",
            "  br i1 %more, label %loop, label %done",
            "done:",
            *sums,
            f"  %zero = fsub {vector} %s{chains - 1}, %s{chains - 1}",
            f"  %back = fadd {vector} %zero, %one",
            f"  store {vector} %back, ptr %held, align 4",
            "  ret void",
            "}",
        ]
    )
