"""Code written for pykeops, as it is, on farsum. Each script runs in a process of its own: modules are global."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from farsum.pykeops_alias import MODULES

INSTALL = "import farsum.pykeops_alias as alias\nalias.install()\n"
ARRAYS = """
import numpy as np
rng = np.random.default_rng(0)
x, y, b = rng.random((20, 3)), rng.random((30, 3)), rng.random((30, 1))
dense = ((x[:, None] - y) ** 2).sum(-1)
"""


def says(code: str, before: str = INSTALL, **environment: str) -> str:
    """What a script prints; it must end well and warn of nothing."""
    command = [sys.executable, "-W", "error", "-c", before + textwrap.dedent(code)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


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


# ── functions of the package ──────────────────────────────────────────────────────────────────────


@pytest.mark.parity("T-02", "T-10", "X-84")
def test_the_bindings_answer_and_print_when_asked_to() -> None:
    said = says("""
        import pykeops, keopscore
        assert pykeops.verbose is True and keopscore.verbose is True
        assert pykeops.test_numpy_bindings() is True
        pykeops.set_verbose(False)
        assert pykeops.verbose is False and keopscore.verbose is False
        assert pykeops.test_numpy_bindings() is True
        assert pykeops.test_torch_bindings() is True
        pykeops.verbose = True
        pykeops.test_numpy_bindings()
    """)
    assert said == "farsum: numpy arrays work\n" * 2


@pytest.mark.parity("T-03")
@pytest.mark.parametrize("variable", ["PYKEOPS_VERBOSE", "KEOPS_VERBOSE"])
def test_the_environment_silences(variable: str) -> None:
    code = (
        "import pykeops, keopscore\nprint(pykeops.verbose, keopscore.verbose, pykeops.test_numpy_bindings())"
    )
    assert says(code, **{variable: "0"}) == "False False True\n"


@pytest.mark.parity("T-10", "X-84")
def test_a_failure_is_false_and_says_why() -> None:
    said = says("""
        import pykeops, farsum.numpy
        pykeops.set_verbose(True)
        farsum.numpy.Genred = lambda *a, **k: lambda *b: b[0][:, :1]
        assert pykeops.test_numpy_bindings() is False
        def broken(*a, **k): raise ValueError("no engine")
        farsum.numpy.Genred = broken
        assert pykeops.test_numpy_bindings() is False
        assert pykeops.check_health()["healthy"] is False
    """)
    assert "came out as [0.0, 2.0], not [34.0, 38.0]" in said and "ValueError: no engine" in said


@pytest.mark.parity("T-09", "X-84")
def test_health_is_printed_and_given() -> None:
    said = says("""
        import json, pykeops
        found = pykeops.check_health()
        assert found["healthy"] is True and found["error"] is None and found["target"] == "embedded"
        assert found["pykeops"] == "2.3" and found["devices"][0]["kind"] == "cpu"
        try:
            pykeops.check_health("all")
        except TypeError:
            print(json.dumps(sorted(found)))
    """)
    *lines, keys = said.splitlines()
    assert [f'"{line.split(":")[0].strip()}"' in keys for line in lines] == [True] * len(lines)
    assert "  healthy: True" in lines


def test_health_of_a_server_that_is_not_there() -> None:
    said = says(
        "import pykeops\nassert pykeops.check_health()['healthy'] is False",
        FARSUM_TARGET="grpc://127.0.0.1:9",
    )
    assert "grpc://127.0.0.1:9" in said and "ServerUnreachable" in said


@pytest.mark.parity("T-05", "T-06")
def test_the_build_folder_is_a_name_that_can_be_changed(tmp_path: Path) -> None:
    says(
        f"""
        import os, pykeops, keopscore
        from keopscore.config.config import get_build_folder
        usual = pykeops.get_build_folder()
        assert os.listdir(usual) == [] and usual == os.path.join({str(tmp_path)!r}, "pykeops")
        there = os.path.join({str(tmp_path)!r}, "a", "b")
        assert pykeops.set_build_folder(there) is None
        assert pykeops.get_build_folder() == there == get_build_folder() == keopscore.config.get_build_folder()
        assert os.path.isdir(there)
        keopscore.set_build_folder()
        assert pykeops.get_build_folder() == usual == pykeops.config.get_build_folder()
        """,
        FARSUM_CACHE=str(tmp_path),
    )


@pytest.mark.parity("T-04", "T-06", "T-17")
def test_cleaning_takes_nothing_of_yours_and_the_choice_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    says(f"""
        import pykeops, keopscore, os
        pykeops.set_build_folder({str(tmp_path)!r})
        assert pykeops.clean_pykeops() is None and keopscore.clean_keops(recompile_jit_binaries=False) is None
        assert pykeops.test_numpy_bindings()
        assert os.listdir({str(tmp_path)!r}) == ["thesis.tex"]
    """)
    assert str(tmp_path) not in says("import pykeops\nprint(pykeops.get_build_folder())")


@pytest.mark.parity("T-07", "T-08", "T-18", "X-61")
def test_no_compiler_is_run_and_its_environment_says_nothing(tmp_path: Path) -> None:
    nothing, cache = str(tmp_path / "nothing"), tmp_path / "keops"
    code = ARRAYS + (
        "import pykeops\nfrom pykeops.numpy import Vi, Vj\npykeops.set_verbose(True)\n"
        "assert np.allclose((Vi(x) - Vj(y)).sqnorm2().exp().sum(axis=1)[:, 0], np.exp(dense).sum(1))\n"
    )
    said = says(
        code, PATH=nothing, CXX=nothing, CXXFLAGS="-nonsense", CUDA_PATH=nothing, CUDA_HOME=nothing,
        CUDA_VISIBLE_DEVICES="-1", CONDA_PREFIX=nothing, KEOPS_CACHE_FOLDER=str(cache),
    )  # fmt: skip
    assert said == "", "nothing is generated or compiled as far as the user can see"
    assert not cache.exists()


@pytest.mark.parity("T-16", "T-19")
def test_names_that_were_taken_away_and_flags_that_do_nothing() -> None:
    says(
        ARRAYS
        + """
import pykeops, keopscore
from pykeops.numpy import LazyTensor
for absent in ("set_bin_folder", "build_type", "bin_folder", "LazyTensor"):
    assert not hasattr(pykeops, absent)
for absent in ("pykeops.numpy.kernel_product", "pykeops.numpy.convolutions", "pykeops.common.kernel_product"):
    try:
        __import__(absent)
    except ModuleNotFoundError:
        continue
    raise AssertionError(absent)
assert keopscore.auto_factorize is False
K = lambda: (-(LazyTensor(x[:, None]) - LazyTensor(y[None])).sqnorm2()).exp()
plain = K() @ b
keopscore.auto_factorize = True
assert np.array_equal(K() @ b, plain)
"""
    )


def test_configuration_that_other_packages_look_at_or_poke() -> None:
    says("""
        import keopscore, pykeops.config
        assert keopscore.__version__ == "2.3"
        # as releases up to 2.2 had it
        import keopscore.config.config
        from keopscore.config.config import get_build_folder, use_cuda
        assert keopscore.config.config.use_cuda is use_cuda is False
        keopscore.config.config.use_cuda = False
        # as 2.3 has it
        from keopscore.config import config, cuda_config
        from keopscore.config.cuda import CUDAConfig
        assert config.get_build_folder() == get_build_folder()
        assert cuda_config.get_use_cuda() is cuda_config._use_cuda is CUDAConfig().get_use_cuda() is False
        cuda_config._use_cuda = True
        assert keopscore.cuda_config.get_use_cuda() is True
        # as it will be
        assert keopscore.config.cuda.get_use_cuda() in (True, False)
    """)


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
