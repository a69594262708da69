"""Each example runs, says something, and would notice a wrong result. A new script is tested by lying there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import farsum.target
from farsum_kernels.job import Engine, Options, Prepared, Result, Spec
from farsum_kernels.program import Program

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = [path.stem for path in sorted(EXAMPLES.glob("*.py")) if path.stem != "demo"]

SAYS = {
    "genred_formulas": "gradient by x: relative error",
    "interpolation": "KernelSolve, three signals",
    "jax_flow": "Hessian times a direction: relative error",
    "kmeans": "inertia, next to scikit-learn: relative difference",
    "lazy_arrays": "    formula: Sum(Square((Var(0,3,0) - Var(1,3,1))))",
    "residency": "its eigenvector: relative error",
    "loops": "k-means: 20 rounds in one call",
    "nearest_neighbours": "cosine     accuracy",
    "spectral": "eigenvalues of the Laplacian: relative error",
    "torch_gaussian_process": "mean of the prediction: relative error",
    "torch_gmm": "log-likelihood, next to scikit-learn's EM: relative error",
    "torch_interpolation": "its gradient in width and ridge, by KernelSolve: relative error",
    "torch_lddmm": "its gradient: relative error",
    "torch_sinkhorn": "its gradient: relative error",
    "vi_vj_pm": "    reduction: Sum (axis=1)",
}
PROVES = {
    "genred_formulas": pytest.mark.parity("G-40", "G-41", "G-42", "G-43"),
    "interpolation": pytest.mark.parity("G-53", "L-199", "L-201"),
    "lazy_arrays": pytest.mark.parity("L-14", "L-42", "L-159", "Z-09"),
    "spectral": pytest.mark.parity("L-195", "L-196"),
    "vi_vj_pm": pytest.mark.parity("L-26", "L-32", "L-170", "L-183", "L-184"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=PROVES.get(name, ())) for name in SCRIPTS])
def test_runs(name: str, root: Path) -> None:
    command = [sys.executable, f"examples/{name}.py"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.strip()
    assert SAYS.get(name, "") in done.stdout


def test_the_lists_name_scripts_that_exist() -> None:
    assert {*SAYS, *PROVES} <= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_comparison_notices_one_wrong_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `check(what, found, truth, ...)` accepts what was found, and refuses it with an entry changed."""
    script = loaded(name)
    check, compared = script.check, []

    def twice(what: str, found: Any, truth: Any, *tolerance: float) -> None:
        check(what, found, truth, *tolerance)
        compared.append(what)
        for wrong in spoilt(found):
            with pytest.raises(SystemExit) as ended:
                check(what, wrong, truth, *tolerance)
            assert what in str(ended.value.code)

    monkeypatch.setattr(script, "check", twice)
    assert script.main() == 0
    assert compared


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_wrong_engine_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` does not end well where the first row of each result is wrong: what it compares comes from farsum."""
    engine = WrongEngine(farsum.target.embedded())
    monkeypatch.setattr(farsum.target, "engine", lambda: engine)
    with pytest.raises(SystemExit) as ended:
        loaded(name).main()
    assert isinstance(ended.value.code, str), "a script that ends early says why"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def spoilt(found: Any) -> list[Any]:
    """The same numbers with one of them far away, or none at all; and the same in another shape."""
    array = np.asarray(found)
    far = array.copy()
    far.flat[-1] = 3 + 2 * np.abs(array).max()
    wrong = [far, array[None]]
    if array.dtype.kind == "f":
        nan = array.copy()
        nan.flat[0] = np.nan
        wrong.append(nan)
    return wrong


class WrongEngine:
    """An engine whose results have a wrong first row: twice as large, or another index."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def prepare(self, spec: Spec | Program) -> WrongPrepared:
        return WrongPrepared(self.engine.prepare(spec))


class WrongPrepared:
    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared

    def run(self, arrays: Mapping[int, Any], options: Options = Options()) -> Result:
        result = self.prepared.run(arrays, options)
        return replace(result, values=tuple(map(self.wrong, result.values)))

    def again(self, arrays: Mapping[int, Any]) -> None:
        """It remembers nothing: all results come by `run`."""

    def wrong(self, values: Any) -> Any:
        values = values.copy()
        first = values[..., :1, :]
        first[...] = first == 0 if values.dtype.kind == "i" else 2 * first
        return values
