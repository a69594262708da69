"""Code written for pykeops, as it is, on farsum. Each script runs in a process of its own: modules are global."""

from __future__ import annotations

from pathlib import Path

import pytest

from farsum.pykeops_alias import MODULES
from tests.client.scripts import ARRAYS, INSTALL, says

# ── importing ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parity("T-01", "T-11", "T-12")
def test_the_package_and_its_constants() -> None:
    assert says("""
        import pykeops, pykeops.config
        from pykeops import __version__
        assert pykeops.__version__ == __version__ == "2.3"
        assert pykeops.default_device_id == 0
        assert pykeops.config.gpu_available is False and pykeops.config.numpy_found is True
        assert pykeops.config.torch_found in (True, False) and pykeops.show_cuda_status is False
        pykeops.default_device_id, pykeops.config.gpu_available = 1, True
        from pykeops.config import gpu_available
        assert gpu_available is True and pykeops.default_device_id == 1
        print(pykeops.config.cuda.is_available())
    """) == "False\n"  # fmt: skip


@pytest.mark.parity("T-13", "X-66")
def test_a_star_imports_every_name_of_the_front_end() -> None:
    assert says("""
        from pykeops.numpy import *
        import pykeops.numpy, farsum.numpy
        listed = {"Genred", "KernelSolve", "LazyTensor", "Pm", "Vi", "Vj", "generic_argkmin", "generic_argmin",
                  "generic_logsumexp", "generic_sum"}
        assert listed | {"ComplexLazyTensor"} <= set(pykeops.numpy.__all__) and listed <= globals().keys()
        assert not hasattr(pykeops.numpy, "GenredR")
        assert LazyTensor is pykeops.numpy.LazyTensor is farsum.numpy.LazyTensor
    """) == ""  # fmt: skip


def test_every_module_of_the_table_is_importable_in_every_way() -> None:
    modules = list(MODULES)
    for statement in ("importlib.import_module(name)", "importlib.util.find_spec(name).name"):
        says(f"""
            import importlib.util, sys
            for name in {modules}:
                {statement}
                module = importlib.import_module(name)
                assert sys.modules[name] is module and module.__spec__.name == name == module.__name__
                assert {{n for n in dir(module) if getattr(module, n) is None}} <= {{"__path__", "__file__", "__cached__"}}
        """)
    says("""
        import pykeops
        pykeops.numpy.cluster.from_matrix, pykeops.config.gpu_available   # without importing them by name
        import pykeops.numpy.cluster as c
        from pykeops.numpy.cluster import from_matrix
        from pykeops.numpy import cluster, Vi as V
        from pykeops.numpy.lazytensor.LazyTensor import LazyTensor
        assert c is cluster and from_matrix is c.from_matrix and LazyTensor is pykeops.numpy.LazyTensor
        assert pykeops.__file__.endswith(".py")
        from pykeops.torch.cluster import grid_cluster
        from pykeops.torch.lazytensor.LazyTensor import ComplexLazyTensor
        from pykeops.torch import LazyTensor, Vi, Vj, Pm, Genred, KernelSolve, generic_sum
        assert ComplexLazyTensor is pykeops.torch.ComplexLazyTensor
    """)


def test_what_is_not_there_is_missing_in_the_usual_way() -> None:
    assert says("""
        import importlib.util, pykeops, pykeops.numpy
        for what in ("import pykeops.jax", "import pykeops.numpy.convolutions", "from pykeops.numpy import GenredR"):
            try:
                exec(what)
            except ImportError as error:
                print(error)
        assert importlib.util.find_spec("pykeops.jax") is None
        assert not hasattr(pykeops, "jax") and not hasattr(pykeops.numpy, "__wrapped__")
    """).splitlines()[:2] == ["No module named 'pykeops.jax'", "No module named 'pykeops.numpy.convolutions'"]  # fmt: skip


def test_nothing_happens_before_install_and_nothing_stays_after_uninstall() -> None:
    says(
        """
        import sys, farsum
        assert "farsum.pykeops_alias" not in sys.modules
        import farsum.pykeops_alias as alias
        modules, finders = dict(sys.modules), list(sys.meta_path)
        alias.install()
        alias.install()
        assert len(sys.meta_path) == len(finders) + 1
        assert modules == sys.modules
        assert "numpy" not in sys.modules
        import pykeops.numpy.cluster, keopscore.config
        alias.uninstall()
        assert sys.meta_path == finders
        assert not [n for n in sys.modules if n.partition(".")[0] in ("pykeops", "keopscore")]
        alias.uninstall()
        alias.install()
        import pykeops
        assert pykeops.__version__ == "2.3"
        """,
        before="",
    )


@pytest.mark.parametrize("name", ["pykeops", "keopscore"])
def test_the_real_one_is_not_replaced_under_somebodys_feet(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("")
    assert "before anything imports it" in says(
        f"""
        import {name}, farsum.pykeops_alias as alias
        from farsum_kernels.errors import FarsumError
        try:
            alias.install()
        except RuntimeError as error:
            assert isinstance(error, FarsumError)
            print(error)
        """,
        before="",
        PYTHONPATH=str(tmp_path),
    )


def test_a_real_one_that_is_installed_is_not_looked_at(tmp_path: Path) -> None:
    for name in ("pykeops", "keopscore"):
        (tmp_path / name / "deep").mkdir(parents=True)
        for folder in (tmp_path / name, tmp_path / name / "deep"):
            (folder / "__init__.py").write_text("raise SystemError('the real one was imported')")
    says("import pykeops.numpy, keopscore", PYTHONPATH=str(tmp_path))
    assert "No module" in says(
        "try:\n import pykeops.deep\nexcept ImportError as e:\n print(e)", PYTHONPATH=str(tmp_path)
    )


# ── the torch front end ───────────────────────────────────────────────────────────────────────────

FAKE_TORCH = """
import sys, types
front = types.ModuleType("farsum.torch")
front.__all__, front.LazyTensor, front.Genred = ["LazyTensor"], "lazy", "genred"
sys.modules["farsum.torch"] = front
"""


def test_a_front_end_that_is_not_written_says_so() -> None:
    said = says("""
        import pykeops, sys
        alias.MODULES["pykeops.torch"] = {"*": "farsum.tensors_of_tomorrow"}
        for what in ("import pykeops.torch", "from pykeops.torch import LazyTensor", "from pykeops import torch",
                     "import pykeops.torch.cluster"):
            try:
                exec(what)
            except ImportError as error:
                print(error)
        assert not hasattr(pykeops, "torch")
    """)
    assert said.splitlines() == [said.splitlines()[0]] * 4
    assert "farsum has no front end" in said


@pytest.mark.parity("G-68")
def test_the_dense_kernels_of_tensors() -> None:
    says("""
        import numpy as np, torch
        from pykeops.numpy.utils import np_kernel
        from pykeops.torch.utils import torch_kernel
        x, y = np.random.rand(4, 3), np.random.rand(5, 3)
        for kernel in ("gaussian", "laplacian", "cauchy", "inverse_multiquadric"):
            found = torch_kernel(torch.from_numpy(x), torch.from_numpy(y), 0.7, kernel)
            np.testing.assert_allclose(found, np_kernel(x, y, 0.7, kernel))
    """)


@pytest.mark.parity("T-15")
def test_a_front_end_for_torch_plugs_in_whatever_the_version_of_torch() -> None:
    says(
        """
        torch = types.ModuleType("torch")
        torch.__version__ = "1.13.1"    # as text this comes before 1.3
        sys.modules["torch"] = torch
        from pykeops.torch import *
        import pykeops
        assert LazyTensor == pykeops.torch.LazyTensor == "lazy"
        assert pykeops.torch.__all__ == ["LazyTensor"]
        """,
        before=INSTALL + FAKE_TORCH,
    )


# ── code as people write it ───────────────────────────────────────────────────────────────────────


def test_classes_to_compare_with() -> None:
    says(
        ARRAYS
        + """
from pykeops.common.lazy_tensor import ComplexGenericLazyTensor, GenericLazyTensor
from pykeops.numpy import ComplexLazyTensor, LazyTensor, Vi
z = ComplexLazyTensor((x + 1j)[:, None])
assert isinstance(Vi(x), GenericLazyTensor) and not isinstance(Vi(x), ComplexGenericLazyTensor)
assert isinstance(z, GenericLazyTensor) and isinstance(z, ComplexGenericLazyTensor)
assert not isinstance(x, GenericLazyTensor) and not isinstance(z, LazyTensor)
"""
    )


@pytest.mark.parity("G-68")
def test_helpers_come_by_the_names_of_their_modules() -> None:
    says(
        ARRAYS
        + """
from pykeops.common.operations import ConjugateGradientSolver, KernelLinearSolver
from pykeops.common.utils import WarmUpGpu, axis2cat, cat2axis
from pykeops.numpy.utils import (chain_rules, differences, grad_np_kernel, IsGpuAvailable, log_np_kernel,
                                 log_sum_exp, np_kernel, np_kernel_sphere, squared_distances)
import pykeops.numpy.utils
assert WarmUpGpu("numpy") is None and pykeops.numpy.utils.WarmUpGpu() is None
assert [axis2cat(a) for a in (0, 1)] == [1, 0] == [cat2axis(a) for a in (0, 1)]
assert IsGpuAvailable() is False
A = np.diag([1.0, 2.0])
assert np.allclose(ConjugateGradientSolver("numpy", lambda v: A @ v, np.ones(2), eps=1e-12), [1, 0.5])
assert callable(KernelLinearSolver) and np.allclose(squared_distances(x, y), dense)
"""
    )


@pytest.mark.parity("X-60")
def test_formulas_and_aliases_are_never_run_as_code(tmp_path: Path) -> None:
    says(f"""
        import os
        from pykeops.numpy import Genred
        made = {str(tmp_path / "made")!r}
        evil = f"__import__('os').mkdir({{made!r}})"
        for formula, alias in ((evil, "x = Vi(3)"), ("x", f"x = Vi({{evil}})"), (f"Exp({{evil}} * x)", "x = Vi(3)")):
            try:
                Genred(formula, [alias], axis=1)
            except ValueError:
                pass
            else:
                raise AssertionError(formula)
        assert not os.path.exists(made)
    """)


@pytest.mark.parity("Z-01", "Z-02", "Z-06", "Z-07", "Z-08")
def test_genred_as_the_release_has_it_and_not_as_its_older_pages_do() -> None:
    says(
        ARRAYS
        + """
import inspect
from pykeops.numpy import Genred, generic_argkmin, generic_argmin
aliases = ["x = Vi(3)", "y = Vj(3)"]
for found, shape in ((generic_argmin("SqDist(x,y)", "a = Vi(1)", *aliases)(x, y), (20, 1)),
                     (generic_argkmin("SqDist(x,y)", "a = Vi(4)", *aliases)(x, y), (20, 4)),
                     (Genred("SqDist(x,y)", aliases, "ArgMin", axis=1)(x, y), (20, 1))):
    assert found.dtype == np.int64 and found.shape == shape
    assert np.array_equal(dense[np.arange(20)[:, None], found], np.sort(dense, 1)[:, :shape[1]])
taken = inspect.signature(Genred).parameters
assert {"dtype_acc", "use_double_acc", "sum_scheme", "enable_chunks", "use_fast_math"} <= taken.keys()
f = Genred("SqDist(x,y)", aliases, axis=1, sum_scheme="block_sum")
out = np.empty((20, 1))
assert f(x, y, out=out) is out
try:
    Genred("SqDist(x,y)", aliases, axis=1, sum_scheme="block_red")
except ValueError:
    pass
else:
    raise AssertionError
assert len(Genred("SqDist(x,y)", aliases, "KMin_ArgKMin", axis=1, opt_arg=2)(x, y)) == 2
for backend in ("GPU_1D_host", "GPU_1D_device", "GPU_2D_host", "GPU_2D_device"):
    try:
        f(x, y, backend=backend)
    except KeyError as error:    # known words, without a device to go with them
        assert "CUDA" in str(error)
    else:
        raise AssertionError
"""
    )
