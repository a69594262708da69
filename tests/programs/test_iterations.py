"""The iterations against NumPy's dense algebra, driven by matrices; and as steps of programs, in process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from farsum.numpy import KernelSolve, Vi, Vj
from farsum_kernels.errors import FormulaError, OperandError, SolverDidNotConverge
from farsum_kernels.formula.expr import I, J, node, variable
from farsum_kernels.iterations.lanczos import eigenpairs
from farsum_kernels.iterations.minimal import minimal_residual
from farsum_kernels.iterations.request import Product, driven
from farsum_kernels.job import Spec
from farsum_kernels.program import Eigen, Program, Solve, Step, Value

rng = np.random.default_rng(0)


def symmetric(values: Any, seed: int = 0) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))
    return (q * values) @ q.T


def minres(A: np.ndarray, b: np.ndarray, eps: float = 1e-8, cap: int = 10_000, ridge: float = 0.0) -> Any:
    return driven(minimal_residual(b, b.size * eps**2, cap, ridge), lambda r: (A @ r.vector).astype(b.dtype))


def eigs(A: np.ndarray, count: int, which: str, tolerance: float = 1e-12, cap: int = 10_000) -> Any:
    start = np.random.default_rng(1).standard_normal((len(A), 1)).astype(A.dtype)
    return driven(eigenpairs(start, count, which, tolerance, cap), lambda r: A @ r.vector)


# ── MINRES ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype, atol", [("float64", 1e-6), ("float32", 1e-3)])
@pytest.mark.parametrize("columns", [1, 3])
def test_minres_solves_indefinite_systems(dtype: str, atol: float, columns: int) -> None:
    values = np.concatenate([np.linspace(-3, -1, 20), np.linspace(0.5, 4, 30)])
    A, b = symmetric(values), rng.standard_normal((50, columns))
    got = minres(A.astype(dtype), b.astype(dtype), 1e-8 if dtype == "float64" else 1e-5)
    assert got.dtype == dtype
    assert_allclose(got, np.linalg.solve(A, b), atol=atol)
    ridge = minres(A, b, ridge=0.3)
    assert_allclose(ridge, np.linalg.solve(A + 0.3 * np.eye(50), b), atol=1e-6)


def test_minres_of_what_is_exact_at_once() -> None:
    b = np.ones((4, 1))
    assert_array_equal(minres(np.eye(4), b), b)
    assert_array_equal(minres(np.eye(4), 0 * b), 0 * b)
    singular = np.diag([1.0, 2.0, 0.0, 3.0])
    in_range = np.array([[1.0], [1.0], [0.0], [1.0]])
    assert_allclose(singular @ minres(singular, in_range), in_range, atol=1e-10)


def test_minres_that_cannot_ends_with_its_story() -> None:
    singular = np.diag([1.0, 2.0, 0.0, 3.0])
    for A, b, cap, words in (
        (singular, np.ones((4, 1)), 100, "singular|does not solve"),
        (symmetric(np.linspace(-1, 1, 40)), np.ones((40, 1)), 3, "3 iterations are over"),
        (np.full((4, 4), np.nan), np.ones((4, 1)), 100, "not finite"),
        (np.eye(4), np.full((4, 1), np.inf), 100, "right-hand side holds numbers that are not finite"),
    ):
        with pytest.raises(SolverDidNotConverge, match=words) as raised:
            minres(A, b, cap=cap)
        assert raised.value.iterate.shape == b.shape and len(raised.value.residuals) >= 1
    falling = raised.value.residuals
    assert falling == sorted(falling, reverse=True)


# ── Lanczos ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
@pytest.mark.parametrize("n, count", [(200, 5), (60, 12), (15, 15), (3, 1), (1, 1)])
def test_eigenpairs_are_those_of_numpy(which: str, n: int, count: int) -> None:
    A = symmetric(np.sort(rng.standard_normal(n) * 3), seed=n)
    true = np.linalg.eigvalsh(A)
    wanted = {"LA": true[-count:], "SA": true[:count], "LM": np.sort(true[np.argsort(-abs(true))[:count]])}
    values, vectors = eigs(A, count, which)
    assert_allclose(values[:, 0], wanted[which], atol=1e-9)
    assert_allclose(A @ vectors, vectors * values[:, 0], atol=1e-8)
    assert_allclose(vectors.T @ vectors, np.eye(count), atol=1e-9)


def test_eigenpairs_of_multiples_of_one() -> None:
    """Every space is invariant: the iteration goes on in directions that it draws."""
    values, vectors = eigs(2 * np.eye(30), 4, "LA")
    assert_allclose(values[:, 0], 2.0)
    assert_allclose(vectors.T @ vectors, np.eye(4), atol=1e-12)


def test_eigenpairs_of_float32_are_as_exact_as_that() -> None:
    A = symmetric(np.linspace(0, 10, 80)).astype("float32")
    values, vectors = eigs(A, 3, "LA", 1e-6)
    assert values.dtype == vectors.dtype == np.float32
    assert_allclose(values[:, 0], np.linspace(0, 10, 80)[-3:], rtol=1e-5)


def test_eigenpairs_that_do_not_converge_end_with_their_story() -> None:
    A = symmetric(np.linspace(0, 1, 300))
    with pytest.raises(SolverDidNotConverge, match="100 products are over") as raised:
        eigs(A, 2, "LM", 1e-14, cap=100)
    _, vectors = raised.value.iterate
    assert vectors.shape == (300, 2) and len(raised.value.residuals) > 2
    with pytest.raises(SolverDidNotConverge, match="not finite"):
        eigs(np.full((9, 9), np.nan), 2, "LA")


def test_a_product_that_is_not_like_the_vector_is_refused() -> None:
    from farsum_kernels.errors import ShapeError

    def short(request: Product) -> np.ndarray:
        return request.vector[:2]

    for iteration in (
        minimal_residual(np.ones((3, 1)), 1e-12, 9),
        eigenpairs(np.ones((3, 1)), 1, "LA", 0, 9),
    ):
        with pytest.raises(ShapeError, match="the operator gives an array that has shape"):
            driven(iteration, short)


# ── as steps ──────────────────────────────────────────────────────────────────────────────────────

N = 300
x, b = rng.random((N, 3)), rng.standard_normal((N, 2))
GAUSS = "Exp(-SqDist(x,y)*IntCst(4))*b"
K = np.exp(-4 * ((x[:, None] - x) ** 2).sum(-1))
solve = KernelSolve(GAUSS, ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)"], "b", axis=1)


def test_methods_and_preconditioners_give_the_same_solution() -> None:
    exact = np.linalg.solve(K + 0.01 * np.eye(N), b)
    options: list[dict[str, Any]] = [{}, {"method": "minres"}, {"precond": True}, {"precond": 40}]
    for each in options:
        assert_allclose(solve(x, x, b, alpha=0.01, eps=1e-9, **each), exact, atol=1e-5)
    lazy = (-4 * Vi(x).sqdist(Vj(x))).exp()
    for each in options:
        assert_allclose(lazy.solve(b, alpha=0.01, eps=1e-9, **each), exact, atol=1e-5)


def test_a_preconditioner_takes_fewer_iterations() -> None:
    residuals = {}
    for rank in (0, 60):
        with pytest.raises(SolverDidNotConverge) as raised:
            solve(x, x, b, alpha=0.01, eps=1e-9, precond=rank, max_iterations=12)
        residuals[rank] = raised.value.residuals[-1]
    assert residuals[60] < residuals[0] / 100


def test_an_indefinite_sum_needs_minres() -> None:
    """K - 1 is symmetric and has eigenvalues of both signs."""
    exact = np.linalg.solve(K - 1.0 * np.eye(N), b)
    got = solve(x, x, b, alpha=-1.0, eps=1e-9, method="minres")
    assert_allclose(got, exact, atol=1e-4 * abs(exact).max())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"method": "lu"}, FormulaError, "'cg' or 'minres'"),
        ({"precond": -1}, FormulaError, "number of points"),
        ({"precond": N + 1, "alpha": 1.0}, FormulaError, f"1 to {N}"),
        ({"precond": 5, "alpha": 0}, FormulaError, "alpha > 0"),
        ({"precond": 5, "alpha": 1.0, "method": "minres"}, FormulaError, "needs cg"),
        ({"alpha": "much"}, OperandError, "alpha is a real number"),
    ],
)
def test_misuse(options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        solve(x, x, b, **options)


SUM = Spec(
    node(
        "Mult",
        node("Exp", node("Minus", node("SqDist", variable(0, 3, I), variable(1, 3, J)))),
        variable(2, 1, J),
    ),
    "Sum",
    1,
    "float64",
)
PLACES = ((0, "x"), (1, "x"), (2, "b"))


def one_step(method: Any, spec: Spec = SUM, columns: int = 1) -> Program:
    inputs = Value("x", "float64", (9, 3)), Value("b", "float64", (9, columns))
    outputs = ("a",) if isinstance(method, Solve) else ("w", "v")
    return Program(inputs, (Step(outputs, spec, PLACES, method),), outputs)


def test_methods_that_mean_nothing_are_refused() -> None:
    good = Solve(2, "cg", 0.1, 1e-6, 100)
    assert one_step(good).results[0].shape == (9, 1)
    for method, words in (
        (Solve(3, "cg", 0.1, 1e-6, 100), "the unknown, variable 3"),
        (Solve(0, "cg", 0.1, 1e-6, 100), "has shape|a system has"),
        (Solve(2, "lu", 0.1, 1e-6, 100), "one of cg, minres"),
        (Solve(2, "cg", float("nan"), 1e-6, 100), "alpha is a finite number"),
        (Solve(2, "cg", 0.1, float("nan"), 100), "the tolerance"),
        (Solve(2, "cg", 0.1, 1e-6, -1), "the cap"),
        (Solve(2, "cg", 0.1, 1e-6, 100, 10), "the rank of a preconditioner is 1 to 9"),
        (Eigen(2, 0, "LA", 1e-6, 100), "number of eigenvalues is 1 to 9"),
        (Eigen(2, 10, "LA", 1e-6, 100), "number of eigenvalues is 1 to 9"),
        (Eigen(2, 1, "BE", 1e-6, 100), "one of LA, SA, LM"),
    ):
        with pytest.raises(ValueError, match=words):
            one_step(method)
    extremum = Spec(node("SqDist", variable(0, 3, I), variable(1, 3, J)), "Min", 1, "float64")
    with pytest.raises(FormulaError, match=r"one sum|takes the arguments"):
        one_step(good, extremum)
