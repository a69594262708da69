"""Compiles CUDA C++ with g++ against emulator.h and launches its kernels on the CPU. Never needs a GPU or CUDA.

`python -m tests.cuda.emulate FILE.cu` compiles a file and lists its kernels with their parameters.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

Order = Literal["forward", "reverse", "random"]
ORDERS: tuple[Order, ...] = ("forward", "reverse", "random")

HERE = Path(__file__).resolve().parent
HEADERS = ("emulator.h", "fibers.h", "kernels.h")
CACHE = HERE.parents[1] / "build" / "emulator"
KEEP_S = 7 * 24 * 3600.0  # compiled modules that no run used for a week are removed
# Nothing is fused but what the source fuses, as the intrinsics with _rn in their names ask.
FLAGS = ("-std=c++17", "-O2", "-march=native", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-w")
SANITIZERS = (
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize=object-size",  # the address sanitizer sees the same, and names the variable
    "-fno-sanitize-recover=all",
    "-fsanitize-sections=cuda_shared",  # else arrays in a section of their own get no red zones
)
REPORT = {"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0", "UBSAN_OPTIONS": "print_stacktrace=1"}

KERNEL = re.compile(r"__global__\s+(?:void\s+)?(?:__launch_bounds__\s*\([^)]*\)\s*)?(?:void\s+)?(\w+)\s*\(")
DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:__align__\s*\(\d+\)\s*)?([\w\s]*?\w)\s+(\w+)\s*\[\s*\]\s*;")


class EmulationError(Exception):
    """A launch that cannot be right: a barrier that not all reach, memory out of bounds, `__trap()`."""


class CompilationError(Exception):
    """g++ refuses the source; the message is its own."""


def compiler() -> str | None:
    """The path of g++, or None where the emulator cannot run."""
    return shutil.which("g++") if platform.machine() in ("x86_64", "aarch64") else None


@dataclass(frozen=True)
class Module:
    """A compiled source: a shared object, or under sanitizers a program that runs one launch.

    parameters   for each kernel, the types of its parameters: "f4", "i8", "s24" (structure), "*f4" (pointer)
    """

    path: Path
    parameters: dict[str, tuple[str, ...]]
    library: ctypes.CDLL | None
    lock: threading.Lock = field(default_factory=threading.Lock)


def compile(source: str, sanitize: bool | None = None) -> Module:
    """A module of every `extern "C" __global__` function in the source, from the cache where it lies there.

    sanitize   under AddressSanitizer and UBSan; by default where FARSUM_EMULATOR_SANITIZE is set
    """
    if sanitize is None:
        sanitize = bool(os.environ.get("FARSUM_EMULATOR_SANITIZE"))
    gxx = compiler()
    if gxx is None:
        raise CompilationError("the emulator needs g++ on x86-64 or aarch64")
    names = list(dict.fromkeys(KERNEL.findall(source)))
    flags = (*FLAGS, *SANITIZERS) if sanitize else FLAGS
    command = [gxx, *flags, "-I", str(HERE)]
    words = _words(command)
    # The scheduler, and under sanitizers the program around it, are compiled once for all modules.
    runtime = [
        _made([*command, "-c"], f'#line 1 "{name}"\n{(HERE / name).read_text()}', ["fibers.h"], ".o")
        for name in ("fibers.cpp", *(["job.cpp"] if sanitize else []))
    ]
    kernels = " ".join(f"EMULATOR_KERNEL({name})" for name in names)
    text = DYNAMIC.sub(r"EMULATOR_DYNAMIC(\1, \2);", source)
    text = (
        f'#include "{words}"\n#line 1 "kernel.cu"\n{text}\n#line 1 "kernels"\nEMULATOR_KERNELS({kernels})\n'
    )
    if sanitize:
        return _program(_made(command, text, HEADERS, "", runtime))
    return _library(_made([*command, "-shared"], text, HEADERS, ".so", runtime), names)


def launch(
    module: Module,
    kernel_name: str,
    grid: Sequence[int],
    block: Sequence[int],
    shared_bytes: int,
    args: Sequence[Any],
    order: Order = "forward",
    seed: int = 1,
) -> None:
    """Run one kernel; arrays among the arguments are read and written in place.

    grid, block    one to three sizes
    shared_bytes   of dynamic shared memory
    args           for a pointer: a C-contiguous array whose items have the size of what is pointed to, or None.
                   For a number: a Python number, or a NumPy scalar of exactly that type. For a structure: a NumPy
                   scalar or bytes of its size.
    order, seed    in which order blocks, warps and lanes run between two meetings

    Raises EmulationError with what went wrong, and TypeError for arguments that do not fit the parameters.
    """
    kinds = module.parameters[kernel_name]
    if len(kinds) != len(args):
        raise TypeError(f"{kernel_name} takes {len(kinds)} arguments, got {len(args)}")
    values = [
        _value(kernel_name, k, kind, arg) for k, (kind, arg) in enumerate(zip(kinds, args, strict=True))
    ]
    sizes = [*grid, *[1] * (3 - len(grid)), *block, *[1] * (3 - len(block))]
    how = struct.pack("=8IQ", *sizes, ORDERS.index(order), shared_bytes, seed)
    with module.lock:
        if module.library is None:
            _run_program(module.path, kernel_name, how, values)
        else:
            _call_library(module.library, kernel_name, how, values)


def _value(kernel: str, place: int, kind: str, arg: Any) -> bytes | np.ndarray | None:
    """The argument as the bytes of a value, or as the array that a pointer leads to."""
    where = f"argument {place} of {kernel} is a {kind}"
    if kind.startswith("*"):
        if arg is None:
            return None
        if not isinstance(arg, np.ndarray):
            raise TypeError(f"{where}, got {type(arg).__name__}")
        pointee, size = kind[1], int(kind[2:] or 0)
        if not arg.flags.c_contiguous or (pointee in "fiub" and size > 1 and arg.itemsize % size):
            raise TypeError(f"{where}, got an array of {arg.dtype} with strides {arg.strides}")
        return arg
    size = int(kind[1:])
    if kind[0] == "s" or isinstance(arg, bytes):
        raw = arg if isinstance(arg, bytes) else np.asarray(arg).tobytes()
    elif isinstance(arg, np.generic):
        if (arg.dtype.kind, arg.itemsize) != (kind[0], size):
            raise TypeError(f"{where}, got {arg.dtype}")
        raw = arg.tobytes()
    else:
        raw = np.array(arg, dtype="?" if kind == "b1" else kind).tobytes()
    if len(raw) != size:
        raise TypeError(f"{where}, got {len(raw)} bytes")
    return raw


def _call_library(library: ctypes.CDLL, kernel: str, how: bytes, values: list[Any]) -> None:
    cells = [
        ctypes.create_string_buffer(value, len(value))
        if isinstance(value, bytes)
        else ctypes.c_void_p(None if value is None else value.ctypes.data)
        for value in values
    ]
    pointers = (ctypes.c_void_p * len(cells))(*(ctypes.addressof(cell) for cell in cells))
    failed = library.emulator_launch(kernel.encode(), pointers, how)
    if failed:
        raise EmulationError(f"{kernel}: {failed.decode()}")


def _run_program(path: Path, kernel: str, how: bytes, values: list[Any]) -> None:
    """One launch in a process of its own; the format of the job is in job.cpp."""
    job = bytearray(struct.pack("=3Q", len(kernel), len(how), len(values)) + kernel.encode() + how)
    seen: dict[tuple[int, int], int] = {}
    places: list[tuple[np.ndarray, int]] = []
    for k, value in enumerate(values):
        if value is None:
            job += struct.pack("=2Q", 3, 0)
        elif isinstance(value, bytes):
            job += struct.pack("=2Q", 0, len(value)) + value
        elif (first := seen.setdefault((value.ctypes.data, value.nbytes), k)) != k:
            job += struct.pack("=2Q", 2, first)
        else:
            job += struct.pack("=2Q", 1, value.nbytes)
            places.append((value, len(job)))
            job += value.tobytes()
    with tempfile.TemporaryDirectory(prefix="farsum-emulator-") as folder:
        file = Path(folder) / "job"
        file.write_bytes(job)
        done = subprocess.run(
            [path, file], capture_output=True, text=True, check=False, env={**os.environ, **REPORT}
        )
        if done.returncode:
            raise EmulationError(f"{kernel}: {done.stderr.strip() or f'ended with {done.returncode}'}")
        raw = file.read_bytes()
    for array, start in places:
        if array.flags.writeable:
            array[...] = np.frombuffer(raw, array.dtype, array.size, start).reshape(array.shape)


def _words(command: Sequence[str]) -> Path:
    """A header that says the words of CUDA, with its precompiled form beside it: a fourth of the time of a module."""
    source = ("-x", "c++-header", str(HERE / "emulator.h"))
    header = _made(command, "", HEADERS, ".h.gch", source=source).with_suffix("")
    if not header.exists():
        header.write_text('#include "emulator.h"\n')
    return header


def _made(
    command: Sequence[str],
    text: str,
    headers: Sequence[str],
    suffix: str,
    objects: Sequence[Path] = (),
    source: Sequence[str] = ("-x", "c++", "-", "-x", "none"),
) -> Path:
    """What the compiler makes of a text, from the cache where it lies there. Objects are known by their names, which are digests."""
    words = (
        *command,
        *(str(o) for o in objects),
        _machine(),
        *((HERE / h).read_text() for h in headers),
        text,
    )
    digest = hashlib.blake2b("\0".join(words).encode(), digest_size=20).hexdigest()
    path = CACHE / f"{digest}{suffix}"
    if path.exists():
        os.utime(path)
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        made = Path(folder) / path.name
        done = subprocess.run(
            [*command, "-o", made, *source, *objects],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
        if done.returncode:
            raise CompilationError(done.stderr)
        os.replace(made, path)
    for old in CACHE.iterdir():
        with contextlib.suppress(OSError):  # another run may be removing the same
            if old.is_file() and old.stat().st_mtime < time.time() - KEEP_S:
                old.unlink()
    return path


def _program(path: Path) -> Module:
    listed = subprocess.run([path], capture_output=True, text=True, check=True, env={**os.environ, **REPORT})
    rows = (line.split(":") for line in listed.stdout.splitlines())
    return Module(path, {name: tuple(kinds.split()) for name, kinds in rows}, None)


def _library(path: Path, names: Sequence[str]) -> Module:
    library = ctypes.CDLL(str(path))
    library.emulator_parameters.restype = library.emulator_launch.restype = ctypes.c_char_p
    kinds = {name: tuple(library.emulator_parameters(name.encode()).decode().split()) for name in names}
    return Module(path, kinds, library)


@cache
def _machine() -> str:
    """What -march=native depends on, so that a cache shared by machines is no trap."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))
    return platform.processor()


if __name__ == "__main__":
    for listed_name, listed_kinds in compile(Path(sys.argv[1]).read_text()).parameters.items():
        print(f"{listed_name}: {' '.join(listed_kinds)}")
