"""Extrema whose places are found last: ties, NaN, infinities, spans that end inside a strip."""

from __future__ import annotations

import numpy as np
import pytest

from farsum_kernels.backends.cpu.kernel import Kernel
from farsum_kernels.backends.cpu.lazy import LazyState
from farsum_kernels.backends.cpu.native import machine
from farsum_kernels.formula.expr import I, J, node, variable
from farsum_kernels.job import RANGES, Part, Spec
from tests.evaluate import run

PLACED = ["ArgMin", "ArgMax", "Min_ArgMin", "Max_ArgMax"]
x, y = variable(0, 2, I), variable(1, 2, J)
D = node("SqDist", x, y)


def _as_defined(spec: Spec, arrays: dict[int, np.ndarray]) -> None:
    for got, want in zip(run("cpu", spec, arrays), run("reference", spec, arrays), strict=True):
        np.testing.assert_array_equal(got, want)


def _grid(m: int, n: int, dtype: str, seed: int = 0) -> dict[int, np.ndarray]:
    """Whole numbers: distances are exact, and most of them occur often."""
    rng = np.random.default_rng(seed)
    return {0: rng.integers(0, 8, (m, 2)).astype(dtype), 1: rng.integers(0, 8, (n, 2)).astype(dtype)}


def test_this_is_the_way_a_nearest_neighbour_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[LazyState] = []
    leave = LazyState.leave

    def seen(self: LazyState, state: list[str]) -> None:
        made.append(self)
        leave(self, state)

    monkeypatch.setattr(LazyState, "leave", seen)
    Kernel(Spec(D, "ArgMin", 1, "float32"), machine())
    Kernel(Spec(node("Subtract", x, y), "ArgMin", 1, "float32"), machine())
    assert len(made) == 1, "of a scalar, not of two components at once"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 7, 15, 16, 17, 33, 250, 100_003])
@pytest.mark.parametrize("reduction", PLACED)
def test_equal_values_go_to_the_smallest_index(reduction: str, n: int, dtype: str) -> None:
    _as_defined(Spec(D, reduction, 1, dtype), _grid(61 if n < 1000 else 3, n, dtype))


@pytest.mark.parametrize("reduction", PLACED)
def test_terms_that_are_none(reduction: str) -> None:
    arrays = _grid(50, 70, "float64")
    arrays[1][3], arrays[1][20:24], arrays[1][40] = np.nan, np.inf, -np.inf
    arrays[0][5], arrays[0][6] = np.nan, np.inf
    _as_defined(Spec(D, reduction, 1, "float64"), arrays)
    arrays[1][:] = np.nan
    _as_defined(Spec(D, reduction, 1, "float64"), arrays)
    arrays[1][1:] = np.inf
    _as_defined(Spec(D, reduction, 1, "float64"), arrays)
    _as_defined(Spec(node("Minus", D), reduction, 1, "float64"), arrays)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("reduction", PLACED)
def test_better_values_past_the_end_of_a_span_do_not_count(reduction: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, n = 90, 400
    arrays = _grid(m, n, "float64", seed)
    starts = np.arange(0, m, 30)
    begins = np.sort(rng.choice(n - 20, (3, 4), replace=False), axis=1)
    intervals = np.stack([begins, begins + rng.integers(1, 20, (3, 4))], axis=-1).reshape(-1, 2)
    blocks = np.stack([starts, starts + 30], axis=1), np.array([4, 8, 12]), intervals
    nothing = np.zeros((0, 2), np.int64), np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
    ranges = dict(zip(RANGES, (*blocks, *nothing), strict=True))
    _as_defined(Spec(D, reduction, 1, "float64"), arrays | ranges)


def test_beside_other_reductions_and_in_batches() -> None:
    rng = np.random.default_rng(0)
    arrays = {0: rng.normal(size=(2, 41, 2)), 1: rng.normal(size=(2, 333, 2))}
    also = (Part(D, "ArgMax"), Part(D, "Min"), Part(node("Mult", D, D), "ArgKMin", k=3))
    for got, want in zip(
        run("cpu", Spec(D, "ArgMin", 1, "float64", None, 0, also), arrays),
        run("reference", Spec(D, "ArgMin", 1, "float64", None, 0, also), arrays),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-13)


def test_values_of_a_column_that_are_computed_once() -> None:
    # |y|² is packed before the pair loop, and read from there again when places are looked for.
    f = node("Add", node("SqNorm2", y), node("Scalprod", x, y))
    arrays = _grid(50, 120, "float64")
    for reduction in PLACED:
        _as_defined(Spec(f, reduction, 1, "float64"), arrays)
        _as_defined(Spec(f, reduction, 0, "float64"), arrays)
