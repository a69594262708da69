"""Values that were measured once on the original, in float64: the language keeps their meaning."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from farsum_kernels.formula.text import parse
from farsum_kernels.job import Spec
from tests.evaluate import BACKENDS, run

mark = pytest.mark

A, b, c = np.arange(1.0, 7.0), np.array([10.0, 100.0]), np.array([1.0, 10.0, 100.0])
ALIASES = ["A = Vi(6)", "b = Vi(2)", "c = Vi(3)"]


def row(backend: str, formula: str) -> np.ndarray:
    """The formula at A, b and c: one row of i, summed over a j that nothing depends on."""
    root = parse(formula, ALIASES).root
    spec = Spec(root, "Sum", 1, "float64")
    (got,) = run(backend, spec, {n: v[None] for n, v in enumerate((A, b, c)) if n in spec.inputs})
    assert got.shape == (1, root.dim)
    return got[0]


def one_hot(k: int) -> list[int]:
    return [int(n == k) for n in range(4)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("formula", "want"),
    [
        pytest.param("MatVecMult(A,b)", [210, 430, 650], marks=mark.parity("GV-01", "O-90")),
        pytest.param("MatVecMult(A,c)", [321, 654], marks=mark.parity("GV-02", "O-90")),
        pytest.param("VecMatMult(b,A)", [410, 520, 630], marks=mark.parity("GV-03", "O-91")),
        pytest.param("VecMatMult(c,A)", [531, 642], marks=mark.parity("GV-04", "O-91")),
        pytest.param("TensorProd(b,c)", [10, 100, 1000, 100, 1000, 10000], marks=mark.parity("GV-05", "O-92")),
        pytest.param("TensorProd(c,b)", [10, 100, 100, 1000, 1000, 10000], marks=mark.parity("GV-06", "O-92")),
        pytest.param("TensorDot(A,b,[3,2],[2],[1],[0])", [210, 430, 650], marks=mark.parity("GV-07", "O-93")),
        pytest.param("TensorDot(A,c,[3,2],[3],[0],[0])", [531, 642], marks=mark.parity("GV-08", "O-93")),
        pytest.param("TensorDot(b,c,[2],[3],[],[],[1,0])", [10, 100, 100, 1000, 1000, 10000], marks=mark.parity("GV-09", "O-93")),
        pytest.param("TensorDot(A,A,[2,3],[2,3],[0,1],[0,1])", [91], marks=mark.parity("GV-10", "O-93")),
        pytest.param("TensorDot(A,A,[2,3],[2,3],[1],[1])", [14, 32, 32, 77], marks=mark.parity("GV-11", "O-93")),
        pytest.param("TensorDot(A,A,[2,3],[3,2],[1],[0],[1,0])", [22, 49, 28, 64], marks=mark.parity("GV-12", "O-93")),
        pytest.param("Kron(A,b,[2,3],[1,2])", [10, 100, 20, 200, 30, 300, 40, 400, 50, 500, 60, 600], marks=mark.parity("GV-13", "O-94")),
        pytest.param("OneHot(IntInv(2),4)", one_hot(1), marks=mark.parity("GV-14", "O-69")),
        pytest.param("OneHot(-IntInv(2),4)", one_hot(0), marks=mark.parity("GV-14", "O-69")),
        pytest.param("OneHot(RatCst(5,2),4)", one_hot(3), marks=mark.parity("GV-14", "O-69")),
        pytest.param("ElemT(Elem(A,1),4,2)", [0, 0, 2, 0], marks=mark.parity("GV-15", "O-65")),
        pytest.param("Extract(A,1,3)", [2, 3, 4], marks=mark.parity("GV-16", "O-66")),
        pytest.param("ExtractT(b,1,4)", [0, 10, 100, 0], marks=mark.parity("GV-16", "O-67")),
        pytest.param("ArgMax(Concat(b,b))", [1], marks=mark.parity("GV-17", "O-63")),
        pytest.param("ArgMin(Concat(c,c))", [0], marks=mark.parity("GV-17", "O-63")),
        pytest.param("WeightedSqNorm(IntCst(2),c)", [20202], marks=mark.parity("GV-18", "O-83")),
        pytest.param("WeightedSqNorm(c,c)", [1001001], marks=mark.parity("GV-18", "O-83")),
        pytest.param("WeightedSqNorm(TensorProd(c,c),c)", [102030201], marks=mark.parity("GV-18", "O-83")),
        pytest.param("SqNormIso(c,c)", [10101, 101010, 1010100], marks=mark.parity("GV-19", "O-80")),
        pytest.param("Scalprod(c,IntCst(2))", [222], marks=mark.parity("GV-20", "O-75")),
        pytest.param("SqDist(c,IntCst(1))", [9882], marks=mark.parity("GV-20", "O-79")),
        pytest.param("Mod(c,IntCst(7),IntCst(1))", [1, 3, 2], marks=mark.parity("GV-21", "O-52")),
        pytest.param("Divergence(c,c)", [3], marks=mark.parity("GV-22", "O-106")),
        pytest.param("Divergence(c*c,c)", [222], marks=mark.parity("GV-22", "O-106")),
        pytest.param("Laplacian(SqNorm2(c),c)", [6], marks=mark.parity("GV-22", "O-107")),
        pytest.param("GradMatrix(c*c,c)", [2, 0, 0, 0, 20, 0, 0, 0, 200], marks=mark.parity("GV-23", "O-105")),
        pytest.param("Diff(SqNorm2(c),c,c)", [20202], marks=mark.parity("GV-24", "O-103")),
        pytest.param("Grad(SqNorm2(c),c,IntCst(1))", [2, 20, 200], marks=mark.parity("GV-24", "O-100")),
        # The original gives 0.3333333432674408, a third in float32.
        pytest.param("RatCst(1,3)", [1 / 3], marks=mark.parity("GV-25", "X-01", "X-04")),
        pytest.param("c/3", [1 / 3, 10 / 3, 100 / 3], marks=mark.parity("X-01")),
    ],
)  # fmt: skip
def test_formulas(backend: str, formula: str, want: list[float]) -> None:
    got = row(backend, formula)
    if all(isinstance(v, int) for v in want):
        assert_array_equal(got, want)
    else:
        assert_allclose(got, want, rtol=2e-16, atol=0)


ROWS = np.array([[3.0, 1.0, 2.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
WEIGHTS = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])


def over_rows(backend: str, reduction: str, weight: str | None = None, k: int = 0) -> list[np.ndarray]:
    """A reduction over j of two rows of four terms each, which a one-hot column picks out."""
    parsed = parse("r|e", ["r = Vi(4)", "e = Vj(4)", "w = Vj(2)"], weight)
    spec = Spec(parsed.root, reduction, 1, "float64", parsed.weight, k)
    arrays = {0: ROWS, 1: np.eye(4), 2: WEIGHTS}
    return list(run(backend, spec, {n: a for n, a in arrays.items() if n in spec.inputs}))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("reduction", "weight", "k", "want"),
    [
        pytest.param("ArgMin", None, 0, [[[1], [0]]], marks=mark.parity("GV-26", "R-32")),
        pytest.param("ArgMax", None, 0, [[[0], [0]]], marks=mark.parity("GV-26", "R-32")),
        pytest.param("LogSumExp", None, 0, [[[3.4938117090722387], [6.386294361119891]]], marks=mark.parity("GV-27", "R-08")),
        pytest.param(
            "KMin_ArgKMin", None, 6,
            [[[1, 1, 2, 3, np.inf, np.inf], [5, 5, 5, 5, np.inf, np.inf]], [[1, 3, 2, 0, 0, 0], [0, 1, 2, 3, 0, 0]]],
            marks=mark.parity("GV-28", "R-07", "R-34"),
        ),
        pytest.param("SumSoftMaxWeight", "w", 0, [[[2.5588172583455067, 3.5588172583455067], [4, 5]]], marks=mark.parity("GV-29", "R-11")),
    ],
)  # fmt: skip
def test_reductions(backend: str, reduction: str, weight: str | None, k: int, want: list) -> None:
    got = over_rows(backend, reduction, weight, k)
    assert len(got) == len(want)
    for values, expected in zip(got, want, strict=True):
        assert_allclose(values, expected, rtol=4e-16, atol=0)


def at_points(
    backend: str, formula: str, aliases: list[str], arrays: list[np.ndarray], dtype: str
) -> np.ndarray:
    spec = Spec(parse(formula, aliases).root, "Sum", 1, dtype)
    (got,) = run(backend, spec, {n: np.asarray(a, dtype) for n, a in enumerate(arrays)})
    return got


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("knots", "x", "want"),
    [
        pytest.param(
            [0, 1, 2, 3, 4], [0.5, 1, 1.5, 2.5],
            [(0.125, 0), (0.5, 0), (0.75, 0.125), (0.125, 0.75)],
            marks=mark.parity("GV-30", "O-95", "X-24"),
        ),
        pytest.param(
            [0, 0, 0, 1, 2, 2, 2], [0, 0.5, 1, 1.5, 2.5],
            [(1, 0, 0, 0), (0.25, 0.625, 0.125, 0), (0, 0.5, 0.5, 0), (0, 0.125, 0.625, 0.25), (0, 0, 0, 0)],
            marks=mark.parity("GV-31", "O-95", "X-24"),
        ),
    ],
)  # fmt: skip
def test_b_splines(backend: str, dtype: str, knots: list, x: list, want: list) -> None:
    aliases = [f"t = Pm({len(knots)})", "x = Vi(1)"]
    got = at_points(backend, "BSpline(t,x,2)", aliases, [np.array(knots), np.array(x)[:, None]], dtype)
    assert_allclose(got, want, rtol=1e-6 if dtype == "float32" else 1e-15, atol=0)


@mark.parity("GV-32", "O-96", "X-23")
@pytest.mark.parametrize("backend", BACKENDS)
def test_soft_dynamic_time_warping(backend: str) -> None:
    aliases = ["x = Vi(2)", "y = Vj(2)", "gamma = Pm(1)"]
    arrays = [np.array([[0.2, 0.9]]), np.array([[0.5, 0.1]]), np.array([0.1])]
    got = at_points(backend, "SoftDTW_SqDist(x,y,gamma)", aliases, arrays, "float64")
    assert_allclose(got, [[0.655486]], atol=5e-7)
