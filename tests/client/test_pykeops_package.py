"""The functions of the package pykeops, as farsum has them: what it is called, how it is, what it cleans."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.client.scripts import ARRAYS, says


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
