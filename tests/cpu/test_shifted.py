"""Sums of exp(x)·g whose m rises late: terms that rise without end, infinities, NaN, weights of any size."""

from __future__ import annotations

import numpy as np
import pytest

from farsum_kernels.backends.cpu.kernel import Kernel
from farsum_kernels.backends.cpu.native import machine
from farsum_kernels.backends.cpu.shifted import ROOM, ShiftedState
from farsum_kernels.formula.expr import I, J, node, variable
from farsum_kernels.job import Part, Spec
from tests.evaluate import run

x, y, b = variable(0, 1, I), variable(1, 1, J), variable(2, 2, J)
F = node("Add", x, y)
SPANS = {"float32": np.log(ROOM["float"]), "float64": np.log(ROOM["double"])}
TOLERANCES = {"float32": (3e-6, 1e-6), "float64": (3e-13, 1e-13)}
SPECS = {
    "LogSumExp": (F, None),
    "LogSumExpWeight": (F, b),
    "SumSoftMaxWeight": (F, b),
    "Max_SumShiftExp": (F, None),
}


def _close(reduction: str, arrays: dict[int, np.ndarray], dtype: str) -> None:
    formula, weight = SPECS[reduction]
    spec = Spec(formula, reduction, 1, dtype, weight)
    arrays = {n: a.astype(dtype) for n, a in arrays.items() if weight is not None or n < 2}
    (got,), (want,) = run("cpu", spec, arrays), run("reference", spec, arrays)
    rtol, atol = TOLERANCES[dtype]
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def _arrays(rising: np.ndarray) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(0)
    return {0: rng.standard_normal((70, 1)), 1: rising[:, None], 2: 1 + rng.random((len(rising), 2))}


def test_this_is_the_way_sums_of_exponentials_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    strips: list[ShiftedState] = []
    end_strip = ShiftedState.end_strip

    def seen(self: ShiftedState, *args: object) -> object:
        strips.append(self)
        return end_strip(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(ShiftedState, "end_strip", seen)
    for reduction, (formula, weight) in SPECS.items():
        made = len(strips)
        Kernel(Spec(formula, reduction, 1, "float32", weight), machine())
        assert (len(strips) > made) == (reduction != "Max_SumShiftExp"), "there m itself is asked for"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reduction", SPECS)
@pytest.mark.parametrize("step", [0.3, 0.98, 1.02, 3.0])
def test_terms_that_rise_from_strip_to_strip(reduction: str, step: float, dtype: str) -> None:
    # Steps of a share of the room: m rises at every strip, at every other, at every third.
    rising = SPANS[dtype] * step * (np.arange(300) // 16) + 0.01 * np.arange(300)
    _close(reduction, _arrays(rising), dtype)
    _close(reduction, _arrays(rising[::-1].copy()), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reduction", ["LogSumExp", "LogSumExpWeight", "SumSoftMaxWeight"])
def test_terms_that_are_infinite_or_none(reduction: str, dtype: str) -> None:
    terms = np.linspace(-3, 3, 200)
    for bad in (-np.inf, np.inf, np.nan):
        for place in (0, 15, 16, 100, 199):
            terms_here = terms.copy()
            terms_here[place] = bad
            _close(reduction, _arrays(terms_here), dtype)
    masked = np.full(200, -np.inf)
    masked[[70, 150]] = -2.0, 2.0
    _close(reduction, _arrays(masked), dtype)


@pytest.mark.parametrize("size", [1e-30, 1e25, 1e33])
def test_weights_of_any_size(size: float) -> None:
    arrays = _arrays(np.linspace(0, 60, 250))
    arrays[2] *= size
    _close("LogSumExpWeight", arrays, "float32")
    _close("SumSoftMaxWeight", arrays, "float32")


def test_beside_other_reductions_of_the_same_pairs() -> None:
    arrays = {n: a.astype(np.float32) for n, a in _arrays(np.linspace(0, 400, 250)).items()}
    also = (
        Part(F, "Sum"),
        Part(F, "ArgMin"),
        Part(F, "SoftMax", b),
        Part(F, "Max_SumShiftExp"),
        Part(F, "KMin", k=3),
    )
    spec = Spec(F, "LogSumExp", 1, "float32", also=also)
    for got, want in zip(run("cpu", spec, arrays), run("reference", spec, arrays), strict=True):
        np.testing.assert_allclose(got, want, rtol=3e-6)
