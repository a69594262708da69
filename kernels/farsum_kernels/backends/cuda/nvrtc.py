"""CUDA C++ to machine code, by NVRTC. Needs no GPU, no driver and no compiler on the machine; loads nothing."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache as once
from typing import Any

from farsum_kernels.backends import cache
from farsum_kernels.errors import CompilerMissing, FormulaTooExpensive, InternalError

FLAGS = ("-std=c++17", "-ftz=true", "--ptxas-options=-v")
EXTRAS = (
    "install it with the CUDA libraries of your driver: pip install 'farsum[cuda13]', or 'farsum[cuda12]'"
)


@once
def compiler() -> Any:
    """NVRTC, through CuPy's binding. Raises CompilerMissing."""
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except (ImportError, RuntimeError) as error:
        raise CompilerMissing(f"NVRTC is not here ({error}); {EXTRAS}") from error
    return nvrtc


def version() -> tuple[int, int]:
    """The version of NVRTC."""
    major, minor = compiler().getVersion()
    return int(major), int(minor)


@dataclass(frozen=True)
class Usage:
    """What a kernel takes of a processor, as the assembler reports it."""

    registers: int
    stack_bytes: int
    spilled_bytes: int


def compile(source: str, arch: int) -> tuple[bytes, dict[str, Usage]]:
    """A cubin for compute capability `arch` (90 for 9.0) and the usage of each of its kernels.

    Raises CompilerMissing when NVRTC does not know the architecture.
    """
    nvrtc = compiler()
    program = nvrtc.createProgram(source, "kernel.cu", [], [])
    try:
        nvrtc.compileProgram(program, [f"--gpu-architecture=sm_{arch}", *FLAGS])
        # NOTE: CuPy's binding takes the last byte for the end of a text and drops it; in a file it is missed.
        return bytes(nvrtc.getCUBIN(program)) + b"\0", usage(nvrtc.getProgramLog(program))
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        if "gpu-architecture" in log or "ARCHITECTURE" in str(error):
            raise CompilerMissing(
                f"NVRTC {version()[0]}.{version()[1]} does not know a GPU of compute capability {arch / 10}; {EXTRAS}"
            ) from error
        if "MEMORY" in str(error):
            raise FormulaTooExpensive("the formula takes NVRTC more memory than there is") from error
        raise InternalError(f"NVRTC refuses a generated kernel: {log[:2000]}") from error
    finally:
        nvrtc.destroyProgram(program)


def cubin(source: str, arch: int) -> tuple[str, bytes]:
    """The digest and the machine code of a source, compiled now or found on disk."""
    text = "\0".join((source, str(arch), str(version()), *FLAGS))
    key = hashlib.blake2b(text.encode(), digest_size=20).hexdigest()
    return key, cache.kept("cuda", key, lambda: compile(source, arch)[0])


_ENTRY = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


def usage(log: str) -> dict[str, Usage]:
    """What the assembler's log says of each kernel.

    >>> usage("Compiling entry function 'a' for 'sm_90'\\n0 bytes stack frame, 4 bytes spill stores, "
    ...       "8 bytes spill loads\\nUsed 32 registers")
    {'a': Usage(registers=32, stack_bytes=0, spilled_bytes=12)}
    """
    return {
        name: Usage(int(registers), int(stack), int(stores) + int(loads))
        for name, stack, stores, loads, registers in _ENTRY.findall(log)
    }
