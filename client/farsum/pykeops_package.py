"""What the package `pykeops` itself offers besides its front ends, answered by farsum. See pykeops_alias.

Nothing is compiled with a C++ compiler or CUDA's, so there is no build folder to fill or clean, and the
environment variables that steer those (CXX, CXXFLAGS, CUDA_PATH, KEOPS_CACHE_FOLDER, …) have no effect.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from contextlib import suppress
from functools import cached_property
from importlib import import_module
from typing import Any

from farsum.compute import device_of
from farsum.pykeops_alias import front_end
from farsum_kernels.errors import AxisError, CompilerMissing, DeviceMissing, EngineMissing, FarsumError

__version__ = "2.3"  # of the pykeops whose names and conventions these are
default_device_id = 0
show_cuda_status = False
numpy_found = True
auto_factorize = False
debug_ops = False

_folder: str | None = None
_verbose: bool | None = None


# ── printing ──────────────────────────────────────────────────────────────────────────────────────


def verbosity() -> bool:
    """What `verbose` is in a module that asks first now: True, unless PYKEOPS_VERBOSE or KEOPS_VERBOSE is 0."""
    if _verbose is not None:
        return _verbose
    return "0" not in (os.environ.get("PYKEOPS_VERBOSE"), os.environ.get("KEOPS_VERBOSE"))


def set_verbose(val: bool) -> None:
    """Whether `test_numpy_bindings` and `test_torch_bindings` print; nothing else here prints unasked."""
    global _verbose
    _verbose = bool(val)
    for name in ("pykeops", "keopscore"):
        if name in sys.modules:
            sys.modules[name].verbose = _verbose  # type: ignore[attr-defined]


# ── the build folder, which stays empty ───────────────────────────────────────────────────────────


def get_build_folder() -> str:
    """A folder that scripts may list and clean; nothing of farsum is in it."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = _folder or os.path.join(
        os.environ.get("FARSUM_CACHE") or os.path.join(caches, "farsum"), "pykeops"
    )
    with suppress(OSError):  # a home that cannot be written is no reason to stop
        os.makedirs(folder, exist_ok=True)
    return folder


def set_build_folder(path: str | os.PathLike[str] | None = None, **_: Any) -> None:
    """Name, and make, the folder that `get_build_folder` gives in this process; None for the usual one."""
    global _folder
    if path is not None:
        os.makedirs(path, exist_ok=True)
    _folder = None if path is None else os.path.abspath(path)


def clean_pykeops(recompile_jit_binaries: bool = True) -> None:
    """Nothing: a formula leaves nothing behind that could be stale. Files of yours stay where they are."""


# ── what there is to compute with ─────────────────────────────────────────────────────────────────


def has_gpu() -> bool:
    """Whether backend="GPU" computes: on the server that work goes to, or without one in this process."""
    try:
        device_of("GPU")
    except (CompilerMissing, DeviceMissing, EngineMissing):
        return False
    return True


def has_torch() -> bool:
    """Whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def _machine() -> tuple[str, list[dict[str, Any]]]:
    """The target that work goes to, and its devices."""
    from farsum.target import ping

    try:
        info = ping()
    except EngineMissing:  # no target: the engine of this process
        cores = {"kind": "cpu", "name": platform.machine(), "threads": os.cpu_count()}
        return "embedded", [cores]
    return info["target"], info["devices"]


class CUDAConfig:
    """What is asked about CUDA. `_use_cuda` may be set, as some code does; it says nothing to farsum."""

    n_gpus = 0

    @cached_property
    def _use_cuda(self) -> bool:
        return has_gpu()

    def get_use_cuda(self) -> bool:
        return self._use_cuda

    is_available = get_use_cuda


cuda_config = CUDAConfig()
get_use_cuda = cuda_config.get_use_cuda


def warm_up_gpu(lang: str = "numpy") -> None:
    """Run a tiny reduction, so that the engine is up when time is taken."""
    _failure(lang)


def axis2cat(axis: int) -> int:
    """The category that a reduction over an axis leaves: 0 gives 1 (j), 1 gives 0 (i). Its own inverse."""
    if axis not in (0, 1):
        raise AxisError(f"axis must be 0 or 1, not {axis!r}")
    return 1 - axis


# ── is it well? ───────────────────────────────────────────────────────────────────────────────────


def test_numpy_bindings() -> bool:
    """Whether a tiny reduction of NumPy arrays gives what it should; says so too, if `pykeops.verbose`."""
    return _tested("numpy")


def test_torch_bindings() -> bool:
    """Whether a tiny reduction of PyTorch tensors gives what it should; says so too, if `pykeops.verbose`."""
    return _tested("torch")


# They are called by users; pytest, which collects by name, is not to take them for its own.
test_numpy_bindings.__test__ = test_torch_bindings.__test__ = False  # type: ignore[attr-defined]


def check_health() -> dict[str, Any]:
    """Print what there is to compute with and whether it computes; gives the same as a dict.

    Keys: farsum, pykeops, python, platform, numpy, torch (versions, None where absent), target, devices,
    healthy (a bool), error (a sentence, None if healthy). Never raises.
    """
    found: dict[str, Any] = {
        "farsum": import_module("farsum").__version__,
        "pykeops": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": _installed("numpy"),
        "torch": _installed("torch"),
    }
    error = _failure("numpy")
    try:
        target, devices = _machine()
    except FarsumError as unreachable:
        target, devices, error = os.environ.get("FARSUM_TARGET", ""), [], error or str(unreachable)
    found |= {"target": target, "devices": devices, "healthy": error is None, "error": error}
    for key, value in found.items():
        print(f"{key:>9}: {value}")
    return found


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tested(library: str) -> bool:
    error = _failure(library)
    if getattr(sys.modules.get("pykeops"), "verbose", verbosity()):
        print(f"farsum: {library} arrays " + ("work" if error is None else f"do not work: {error}"))
    return error is None


def _failure(library: str) -> str | None:
    """What is wrong with a front end, or None if a reduction with a known result comes out right."""
    try:
        genred, as_array = front_end(f"farsum.{library}").Genred, import_module(library).asarray
        x, y = as_array([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]]), as_array([[1.0, 2.0, 2.0], [0.0, 3.0, 4.0]])
        got = genred("SqNorm2(x - y)", ["x = Vi(3)", "y = Vj(3)"], axis=1)(x, y).ravel().tolist()
    except Exception as error:  # whatever it is, it is the answer to the question
        return f"{type(error).__name__}: {error}"
    return None if got == [34.0, 38.0] else f"sums of squared distances came out as {got}, not [34.0, 38.0]"
