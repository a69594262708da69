"""Eigenvalues of a lazy matrix against NumPy's dense ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from farsum.numpy import Vi, Vj
from farsum_kernels.errors import DeadlineExceeded, FormulaError, ShapeError, SolverDidNotConverge

rng = np.random.default_rng(0)
x = rng.random((250, 2))


def kernel(points: Any) -> Any:
    return (-8 * Vi(points).sqdist(Vj(points))).exp()


TRUE = np.linalg.eigvalsh(kernel(x).dense())


@pytest.mark.parametrize("dtype, rtol", [("float64", 1e-9), ("float32", 1e-5)])
@pytest.mark.parametrize("which", ["LM", "LA"])
def test_the_largest(dtype: str, rtol: float, which: str) -> None:
    K = kernel(x.astype(dtype))
    values, vectors = K.eigsh(5, which)
    assert values.dtype == vectors.dtype == dtype and vectors.shape == (250, 5)
    assert_allclose(values, TRUE[-5:], rtol=rtol)
    assert_allclose(K @ vectors, vectors * values, atol=rtol * TRUE[-1])


def test_the_smallest_of_a_shifted_matrix() -> None:
    values, _ = (1.0 - kernel(x)).eigsh(2, "SA")
    assert_allclose(values, np.linalg.eigvalsh(1.0 - kernel(x).dense())[:2], rtol=1e-9)


def test_the_same_seed_gives_the_same() -> None:
    for first, again in zip(kernel(x).eigsh(3), kernel(x).eigsh(3), strict=True):
        assert_array_equal(first, again)


def test_what_does_not_converge_says_how_far_it_came() -> None:
    with pytest.raises(SolverDidNotConverge, match="5 products are over") as raised:
        kernel(x).eigsh(3, max_products=5)
    values, vectors = raised.value.iterate
    assert values.shape == (3, 1) and vectors.shape == (250, 3)
    with pytest.raises(SolverDidNotConverge, match="not finite"):
        kernel(np.full((20, 2), np.nan)).eigsh(2)
    with pytest.raises(DeadlineExceeded):
        kernel(x).eigsh(3, deadline_s=0.0)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: kernel(x).eigsh(0), FormulaError, "from 1 to 250 here"),
        (lambda: kernel(x).eigsh(251), FormulaError, "from 1 to 250 here"),
        (lambda: kernel(x).eigsh(True), FormulaError, "number of eigenvalues"),
        (lambda: kernel(x).eigsh(2, "LX"), FormulaError, "which is one of LA, SA, LM"),
        (lambda: kernel(x).eigsh(2, tol=-1), FormulaError, "tol is a number"),
        (lambda: kernel(x).eigsh(2, max_products=0), FormulaError, "max_products"),
        (lambda: Vi(x).sqdist(Vj(x[:9])).eigsh(2), ShapeError, "250 and 9"),
        (lambda: (Vi(x) - Vj(x)).eigsh(2), ShapeError, "real scalar matrix"),
        (lambda: Vi(0, 2).sqdist(Vj(1, 2)).eigsh(2), FormulaError, "symbolic"),
    ],
)
def test_misuse(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
