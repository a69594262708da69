"""The derivative of a reduction as numbers, against finite differences of the reduction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from farsum.numpy import LazyTensor, Pm, Vi, Vj
from farsum_kernels.errors import DtypeError, FormulaError, InputMissing, ShapeError

mark = pytest.mark
rng = np.random.default_rng(0)
x, y, p = rng.random((6, 2)), rng.random((9, 2)), rng.random(2) + 0.5
RANGES = tuple(map(np.array, ([[0, 3], [3, 6]], [1, 2], [[0, 5], [2, 9]], [[0, 2], [2, 5], [5, 9]], [1, 3, 4],
                              [[0, 3], [0, 3], [3, 6], [3, 6]])))  # fmt: skip


def pairs(x_: Any = x, y_: Any = y, p_: Any = p) -> tuple[Any, Any, Any]:
    return Vi(x_), Vj(y_), Pm(p_)


def distance(a: Any, b: Any, c: Any) -> Any:
    return ((a - b) * c).sqnorm2()


# fmt: off
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "sum": lambda a, b, c, **o: (-distance(a, b, c)).exp().sum(**o),
    "vectors": lambda a, b, c, **o: ((a - b) * c).exp().sum(**o),
    "logsumexp": lambda a, b, c, **o: distance(a, b, c).logsumexp(**o),
    "weighted logsumexp": lambda a, b, c, **o: distance(a, b, c).logsumexp(weight=(b * c).exp(), **o),
    "softmax": lambda a, b, c, **o: (-distance(a, b, c)).sumsoftmaxweight(b * a, **o),
    "min": lambda a, b, c, **o: distance(a, b, c).min(**o),
    "max": lambda a, b, c, **o: ((a - b) * c).max(**o),
    "Kmin": lambda a, b, c, **o: distance(a, b, c).Kmin(K=3, **o),
}
# fmt: on


def by_differences(
    value: Callable[..., np.ndarray], arrays: list[np.ndarray], n: int, e: np.ndarray
) -> np.ndarray:
    found, step = np.empty_like(arrays[n]), 1e-6
    for place in np.ndindex(*arrays[n].shape):
        losses = []
        for sign in (1, -1):
            moved = [a.copy() for a in arrays]
            moved[n][place] += sign * step
            losses.append((value(*moved) * e).sum())
        found[place] = (losses[0] - losses[1]) / (2 * step)
    return found


@mark.parametrize("name", REDUCTIONS)
@mark.parametrize("axis", [0, 1])
@mark.parametrize("n", [0, 1, 2], ids=["x", "y", "p"])
def test_every_reduction_in_every_array(name: str, axis: int, n: int) -> None:
    leaves = pairs()
    reduced = REDUCTIONS[name](*leaves, axis=axis, call=False)
    e = rng.normal(size=reduced().shape)
    want = by_differences(lambda *a: REDUCTIONS[name](*pairs(*a), axis=axis), [x, y, p], n, e)
    np.testing.assert_allclose(reduced.grad(leaves[n], e), want, rtol=1e-5, atol=1e-6 * np.abs(want).max())


@mark.parity("G-73", "L-216")
@mark.parametrize("n", [0, 1], ids=["x", "y"])
def test_with_ranges(n: int) -> None:
    leaves = pairs()
    reduced = REDUCTIONS["sum"](*leaves, axis=1, call=False, ranges=RANGES)
    e = rng.normal(size=(6, 1))
    want = by_differences(lambda *a: REDUCTIONS["sum"](*pairs(*a), axis=1, ranges=RANGES), [x, y, p], n, e)
    np.testing.assert_allclose(reduced.grad(leaves[n], e), want, rtol=1e-5, atol=1e-7)


@mark.parity("E-42", "G-80")
def test_through_a_spline() -> None:
    knots, at = np.arange(8.0), rng.uniform(2.2, 4.8, (5, 1))
    leaf = Vi(at)
    reduced = (Pm(knots).bspline(leaf, 2) * Vj(rng.random((4, 5)))).sum(axis=1, call=False)
    e = rng.normal(size=(5, 5))
    weights = reduced.variables[-1]
    want = by_differences(lambda a: (Pm(knots).bspline(Vi(a), 2) * Vj(weights)).sum(axis=1), [at], 0, e)
    np.testing.assert_allclose(reduced.grad(leaf, e), want, rtol=1e-5, atol=1e-8)


def test_a_batch_that_was_broadcast_is_summed() -> None:
    a, c = rng.random((3, 5, 1, 2)), rng.random((1, 1, 4, 2))
    leaf = LazyTensor(c)
    reduced = LazyTensor(a).sqdist(leaf).sum(axis=2, call=False)
    e = rng.normal(size=(3, 5, 1))
    want = (-2 * (a - c) * e[..., None]).sum((0, 1))
    np.testing.assert_allclose(reduced.grad(leaf, e), want[None])


def test_complex_arrays() -> None:
    z, w = (rng.normal(size=(n, 2)) + 1j * rng.normal(size=(n, 2)) for n in (4, 5))
    leaf: Any = Vi(z)
    reduced = (leaf * Vj(w)).sum(axis=1, call=False)
    e = rng.normal(size=(4, 2)) + 1j * rng.normal(size=(4, 2))
    np.testing.assert_allclose(reduced.grad(leaf, e), e * w.conj().sum(0))


@mark.parametrize(
    ("wrong", "error", "words"),
    [
        (lambda r, a, e: r.grad(Vi(x.copy()), e), InputMissing, "does not occur"),
        (lambda r, a, e: r.grad(a + 1, e), FormulaError, "one array"),
        (lambda r, a, e: r.grad(a, e[:2]), ShapeError, r"\(2, 1\); the result has shape \(6, 1\)"),
        (lambda r, a, e: r.grad(a, e.astype(int)), DtypeError, "int64"),
        (
            lambda r, a, e: distance(*pairs()).argmin(axis=1, call=False).grad(a, e),
            FormulaError,
            "gives indices",
        ),
        (lambda r, a, e: distance(Vi(0, 2), Vj(1, 2), 1.0).sum(axis=1).grad(a, e), FormulaError, "symbols"),
    ],
)
def test_mistakes(wrong: Callable[..., object], error: type[Exception], words: str) -> None:
    leaves = pairs()
    with pytest.raises(error, match=words):
        wrong(REDUCTIONS["sum"](*leaves, axis=1, call=False), leaves[0], rng.normal(size=(6, 1)))
