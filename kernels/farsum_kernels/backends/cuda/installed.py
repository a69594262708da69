"""What of CUDA this environment has: the driver, CuPy, how many GPUs. Says what to install instead; takes no memory."""

from __future__ import annotations

import ctypes
import re
from importlib.metadata import distributions
from typing import Any

from farsum_kernels.errors import DeviceMissing, DriverTooOld, EngineMissing, WheelMismatch

OLDEST_DRIVER = 12  # the major version of CUDA that a driver must speak: there are wheels for 12 and 13

_INSUFFICIENT_DRIVER, _NO_DEVICE = 35, 100
_WHEEL = re.compile(r"cupy(-cuda\d+x|-cuda\d+|-rocm.*)?")


def wheels() -> list[str]:
    """The distributions that bring a package `cupy`, by name. There is room for one."""
    names = {(d.metadata["Name"] or "").lower() for d in distributions()}
    return sorted(name for name in names if _WHEEL.fullmatch(name))


def driver_version() -> tuple[int, int] | None:
    """The version of CUDA that the installed NVIDIA driver speaks; None without a driver. Asks no GPU."""
    try:
        ask = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion
    except (OSError, AttributeError):
        return None
    version = ctypes.c_int()
    return _version(version.value) if ask(ctypes.byref(version)) == 0 else None


def open_cupy() -> Any:
    """CuPy, if it is installed. Raises EngineMissing without it, WheelMismatch if it cannot be the right one."""
    found = wheels()
    if len(found) > 1:
        raise WheelMismatch(
            f"{' and '.join(found)} are both installed and overwrite each other's files: "
            f"pip uninstall -y {' '.join(found)}, then pip install 'farsum[cuda13]' or 'farsum[cuda12]'"
        )
    try:
        import cupy
    except ImportError as error:
        if found:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise WheelMismatch(
                f"{found[0]} is installed and does not load ({reason}): pip uninstall -y {found[0]}, then "
                "pip install 'farsum[cuda13]' or 'farsum[cuda12]'"
            ) from error
        raise EngineMissing(
            f"no CUDA engine in this environment ({error}): install the one for your driver, "
            "pip install 'farsum[cuda13]' or 'farsum[cuda12]'"
        ) from error
    if cupy.cuda.runtime.is_hip:
        raise WheelMismatch(
            f"the installed CuPy ({', '.join(found)}) is the one for AMD GPUs: pip uninstall -y {' '.join(found)}, "
            "then pip install 'farsum[cuda13]' or 'farsum[cuda12]'"
        )
    return cupy


def device_count() -> int:
    """The GPUs of this machine. Raises DeviceMissing, DriverTooOld or WheelMismatch when CUDA does not answer."""
    runtime = open_cupy().cuda.runtime
    try:
        return int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        if error.status == _NO_DEVICE:
            return 0
        if error.status != _INSUFFICIENT_DRIVER:
            raise DeviceMissing(f"CUDA does not answer: {error}") from error
        have, want = _version(runtime.driverGetVersion()), _version(runtime.runtimeGetVersion())
        if have == (0, 0):
            raise DeviceMissing(
                "no NVIDIA driver in this machine; the CPU computes without one: --device cpu"
            ) from error
        words = f"the driver of the GPU speaks CUDA {have[0]}.{have[1]}"
        if OLDEST_DRIVER <= have[0] < want[0]:
            (wheel,) = wheels() or ["cupy"]
            raise WheelMismatch(
                f"{words}, and {wheel} needs {want[0]}: pip uninstall -y {wheel}, then "
                f"pip install 'farsum[cuda{have[0]}]'; or update the driver"
            ) from error
        raise DriverTooOld(
            f"{words}, the installed libraries CUDA {want[0]}.{want[1]}, and farsum needs a driver of CUDA "
            f"{OLDEST_DRIVER}.0 at least: update the driver (nvidia-smi shows its version)"
        ) from error


def _version(number: int) -> tuple[int, int]:
    return number // 1000, number % 1000 // 10
