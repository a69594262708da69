"""Solvers for an operator of one's own against numpy.linalg.solve; what cannot be solved is refused, and never loops."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from farsum.solve import ConjugateGradientSolver, KernelLinearSolver, conjugate_gradient
from farsum_kernels import errors
from farsum_kernels.errors import (
    DtypeError,
    FormulaError,
    ShapeError,
    SolverDidNotConverge,
)

mark = pytest.mark
rng = np.random.default_rng(0)
N = 40
x, b = rng.random((N, 3)), rng.standard_normal((N, 2))
ALPHA = 0.1


def gauss(u: np.ndarray, v: np.ndarray, g: float = 2.0) -> np.ndarray:
    return np.exp(-g * ((u[..., :, None, :] - v[..., None, :, :]) ** 2).sum(-1))


K = gauss(x, x)
EXACT = np.linalg.solve(ALPHA * np.eye(N) + K, b)


def definite(n: int, kind: Any = np.float64) -> np.ndarray:
    """A symmetric (Hermitian) positive definite matrix."""
    m = rng.standard_normal((n, n)) + (1j * rng.standard_normal((n, n)) if np.dtype(kind).kind == "c" else 0)
    return (m @ m.conj().T / n + np.eye(n)).astype(kind)


# ── conjugate gradients ───────────────────────────────────────────────────────────────────────────

# Measured once with the pykeops of parity.md: products taken and the second column, for each eps.
LINE = np.arange(8.0)
ROUGH = np.exp(-np.abs(LINE[:, None] - LINE) / 4) + 0.5 * np.eye(8)
PYKEOPS = {
    1e-6: (7, [-0.97549932, -0.23826023, 0.11761134, 0.34840379, 0.57617444, 0.91972906, 1.62214336, 3.31165118]),
    1e-3: (5, [-0.9750079, -0.23864228, 0.11729052, 0.34840115, 0.57706637, 0.91882456, 1.62232512, 3.31177568]),
    1e-1: (3, [-0.907068, -0.24097068, 0.11164237, 0.31171454, 0.51684593, 0.9084387, 1.72181331, 3.28236361]),
    0.5: (2, [-0.87248483, -0.46938084, -0.08695481, 0.30763108, 0.74797863, 1.27056464, 1.91703267, 2.7368093]),
}  # fmt: skip


@mark.parity("L-204", "G-55", "G-65")
@mark.parametrize("eps", PYKEOPS)
def test_every_iterate_is_that_of_pykeops(eps: float) -> None:
    products = 0

    def linop(v: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        return ROUGH @ v

    got = ConjugateGradientSolver("numpy", linop, np.stack([np.ones(8), LINE], 1), eps)
    assert products == PYKEOPS[eps][0]
    assert_allclose(got[:, 1], PYKEOPS[eps][1], atol=1e-7)


@mark.parity("L-204")
@mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@mark.parametrize("shape", [(12,), (12, 3), (2, 3, 12, 1)])
def test_the_solution_is_that_of_numpy(dtype: str, shape: tuple[int, ...]) -> None:
    A = definite(12, dtype)
    rhs = rng.standard_normal(shape).astype(dtype)
    got = conjugate_gradient(lambda v: np.matmul(A, v), rhs)
    want = np.linalg.solve(A, rhs) if len(shape) == 1 else np.linalg.solve(A[(None,) * (len(shape) - 2)], rhs)
    assert (got.shape, got.dtype) == (shape, np.dtype(dtype))
    assert_allclose(got, want, atol=1e-4)


@mark.parity("L-204", "G-55")
def test_the_stopping_rule_counts_every_entry() -> None:
    A, rhs = definite(30), rng.standard_normal((30, 4))
    got = conjugate_gradient(lambda v: A @ v, rhs, eps=1e-3)
    assert 1e-12 < np.square(A @ got - rhs).sum() < rhs.size * 1e-6
    assert not np.square(A @ got - rhs).sum() < 1e-6  # the rule without the size would go on


@mark.parity("L-204", "G-55")
def test_a_right_hand_side_of_zeros_takes_no_product() -> None:
    def never(v: np.ndarray) -> np.ndarray:
        raise AssertionError("a product was taken")

    for zero in (np.zeros((5, 2), np.float32), np.zeros((0, 1))):
        got = conjugate_gradient(never, zero)
        assert_array_equal(got, zero)
        assert got.dtype == zero.dtype and got is not zero


def test_a_start_is_gone_on_from() -> None:
    A, rhs = definite(30), rng.standard_normal(30)
    near = np.linalg.solve(A, rhs) + 1e-9
    assert_array_equal(conjugate_gradient(lambda v: A @ v, rhs, start=near), near)
    assert_allclose(conjugate_gradient(lambda v: A @ v, rhs, start=rng.random(30)), near, atol=1e-5)


def test_neither_the_right_hand_side_nor_the_start_changes() -> None:
    A, rhs, start = definite(6), np.ones(6), np.ones(6)
    conjugate_gradient(lambda v: A @ v, rhs, start=start)
    assert_array_equal(rhs, np.ones(6))
    assert_array_equal(start, np.ones(6))


def test_float32_solves_what_its_scalars_could_not_hold() -> None:
    # ‖b‖² = 1e41 is infinite in float32.
    rhs = np.full(10, 1e20, np.float32)
    got = conjugate_gradient(lambda v: np.float32(3) * v, rhs)
    assert_allclose(got, rhs / 3, rtol=1e-6)


def test_integers_are_numbers() -> None:
    assert_array_equal(conjugate_gradient(lambda v: 2 * v, np.array([2, 4])), [1.0, 2.0])


@mark.parity("L-204", "X-19")
def test_the_cap_is_an_error_that_carries_how_far_it_came() -> None:
    A, rhs = definite(50), rng.standard_normal(50)
    with pytest.raises(SolverDidNotConverge, match="3 iterations are over") as caught:
        conjugate_gradient(lambda v: A @ v, rhs, max_iterations=3)
    error = caught.value
    assert isinstance(error, ArithmeticError)
    assert len(error.residuals) == 4
    assert_allclose(error.residuals[0], np.linalg.norm(rhs))
    assert_allclose(error.residuals[-1], np.linalg.norm(rhs - A @ error.iterate))
    # It can be gone on from, in the same process or in another.
    again = pickle.loads(pickle.dumps(error))
    assert_allclose(
        conjugate_gradient(lambda v: A @ v, rhs, start=again.iterate), np.linalg.solve(A, rhs), atol=1e-5
    )
    bare = errors.error_named("SolverDidNotConverge", "some words")
    assert isinstance(bare, SolverDidNotConverge)
    assert bare.iterate is None and bare.residuals == ()


@mark.parity("X-19")
@mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_numbers_that_are_not_finite_stop_at_once(bad: float, dtype: str) -> None:
    rhs = np.ones(4, dtype)
    with pytest.raises(SolverDidNotConverge, match="operator gives numbers that are not finite") as caught:
        conjugate_gradient(lambda v: v * v.dtype.type(bad), rhs)
    assert len(caught.value.residuals) == 1
    rhs[2] = bad
    with pytest.raises(SolverDidNotConverge, match="right-hand side holds"):
        conjugate_gradient(lambda v: v, rhs)


@mark.parity("X-19")
def test_a_residual_that_stagnates_is_an_error_before_the_cap() -> None:
    # Nine decades of eigenvalues: float32 rounds the last two away.
    spread = np.logspace(0, 9, 200, dtype=np.float32)
    turned = np.linalg.qr(rng.standard_normal((200, 200)))[0]
    A = ((turned * spread) @ turned.T).astype(np.float32)
    with pytest.raises(SolverDidNotConverge, match="has not fallen below") as caught:
        conjugate_gradient(lambda v: A @ v, np.ones(200, np.float32))
    assert len(caught.value.residuals) < 10_000
    assert np.isfinite(caught.value.iterate).all()


@mark.parity("X-19")
def test_a_long_plateau_is_no_stagnation() -> None:
    # Six decades: the residual rises and stays up for hundreds of iterations, and then falls.
    spread, rhs = np.logspace(0, 6, 200), rng.standard_normal(200)
    assert_allclose(conjugate_gradient(lambda v: spread * v, rhs, eps=1e-8), rhs / spread, atol=1e-6)


@mark.parity("X-19")
@mark.parametrize("seed", range(5))
def test_an_indefinite_operator_is_solved_or_refused(seed: int) -> None:
    draw = np.random.default_rng(seed)
    A = draw.standard_normal((30, 30))
    A, rhs = A + A.T, draw.standard_normal(30)
    try:
        got = conjugate_gradient(lambda v: A @ v, rhs)
    except SolverDidNotConverge as error:
        assert "not positive definite" in str(error)
    else:
        assert_allclose(A @ got, rhs, atol=1e-4)


def test_operators_that_are_not_definite() -> None:
    assert_allclose(conjugate_gradient(lambda v: -2 * v, np.ones(3)), -0.5)
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    with pytest.raises(SolverDidNotConverge, match=r"p·linop\(p\) = 0"):
        conjugate_gradient(lambda v: turn @ v, np.ones(2))
    skew = np.array([[1.0, -5.0], [5.0, 1.0]])
    with pytest.raises(SolverDidNotConverge):
        conjugate_gradient(lambda v: skew @ v, np.ones(2))
    with pytest.raises(SolverDidNotConverge, match="= 0"):
        conjugate_gradient(lambda v: 0 * v, np.ones(2))


@mark.parametrize(
    ("error", "call"),
    [
        (ShapeError, lambda: conjugate_gradient(lambda v: v[:2], np.ones(3))),
        (DtypeError, lambda: conjugate_gradient(lambda v: v * 1j, np.ones(3))),
        (DtypeError, lambda: conjugate_gradient(lambda v: v, np.ones(3, bool))),
        (DtypeError, lambda: conjugate_gradient(lambda v: v, np.array(["a"]))),
        (ShapeError, lambda: conjugate_gradient(lambda v: v, np.ones(3), start=np.ones(4))),
        (DtypeError, lambda: conjugate_gradient(lambda v: v, np.ones(3), start=np.ones(3) * 1j)),
        (FormulaError, lambda: conjugate_gradient(lambda v: v, np.ones(3), eps=0)),
        (FormulaError, lambda: conjugate_gradient(lambda v: v, np.ones(3), eps=-1e-6)),
        (FormulaError, lambda: conjugate_gradient(lambda v: v, np.ones(3), eps=np.nan)),
        (FormulaError, lambda: conjugate_gradient(lambda v: v, np.ones(3), max_iterations=-1)),
        (FormulaError, lambda: conjugate_gradient(lambda v: v, np.ones(3), max_iterations=2.5)),  # type: ignore[arg-type]
    ],
)
def test_misuse_of_conjugate_gradients(error: type[Exception], call: Any) -> None:
    with pytest.raises(error):
        call()


# ── the solvers below it ──────────────────────────────────────────────────────────────────────────


@mark.parity("G-65", "G-67")
@mark.parametrize("binding", ["jax", "", None])
def test_another_binding_is_refused_by_name(binding: Any) -> None:
    with pytest.raises(FormulaError, match="'numpy'"):
        ConjugateGradientSolver(binding, lambda v: v, b)
    with pytest.raises(FormulaError, match="'numpy'"):
        KernelLinearSolver(binding, ("gaussian", 3, 2, 0.7), x, b)


def dense(u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
    return gauss(u, v, 2.0).astype(w.real.dtype) @ w


@mark.parity("G-66")
@mark.parametrize("precond", [False, True])
@mark.parametrize("kernel", [dense, ("gaussian", 3, 2, 0.5**0.5)])
@mark.parametrize(("dtype", "tolerance"), [("float64", 1e-4), ("float32", 1e-3)])
def test_a_kernel_as_a_function_or_by_name(kernel: Any, precond: bool, dtype: str, tolerance: float) -> None:
    arrays = x.astype(dtype), b.astype(dtype)
    got = KernelLinearSolver("numpy", kernel, *arrays, alpha=ALPHA, eps=tolerance / 100, precond=precond)
    assert got.dtype == dtype
    assert_allclose(got, EXACT, atol=tolerance)


@mark.parity("G-66")
def test_the_preconditioner_saves_products_and_has_its_own_stopping_rule() -> None:
    many, rhs = rng.random((400, 2)), rng.standard_normal((400, 1))
    products = {False: 0, True: 0}
    for precond in products:

        def counted(u: np.ndarray, v: np.ndarray, w: np.ndarray, precond: bool = precond) -> np.ndarray:
            products[precond] += len(u) == len(v) == 400
            return gauss(u, v, 4.0) @ w

        got = KernelLinearSolver("numpy", counted, many, rhs, alpha=1e-3, eps=1e-4, precond=precond)
        left = np.square(gauss(many, many, 4.0) @ got + 1e-3 * got - rhs).sum()
        assert left < 1e-8 * (1 if precond else rhs.size) * 1.01
    assert products[True] < products[False] / 3


@mark.parity("G-66")
def test_the_kernel_of_pairs_is_used_when_given() -> None:
    seen = []

    def pairs(u: np.ndarray, v: np.ndarray, points: np.ndarray) -> np.ndarray:
        seen.append((u.shape, v.shape, points.shape))
        return np.exp(-2.0 * ((u - v) ** 2).sum(-1))

    got = KernelLinearSolver("numpy", dense, x, b, alpha=ALPHA, precond=True, precondKernel=pairs)
    assert seen == [((36, 3), (36, 3), (N, 3))]
    assert_allclose(got, EXACT, atol=1e-4)


def test_the_draw_of_the_preconditioner_repeats() -> None:
    def solved(seed: Any) -> np.ndarray:
        return KernelLinearSolver("numpy", dense, x, b, alpha=ALPHA, precond=True, seed=seed)

    assert_array_equal(solved(3), solved(3))
    assert_array_equal(solved(3), solved(np.random.default_rng(3)))
    assert (solved(3) != solved(4)).any()


@mark.parity("G-66")
def test_without_alpha_there_is_no_ridge() -> None:
    t, rhs = np.arange(12.0)[:, None], rng.standard_normal((12, 1))
    matrix = np.exp(-((t - t.T) ** 2))
    got = KernelLinearSolver("numpy", ("gaussian", 1, 1, 1.0), t, rhs, eps=1e-12)
    assert_allclose(got, np.linalg.solve(matrix, rhs), atol=1e-10)
    with pytest.raises(FormulaError, match="alpha > 0"):
        KernelLinearSolver("numpy", ("gaussian", 1, 1, 1.0), t, rhs, precond=True)


@mark.parametrize(
    ("error", "kernel", "points", "rhs", "options"),
    [
        (FormulaError, ("laplacian", 3, 2, 1.0), x, b, {}),
        (FormulaError, ("gaussian", 3, 2), x, b, {}),
        (FormulaError, ("gaussian", 3, 2, -1.0), x, b, {}),
        (ShapeError, ("gaussian", 2, 2, 1.0), x, b, {}),
        (ShapeError, dense, x[:-1], b, {}),
        (ShapeError, dense, x, b[:, 0], {}),
        (SolverDidNotConverge, dense, x, np.full_like(b, np.nan), {}),
        (SolverDidNotConverge, dense, np.full_like(x, np.nan), b, {"alpha": 1.0, "precond": True}),
    ],
)
def test_misuse_of_the_kernel_solver(
    error: type[Exception], kernel: Any, points: Any, rhs: Any, options: Any
) -> None:
    with pytest.raises(error):
        KernelLinearSolver("numpy", kernel, points, rhs, **options)


def test_a_preconditioner_of_zeros_is_not_built() -> None:
    zero = np.zeros((N, 2))
    assert_array_equal(KernelLinearSolver("numpy", dense, x, zero, alpha=1.0, precond=True), zero)
