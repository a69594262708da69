"""Lets code written for pykeops run on farsum as it is.

    import farsum.pykeops_alias
    farsum.pykeops_alias.install()

    from pykeops.numpy import LazyTensor   # farsum's

After `install`, importing `pykeops` or `keopscore` gives modules of this table and never the real ones.
`farsum run script.py` does it from outside a script.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from farsum_kernels.errors import PykeopsLoaded

TOPS = ("pykeops", "keopscore")


def _of(source: str, *names: str) -> dict[str, str]:
    return {name: f"{source}:{name}" for name in names}


_PACKAGE = "farsum.pykeops_package"
_FOLDERS = _of(_PACKAGE, "get_build_folder", "set_build_folder")
_CUDA = {"use_cuda": f"{_PACKAGE}:has_gpu()"} | _of(_PACKAGE, "cuda_config", "get_use_cuda")
_TOP = _of(_PACKAGE, "__version__", "check_health", "show_cuda_status") | _FOLDERS
_TOP["verbose"] = f"{_PACKAGE}:verbosity()"
_FOUND = _of(_PACKAGE, "numpy_found") | {"torch_found": f"{_PACKAGE}:has_torch()"}
_MEANS = _of("farsum.cluster", "cluster_centroids", "cluster_ranges", "cluster_ranges_centroids", "sort_clusters", "swap_axes")  # fmt: skip
_KERNELS = _of(
    "farsum.pykeops_kernels", "chain_rules", "differences", "grad_np_kernel", "log_np_kernel", "log_sum_exp",
    "np_kernel", "np_kernel_sphere", "squared_distances",
)  # fmt: skip
_GENERIC = _of("farsum.numpy", "generic_argkmin", "generic_argmin", "generic_logsumexp", "generic_sum")
_CONFIG = _FOLDERS | _CUDA | {"set_different_build_folder": f"{_PACKAGE}:set_build_folder"}

# Every module there is, and where its names come from: "module:name", with () for the value of a call,
# taken at first use. "*" stands for all public names of a front end.
# fmt: off
MODULES: dict[str, dict[str, str]] = {
    "pykeops": _TOP | _FOUND | _of(_PACKAGE, "clean_pykeops", "default_device_id", "set_verbose",
                                   "test_numpy_bindings", "test_torch_bindings"),
    "pykeops.config": _FOUND | _of(_PACKAGE, "get_build_folder", "show_cuda_status") | {
        "cuda": f"{_PACKAGE}:cuda_config", "pykeops_cuda": f"{_PACKAGE}:cuda_config",
        "gpu_available": f"{_PACKAGE}:has_gpu()"},
    "pykeops.common": {},
    "pykeops.common.lazy_tensor": {"GenericLazyTensor": "farsum.lazy:Lazy",
                                   "ComplexGenericLazyTensor": "farsum.numpy:ComplexLazyTensor"},
    "pykeops.common.operations": _of("farsum.solve", "ConjugateGradientSolver", "KernelLinearSolver"),
    "pykeops.common.utils": _of(_PACKAGE, "axis2cat") | {"cat2axis": f"{_PACKAGE}:axis2cat",
                                                         "WarmUpGpu": f"{_PACKAGE}:warm_up_gpu"},
    "pykeops.numpy": {"*": "farsum.numpy"},
    "pykeops.numpy.cluster": _MEANS | _of("farsum.cluster", "from_matrix", "grid_cluster"),
    "pykeops.numpy.cluster.matrix": _of("farsum.cluster", "from_matrix"),
    "pykeops.numpy.cluster.utils": _MEANS,
    "pykeops.numpy.generic": {},
    "pykeops.numpy.generic.generic_ops": _GENERIC,
    "pykeops.numpy.generic.generic_red": _of("farsum.numpy", "Genred"),
    "pykeops.numpy.lazytensor": {},
    "pykeops.numpy.lazytensor.LazyTensor": _of("farsum.numpy", "ComplexLazyTensor", "LazyTensor", "Pm", "Var", "Vi", "Vj"),
    "pykeops.numpy.operations": _of("farsum.solve", "ConjugateGradientSolver") | _of("farsum.numpy", "KernelSolve"),
    "pykeops.numpy.utils": _KERNELS | {"WarmUpGpu": f"{_PACKAGE}:warm_up_gpu", "IsGpuAvailable": f"{_PACKAGE}:has_gpu"},
    "pykeops.torch": {"*": "farsum.torch"},
    "pykeops.torch.cluster": _MEANS | _of("farsum.cluster", "from_matrix", "grid_cluster"),
    "pykeops.torch.cluster.matrix": _of("farsum.cluster", "from_matrix"),
    "pykeops.torch.cluster.utils": _MEANS,
    "pykeops.torch.generic": {},
    "pykeops.torch.generic.generic_ops": _of("farsum.torch", *_GENERIC),
    "pykeops.torch.generic.generic_red": _of("farsum.torch", "Genred"),
    "pykeops.torch.lazytensor": {},
    "pykeops.torch.lazytensor.LazyTensor": _of("farsum.torch", "ComplexLazyTensor", "LazyTensor", "Pm", "Var", "Vi", "Vj"),
    "pykeops.torch.operations": _of("farsum.torch", "KernelSolve") | _of("farsum.solve", "ConjugateGradientSolver"),
    "pykeops.torch.utils": _of("farsum.pykeops_kernels", "torch_kernel") | {"WarmUpGpu": f"{_PACKAGE}:warm_up_gpu"},
    "keopscore": _TOP | _of(_PACKAGE, "auto_factorize", "cuda_config", "debug_ops") | {
        "clean_keops": f"{_PACKAGE}:clean_pykeops"},
    # Releases of keopscore disagree on whether `config.config` is a module or an object, and on what is
    # asked of `config` and what of `config.config`. Both answer all of it.
    "keopscore.config": _CONFIG,
    "keopscore.config.config": _CONFIG,
    "keopscore.config.cuda": _CUDA | _of(_PACKAGE, "CUDAConfig"),
}
# fmt: on


def install() -> None:
    """Let `import pykeops` and `import keopscore` in this process mean farsum. Twice is as good as once.

    Raises PykeopsLoaded when the real one has been imported before.
    """
    if _FINDER in sys.meta_path:
        return
    for name in TOPS:
        if name in sys.modules:
            raise PykeopsLoaded(
                f"{name} is imported already: call farsum.pykeops_alias.install() before anything imports it"
            )
    sys.meta_path.insert(0, _FINDER)


def uninstall() -> None:
    """Undo `install`, and forget the modules that it gave; names imported from them stay what they are."""
    if _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)
    for name in [n for n, m in sys.modules.items() if getattr(m, "__loader__", None) is _FINDER]:
        del sys.modules[name]


class _Finder(MetaPathFinder, Loader):
    """Finds and fills the modules of the table."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname not in MODULES:
            return None
        package = any(name.startswith(f"{fullname}.") for name in MODULES)
        spec = ModuleSpec(fullname, self, is_package=package, origin=__file__)
        # Scripts print `pykeops.__file__`, or look next to it.
        spec.has_location = fullname in TOPS
        return spec

    def exec_module(self, module: ModuleType) -> None:
        name, held = module.__name__, vars(module)
        held["__doc__"] = f"{name}, answered by farsum."
        held["__getattr__"] = partial(_attribute, name)
        held["__dir__"] = lambda: sorted(held.keys() | MODULES[name].keys() - {"*"})
        if front := MODULES[name].get("*"):
            source = front_end(front)
            held["__all__"] = list(source.__all__)
            held.update((n, getattr(source, n)) for n in source.__all__)


def front_end(name: str) -> ModuleType:
    """farsum.numpy or farsum.torch. Raises ImportError, with a sentence, for one that is not written yet."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        library = name.rpartition(".")[2]
        raise ImportError(
            f"pykeops.{library} is not there: farsum has no front end for {library} yet; "
            f"pykeops.numpy works on NumPy arrays",
            name=f"pykeops.{library}",
        ) from None


def _attribute(module: str, name: str) -> Any:
    """A name of a module, looked up when it is first asked for, so that nothing is imported before."""
    if f"{module}.{name}" in MODULES:
        try:
            return import_module(f"{module}.{name}")
        except ImportError as error:
            raise AttributeError(str(error)) from error
    source, _, what = MODULES[module].get(name, "").partition(":")
    if not what:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    value = getattr(import_module(source), what.removesuffix("()"))
    if what.endswith("()"):
        value = value()
    setattr(sys.modules[module], name, value)
    return value


_FINDER = _Finder()
