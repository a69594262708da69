"""Block-sparse reductions: only the given intervals of columns for each block of rows."""

from __future__ import annotations

import numpy as np
import pytest

from farsum_kernels.errors import DtypeError, ShapeError
from farsum_kernels.formula.expr import I, J, node, variable
from farsum_kernels.formula.reductions import REDUCTIONS
from farsum_kernels.job import RANGES, Spec
from tests.evaluate import BACKENDS, close, run

M, N = 101, 83
Blocks = tuple[np.ndarray, ...]


def _ranges() -> Blocks:
    """Rows 0-10 see two intervals, 10-70 one, 70-75 none; rows 75 and on are in no block. And transposed."""
    rows, columns = np.array([[0, 10], [10, 70], [70, 75]]), np.array([[0, 5], [40, 83], [30, 62]])
    back = np.array([[0, 83]]), np.array([2]), np.array([[3, 9], [60, 101]])
    return rows, np.array([2, 3, 3]), columns, *back


def _arrays(ranges: Blocks) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(0)
    points = {0: rng.random((M, 3)), 1: rng.random((N, 3))}
    return points | {place: np.asarray(r, np.int64) for place, r in zip(RANGES, ranges, strict=True)}


def _spec(reduction: str, axis: int = 1) -> Spec:
    rule = REDUCTIONS[reduction]
    weight = node("Square", variable(1, 3, J)) if rule.weight == "required" else None
    return Spec(node("SqDist", variable(0, 3, I), variable(1, 3, J)), reduction, axis, "float64", weight,
                4 if rule.listed else 0)  # fmt: skip


@pytest.mark.parity("L-210", "L-211", "L-212", "R-40", "R-42")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("axis", [0, 1])
def test_backends_agree(reduction: str, axis: int) -> None:
    arrays, spec = _arrays(_ranges()), _spec(reduction, axis)
    for got, want in zip(run("cpu", spec, arrays), run("reference", spec, arrays), strict=True):
        close(got, want, "float64", factor=4)


@pytest.mark.parity("L-211", "L-213", "R-42")
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_against_a_mask(backend: str) -> None:
    arrays = _arrays(_ranges())
    d = ((arrays[0][:, None] - arrays[1][None]) ** 2).sum(-1)
    seen = np.zeros((M, N), bool)
    seen[:10, :5] = seen[:10, 40:83] = seen[10:70, 30:62] = True
    (total,) = run(backend, _spec("Sum"), arrays)
    np.testing.assert_allclose(total[:, 0], (d * seen).sum(1))
    low, place = run(backend, _spec("Min_ArgMin"), arrays)
    masked = np.where(seen, d, np.inf)
    np.testing.assert_allclose(low[:, 0], masked.min(1))
    np.testing.assert_array_equal(place[:, 0], masked.argmin(1))  # 0 where nothing is seen


@pytest.mark.parity("L-214", "L-215")
@pytest.mark.parametrize("backend", BACKENDS)
def test_overlapping_blocks_and_repeated_intervals(backend: str) -> None:
    rows, columns = np.array([[0, 60], [50, 101]]), np.array([[0, 10], [0, 10], [5, 6]])
    ranges = (rows, np.array([2, 3]), columns, np.zeros((0, 2)), np.zeros(0), np.zeros((0, 2)))
    arrays = _arrays(ranges)
    d = ((arrays[0][:, None] - arrays[1][None]) ** 2).sum(-1)
    (got,) = run(backend, _spec("Sum"), arrays)
    np.testing.assert_allclose(got[:50, 0], 2 * d[:50, :10].sum(1))  # with multiplicity
    np.testing.assert_allclose(got[50:, 0], d[50:, 5])  # the later block replaces


@pytest.mark.parity("X-11", "X-13")
@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, [[0, 102]], "ranges_i holds an interval"),
        (0, [[5, 4], [0, 1], [0, 1]], "ranges_i holds an interval"),
        (2, [[-1, 4]], "redranges_j holds an interval"),
        (2, [0, 4], r"redranges_j has shape \(2,\)"),
        (1, [3, 2, 3], "slices_i must rise"),
        (1, [1, 2, 4], "slices_i must rise"),
        (1, [1, 2], "ranges_i has 3 blocks"),
    ],
)
def test_ranges_are_checked_before_anything_runs(place: int, value: list, words: str) -> None:
    arrays = _arrays(_ranges())
    arrays[RANGES[place]] = np.array(value, np.int64)
    with pytest.raises(ShapeError, match=words):
        run("cpu", _spec("Sum"), arrays)


@pytest.mark.parity("X-11", "X-13", "L-217")
def test_incomplete_or_mistyped_ranges() -> None:
    arrays = _arrays(_ranges())
    with pytest.raises(ShapeError, match=r"six arrays.*missing: slices_j"):
        run("cpu", _spec("Sum"), {n: a for n, a in arrays.items() if n != RANGES[4]})
    with pytest.raises(DtypeError, match="ranges are int64"):
        run("cpu", _spec("Sum"), arrays | {RANGES[1]: np.array([1.0, 2.0, 3.0])})
    with pytest.raises(ShapeError, match="batch"):
        run("cpu", _spec("Sum"), arrays | {0: np.zeros((2, M, 3))})


def test_random_ranges_against_a_mask() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        edges = np.unique(np.r_[0, rng.integers(0, M + 1, 5), M])
        rows = np.stack([edges[:-1], edges[1:]], 1)
        counts = rng.integers(0, 4, len(rows))
        ends = np.sort(rng.integers(0, N + 1, (counts.sum(), 2)), axis=1)
        slices = np.cumsum(counts)
        empty = (np.zeros((0, 2)), np.zeros(0), np.zeros((0, 2)))
        arrays = _arrays((rows, slices, ends, *empty))
        times = np.zeros((M, N))
        for (a, b), stop, count in zip(rows, slices, counts, strict=True):
            for c, d in ends[stop - count : stop]:
                times[a:b, c:d] += 1
        d = ((arrays[0][:, None] - arrays[1][None]) ** 2).sum(-1)
        (got,) = run("cpu", _spec("Sum"), arrays)
        np.testing.assert_allclose(got[:, 0], (d * times).sum(1), rtol=1e-12)
