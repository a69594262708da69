"""One small job on a device, or one kernel compiled for GPUs, and what came of it: run by `farsum doctor`, as a process.

Exit status 0 and a sentence, or `FOUND` and the error; anything else is a crash.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from farsum_kernels.backends import reference
from farsum_kernels.errors import InternalError, WheelMismatch
from farsum_kernels.formula.expr import I, J, node, variable
from farsum_kernels.job import Spec
from farsum_server.doctor import FOUND
from farsum_server.worker import Worker


def compute(device: str) -> str:
    """Compile and run a small job on a device, and compare it with the definition; what was found, in words.

    Raises InternalError for a wrong answer, and what the device raises.
    """
    begun, rng = time.perf_counter(), np.random.default_rng(0)
    kernel = node("Exp", node("Minus", node("SqDist", variable(0, 3, I), variable(1, 3, J))))
    spec = Spec(node("Mult", kernel, variable(2, 1, J)), "Sum", 1, "float32")
    arrays: dict[int, Any] = {
        n: rng.random((r, d), np.float32) for n, (r, d) in enumerate([(300, 3), (400, 3), (400, 1)])
    }
    worker = Worker(None, device)
    run = worker.start(spec, arrays)
    while run.step() < 1.0:
        pass
    (got,), (want,) = run.finish(), reference.run(spec, arrays)
    error = float(np.abs(got - want).max() / np.abs(want).max())
    if not error < 1e-5:
        raise InternalError(
            f"{worker.name} computes wrongly: a Gaussian sum is off by {error:.1e}; report it, with this output"
        )
    return (
        f"a kernel compiled and ran on {worker.name}; off by {error:.0e}; {time.perf_counter() - begun:.2f} s"
    )


def compile_for_gpus() -> str:
    """Compile a kernel for a GPU that need not be here; what was found, in words. Raises what it finds wrong."""
    from farsum_kernels.backends.cuda import installed, nvrtc

    have, driver = nvrtc.version(), installed.driver_version()
    if driver and installed.OLDEST_DRIVER <= driver[0] < have[0]:
        raise WheelMismatch(
            f"NVRTC is of CUDA {have[0]}, the driver speaks {driver[0]}, which may not load what it compiles: "
            f"pip install 'farsum[cuda{driver[0]}]'"
        )
    if driver and driver[0] < installed.OLDEST_DRIVER:
        return f"{have[0]}.{have[1]}; not tried, since NVRTC may crash beside such a driver"
    nvrtc.compile('extern "C" __global__ void nothing() {}', 80)
    return f"{have[0]}.{have[1]}; it compiles"


if __name__ == "__main__":
    try:
        print(compile_for_gpus() if sys.argv[1] == "nvrtc" else compute(sys.argv[1]))
    except Exception as fault:
        print(f"{type(fault).__name__}: {' '.join(str(fault).split())}", file=sys.stderr)
        sys.exit(FOUND)
