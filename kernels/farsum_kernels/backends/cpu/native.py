"""LLVM IR text to machine code: compile, keep on disk, load. No compiler, assembler or linker is started.

The IR is already in its final form, so no IR passes run: the same speed at half the latency. Object
code is kept by the hash of everything that determines it; an entry is verified before it is loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from functools import cache as once
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

from farsum_kernels.backends import cache
from farsum_kernels.plan import Machine

LONG_IR_BYTES = 400_000


@once
def _initialize() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@once
def host() -> tuple[str, str]:
    """The name of this CPU and its features, as LLVM spells them.

    The feature string is what protects against a hypervisor that masks features of a known CPU.
    """
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


@once
def has_feature(name: str) -> bool:
    return f"+{name}" in host()[1].split(",")


def threads_available() -> int:
    """Threads that this process may use: FARSUM_THREADS, else its CPU set, cut to its cgroup quota."""
    if chosen := os.environ.get("FARSUM_THREADS"):
        return max(1, int(chosen))
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # a machine without this file has no such limit
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, -(-int(quota) // int(period)))
    return max(1, count)


def machine(threads: int | None = None) -> Machine:
    """This machine, as a plan sees it."""
    if has_feature("avx512f"):
        vector_bytes, registers = 64, 32
    elif has_feature("avx2") or has_feature("avx"):
        vector_bytes, registers = 32, 16
    else:
        vector_bytes, registers = 16, 32 if "aarch64" in llvm.get_process_triple() else 16
    return Machine(vector_bytes, registers, threads or threads_available())


def has_scalef() -> bool:
    """AVX-512 multiplies by powers of two in one saturating instruction, and gives what rounding takes away in one."""
    return has_feature("avx512f") and has_feature("avx512dq")


def flushes() -> bool:
    """There is a control word that makes results too small for a normal number zero: on x86."""
    return platform.machine().lower() in ("x86_64", "amd64", "i686")


class Library:
    """Loaded machine code. Its functions live as long as it does."""

    def __init__(self, code: bytes) -> None:
        # NOTE: a target machine must not serve two engines; reuse ends in a segmentation fault.
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
        self._engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(code))
        self._engine.finalize_object()

    def function(self, name: str, *arguments: type) -> Callable[..., None]:
        # CFUNCTYPE, unlike PYFUNCTYPE, releases the GIL during the call.
        kind = ctypes.CFUNCTYPE(None, *arguments)
        return kind(self._engine.get_function_address(name))


def _target_machine(effort: int = 2) -> llvm.TargetMachine:
    _initialize()
    cpu, features = host()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=cpu, features=features, opt=effort, jit=True, codemodel="jitdefault"
    )


def _compile(ir: str) -> bytes:
    # The schedulers take more than linear time in a block: code of thousands of lines is compiled simply.
    machine = _target_machine(2 if len(ir) < LONG_IR_BYTES else 0)
    module = llvm.parse_assembly(f'target triple = "{llvm.get_process_triple()}"\n{ir}')
    module.data_layout = str(machine.target_data)
    module.verify()
    return bytes(machine.emit_object(module))


def load(ir: str) -> Library:
    """The machine code of a module, compiled now or found on disk."""
    cpu, features = host()
    text = "\0".join((ir, cpu, features, llvmlite.__version__, ".".join(map(str, llvm.llvm_version_info))))
    key = hashlib.blake2b(text.encode(), digest_size=20).hexdigest()
    return Library(cache.kept("cpu", key, lambda: _compile(ir)))
