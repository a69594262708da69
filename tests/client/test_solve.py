"""Linear systems against numpy.linalg.solve; what cannot be solved is refused, and never loops."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from farsum.solve import ConjugateGradientSolver, KernelLinearSolver, KernelSolve, conjugate_gradient
from farsum_kernels import errors
from farsum_kernels.errors import (
    AxisError,
    DeadlineExceeded,
    DeviceMissing,
    DimensionError,
    DtypeError,
    FormulaError,
    OperandError,
    ShapeError,
    SolverDidNotConverge,
    UnknownOperation,
)

mark = pytest.mark
rng = np.random.default_rng(0)
N = 40
x, b = rng.random((N, 3)), rng.standard_normal((N, 2))
p = np.array([2.0])
GAUSS = "Exp(-p*SqDist(x,y))*b"
ALIASES = ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)", "p = Pm(1)"]
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


# ── KernelSolve ───────────────────────────────────────────────────────────────────────────────────


@mark.parity("G-53", "G-54", "G-50")
@mark.parametrize(("dtype", "tolerance"), [("float64", 1e-4), ("float32", 2e-4)])
@mark.parametrize("axis", [0, 1])
def test_a_solves_the_ridge_system(axis: int, dtype: str, tolerance: float) -> None:
    aliases = ALIASES if axis == 1 else ["x = Vj(3)", "y = Vi(3)", "b = Vi(2)", "p = Pm(1)"]
    arrays = [a.astype(dtype) for a in (x, x, b, p)]
    got = KernelSolve(GAUSS, aliases, "b", axis=axis)(*arrays, alpha=ALPHA)
    assert got.dtype == dtype
    assert_allclose(got, EXACT, atol=tolerance)


@mark.parity("G-50")
def test_the_default_axis_sums_over_i() -> None:
    symmetric = KernelSolve("Exp(-SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vi(2)"], "b")
    want = np.linalg.solve(gauss(x, x, 1.0) + ALPHA * np.eye(N), b)
    assert_allclose(symmetric(x, x, b, alpha=ALPHA), want, atol=1e-4)
    assert symmetric.axis == 0


@mark.parity("G-50", "X-63")
def test_the_order_of_the_options() -> None:
    order = list(inspect.signature(KernelSolve).parameters)
    assert order == [
        *("formula", "aliases", "varinvalias", "axis", "dtype", "opt_arg", "dtype_acc", "use_double_acc"),
        *("sum_scheme", "enable_chunks", "rec_multVar_highdim", "use_fast_math"),
    ]
    # The order of pykeops.torch, dtype_acc after axis, is not mistaken for this one.
    with pytest.raises(DtypeError):
        KernelSolve(GAUSS, ALIASES, "b", 1, "auto")
    by_name = KernelSolve(
        formula=GAUSS, use_fast_math=False, sum_scheme="kahan_scheme", aliases=ALIASES, varinvalias="b", axis=1,
        dtype="float64", enable_chunks=False, dtype_acc="auto", opt_arg=None, rec_multVar_highdim=1,
    )  # fmt: skip
    assert_allclose(by_name(x, x, b, p, alpha=ALPHA), EXACT, atol=1e-4)


@mark.parity("G-51")
def test_alpha_and_eps_go_by_name() -> None:
    solve: Any = KernelSolve(GAUSS, ALIASES, "b", axis=1)
    with pytest.raises((TypeError, ShapeError)):
        solve(x, x, b, p, ALPHA, 1e-6)
    defaults = {k: v.default for k, v in inspect.signature(solve).parameters.items()}
    wanted = {"backend": "auto", "device_id": -1, "alpha": 1e-10, "eps": 1e-6, "ranges": None}
    assert defaults.items() >= wanted.items()
    assert_allclose(solve(x, x, b, p, backend="CPU", device_id=0, alpha=ALPHA, eps=1e-10), EXACT, atol=1e-9)
    with pytest.raises(DeviceMissing):
        solve(x, x, b, p, backend="GPU")


@mark.parity("G-51", "G-56")
def test_the_default_alpha_is_there_but_hardly() -> None:
    # Rows apart from each other: the matrix is the unit matrix, and 1e-10 shows in the tenth digit.
    far = 100.0 * np.arange(6.0)[:, None] * np.ones(3)
    solve = KernelSolve(GAUSS, ALIASES, "b", axis=1)
    rhs = rng.standard_normal((6, 2))
    tilted = solve(far, far, rhs, p, eps=1e-14)
    assert_allclose((rhs - tilted) / rhs, 1e-10, rtol=1e-4)


@mark.parity("G-56")
@mark.parametrize("nothing", [None, 0, 0.0, False, np.float64(0), np.array(0.0)])
def test_a_falsy_alpha_is_no_ridge(nothing: Any) -> None:
    # Exp(-|x - y|) on a line is well conditioned without one.
    t, rhs = np.arange(12.0)[:, None], rng.standard_normal((12, 1))
    solve = KernelSolve("Exp(-Norm2(x-y))*b", ["x = Vi(1)", "y = Vj(1)", "b = Vj(1)"], "b", axis=1)
    got = solve(t, t, rhs, alpha=nothing, eps=1e-12)
    assert_allclose(got, np.linalg.solve(np.exp(-np.abs(t - t.T)), rhs), atol=1e-10)


@mark.parity("G-52")
@mark.parametrize("name", ["b", " b ", "Var(2,2,1)", "Var(2, 2, 1)"])
def test_the_unknown_goes_by_name_or_by_place(name: str) -> None:
    assert_allclose(KernelSolve(GAUSS, ALIASES, name, axis=1)(x, x, b, p, alpha=ALPHA), EXACT, atol=1e-4)


@mark.parity("G-52")
def test_an_unknown_that_is_written_inline() -> None:
    solve = KernelSolve("Exp(-SqDist(x,y))*Var(2,2,1)", ["x = Vi(3)", "y = Vj(3)"], "Var(2,2,1)", axis=1)
    want = np.linalg.solve(gauss(x, x, 1.0) + ALPHA * np.eye(N), b)
    assert_allclose(solve(x, x, b, alpha=ALPHA), want, atol=1e-4)


@mark.parity("G-52")
@mark.parametrize("name", ["c", "Var(2,2,0)", "Var(7,2,1)", "Var(2,3,1)", ""])
def test_a_name_that_is_not_there_is_refused_at_construction(name: str) -> None:
    with pytest.raises(FormulaError, match="x, y, b, p"):
        KernelSolve(GAUSS, ALIASES, name, axis=1)


@mark.parity("G-53")
def test_the_right_hand_side_stands_where_the_unknown_does() -> None:
    first = KernelSolve("Exp(-SqDist(x,y))*b", ["b = Vj(0,2)", "x = Vi(1,3)", "y = Vj(2,3)"], "b", axis=1)
    want = np.linalg.solve(gauss(x, x, 1.0) + ALPHA * np.eye(N), b)
    assert_allclose(first(b, x, x, alpha=ALPHA), want, atol=1e-4)


@mark.parity("G-53")
def test_two_unknowns_per_point_that_mix() -> None:
    # k(x,y)·(A b) with a symmetric 2×2 matrix: the Kronecker product of both.
    A = np.array([[2.0, 0.5], [0.5, 1.0]])
    solve = KernelSolve("Exp(-SqDist(x,y))*MatVecMult(A,b)", [*ALIASES[:3], "A = Pm(4)"], "b", axis=1)
    whole = np.kron(gauss(x, x, 1.0), A) + ALPHA * np.eye(2 * N)
    got = solve(x, x, b, A.ravel(), alpha=ALPHA)
    assert_allclose(got, np.linalg.solve(whole, b.ravel()).reshape(N, 2), atol=1e-4)


@mark.parity("G-53")
def test_rows_i_and_rows_j_are_as_many() -> None:
    solve = KernelSolve(GAUSS, ALIASES, "b", axis=1)
    with pytest.raises(ShapeError, match=r"right-hand side b has 40 rows.*gives 39.*same points"):
        solve(x[:-1], x, b, p, alpha=ALPHA)
    with pytest.raises(ShapeError, match="gives 39"):
        solve(x[:-1], x, 0 * b, p)  # zeros are no excuse
    mirrored = KernelSolve(GAUSS, ["x = Vi(3)", "y = Vj(3)", "b = Vi(2)", "p = Pm(1)"], "b", axis=0)
    with pytest.raises(ShapeError, match=r"right-hand side b has 39 rows.*over i gives 40"):
        mirrored(x[:-1], x, b[:-1], p)


def test_an_argument_that_the_formula_does_not_use_still_counts() -> None:
    solve = KernelSolve(
        "Exp(-SqDist(y,z))*b", ["x = Vi(1)", "y = Vi(3)", "z = Vj(3)", "b = Vj(2)"], "b", axis=1
    )
    want = np.linalg.solve(gauss(x, x, 1.0) + ALPHA * np.eye(N), b)
    assert_allclose(solve(x[:, :1], x, x, b, alpha=ALPHA), want, atol=1e-4)
    with pytest.raises(ShapeError, match="rows along i"):
        solve(x[:-1, :1], x, x, 0 * b)


@mark.parity("G-57")
@mark.parametrize("count", [0, 3, 5])
def test_the_number_of_arguments(count: int) -> None:
    solve = KernelSolve(GAUSS, ALIASES, "b", axis=1)
    with pytest.raises(ShapeError, match=rf"4 arguments \(x, y, b, p\), received {count}"):
        solve(*[x, x, b, p, p][:count])


@mark.parity("G-58", "X-12")
@mark.parametrize("which", [0, 1, 2])
def test_the_layout_in_memory_is_of_no_consequence(which: int) -> None:
    solve = KernelSolve(GAUSS, ALIASES, "b", axis=1)
    arrays = [x, x, b, p]
    for strange in (
        np.asfortranarray(arrays[which]),
        np.repeat(np.repeat(arrays[which], 2, 0), 3, 1)[::2, ::3],
        arrays[which][::-1].copy()[::-1],
    ):
        assert not strange.flags.c_contiguous
        given = [*arrays[:which], strange, *arrays[which + 1 :]]
        before = strange.copy()
        assert_allclose(solve(*given, alpha=ALPHA), EXACT, atol=1e-4)
        assert_array_equal(strange, before)


@mark.parity("G-59")
def test_batches_are_solved_side_by_side() -> None:
    X, B = rng.random((2, 3, 15, 3)), rng.standard_normal((2, 3, 15, 2))
    solve = KernelSolve(GAUSS, ALIASES, "b", axis=1)
    want = np.linalg.solve(gauss(X, X) + ALPHA * np.eye(15), B)
    assert_allclose(solve(X, X, B, np.broadcast_to(p, (2, 3, 1)), alpha=ALPHA), want, atol=1e-4)
    # A right-hand side without batch axes belongs to every system; parameters may differ between them.
    widths = np.array([[1.0], [2.0], [4.0]])
    got = solve(x, x, b, widths, alpha=ALPHA)
    assert got.shape == (3, N, 2)
    for k, g in enumerate(widths[:, 0]):
        assert_allclose(got[k], np.linalg.solve(gauss(x, x, g) + ALPHA * np.eye(N), b), atol=1e-4)


@mark.parity("G-55", "G-59")
def test_one_stopping_rule_for_all_of_a_batch() -> None:
    X = rng.random((2, 15, 3))
    B = np.stack([rng.standard_normal((15, 2)), 1e-5 * rng.standard_normal((15, 2))])
    got = KernelSolve(GAUSS, ALIASES, "b", axis=1)(X, X, B, p[None], alpha=ALPHA, eps=1e-3)
    left = (gauss(X, X) + ALPHA * np.eye(15)) @ got - B
    assert np.square(left).sum() < B.size * 1e-6
    assert got[1].any()  # alone it would have stopped at zeros


@mark.parity("G-55")
def test_zeros_give_zeros() -> None:
    got = KernelSolve(GAUSS, ALIASES, "b", axis=1)(x, x, np.zeros_like(b), p)
    assert_array_equal(got, np.zeros((N, 2)))


@mark.parity("X-19")
@mark.parametrize("which", [0, 2, 3])
def test_nan_in_the_data_is_an_error(which: int) -> None:
    arrays = [a.copy() for a in (x, x, b, p)]
    arrays[which].flat[0] = np.nan
    with pytest.raises(SolverDidNotConverge, match="not finite") as caught:
        KernelSolve(GAUSS, ALIASES, "b", axis=1)(*arrays, alpha=ALPHA)
    assert caught.value.iterate.shape == b.shape


@mark.parity("X-19")
def test_the_cap_reaches_the_iteration() -> None:
    with pytest.raises(SolverDidNotConverge, match="2 iterations are over") as caught:
        KernelSolve(GAUSS, ALIASES, "b", axis=1)(x, x, b, p, alpha=ALPHA, max_iterations=2)
    left = b - (K + ALPHA * np.eye(N)) @ caught.value.iterate
    assert_allclose(np.linalg.norm(left), caught.value.residuals[-1])


def test_a_singular_system_in_float32_is_no_endless_loop() -> None:
    near = (x[:1] + 1e-3 * rng.random((N, 3))).astype(np.float32)
    with pytest.raises(SolverDidNotConverge):
        KernelSolve(GAUSS, ALIASES, "b", axis=1)(near, near, b.astype(np.float32), p.astype(np.float32))


def test_a_deadline_is_for_the_whole_solve() -> None:
    solve = KernelSolve(GAUSS, ALIASES, "b", axis=1)
    with pytest.raises(DeadlineExceeded):
        solve(x, x, b, p, alpha=ALPHA, deadline_s=0.0)
    near, many = x[:1] + 1e-5 * rng.random((2000, 3)), rng.standard_normal((2000, 2))
    with pytest.raises(DeadlineExceeded):
        solve(near, near, many, p, alpha=1e-14, eps=1e-13, max_iterations=10**9, deadline_s=0.1)
    assert_allclose(solve(x, x, b, p, alpha=ALPHA, deadline_s=60.0), EXACT, atol=1e-4)


def test_blocks_are_systems_of_their_own() -> None:
    cut = 15
    blocks = np.array([[0, cut], [cut, N]])
    half = (blocks, np.array([1, 2]), blocks)
    got = KernelSolve(GAUSS, ALIASES, "b", axis=1)(x, x, b, p, alpha=ALPHA, ranges=(*half, *half))
    for part in (slice(0, cut), slice(cut, N)):
        whole = K[part, part] + ALPHA * np.eye(part.stop - part.start)
        assert_allclose(got[part], np.linalg.solve(whole, b[part]), atol=1e-4)


def test_complex_right_hand_sides_are_solved_as_pairs() -> None:
    rhs = rng.standard_normal((N, 1)) + 1j * rng.standard_normal((N, 1))
    got = KernelSolve(GAUSS, ALIASES, "b", axis=1)(x, x, rhs, p, alpha=ALPHA)
    assert got.shape == (N, 1) and got.dtype == np.complex128
    assert_allclose(got, np.linalg.solve(K + ALPHA * np.eye(N), rhs), atol=1e-4)


def test_arrays_of_two_dtypes_are_promoted() -> None:
    got = KernelSolve(GAUSS, ALIASES, "b", axis=1)(x, x, b.astype(np.float32), p, alpha=ALPHA, eps=1e-12)
    assert got.dtype == np.float64
    want = np.linalg.solve(K + ALPHA * np.eye(N), b.astype(np.float32).astype(np.float64))
    assert_allclose(got, want, atol=1e-10)


def test_accuracy_options_reach_the_sums() -> None:
    narrow = [a.astype(np.float32) for a in (x, x, b, p)]
    got = KernelSolve(GAUSS, ALIASES, "b", axis=1, use_double_acc=True)(*narrow, alpha=ALPHA)
    assert got.dtype == np.float32
    assert_allclose(got, EXACT, atol=1e-4)


@mark.parametrize(
    "formula",
    ["Exp(-SqDist(x,y))*Square(b)", "SqDist(x,y)*b+1", "Norm2(b)*b", "x*y", "IfElse(b,b,2*b)", "Exp(b)"],
)
def test_a_formula_that_is_not_linear_is_refused_at_construction(formula: str) -> None:
    with pytest.raises(FormulaError, match=r"is not linear in b") as caught:
        KernelSolve(formula, ["x = Vi(2)", "y = Vj(2)", "b = Vj(2)"], "b", axis=1)
    assert repr(formula) in str(caught.value)


@mark.parametrize(
    "formula",
    ["b", "(x|y)*b", "b/(1+SqDist(x,y))", "IfElse((x|y),b,-b)", "x*(y|b)", "Grad(Exp(-SqDist(x,y)),x,(y|b))",
     "ComplexMult(ComplexExp1j(Elem(x-y,0)),b)", "Concat(Elem(b,1),Elem(b,0))"],
)  # fmt: skip
def test_linear_formulas_of_many_kinds_are_taken(formula: str) -> None:
    KernelSolve(formula, ["x = Vi(2)", "y = Vj(2)", "b = Vj(2)"], "b", axis=1)


@mark.parametrize(
    ("error", "make"),
    [
        (UnknownOperation, lambda: KernelSolve("Foo(x)*b", ["x = Vi(1)", "b = Vj(1)"], "b")),
        (AxisError, lambda: KernelSolve(GAUSS, ALIASES, "b", axis=2)),
        (FormulaError, lambda: KernelSolve(GAUSS, ALIASES, "b", opt_arg=3)),
        (FormulaError, lambda: KernelSolve(GAUSS, ALIASES, "b", sum_scheme="foo")),
        (DtypeError, lambda: KernelSolve(GAUSS, ALIASES, "b", dtype="int32")),
        (OperandError, lambda: KernelSolve(GAUSS, ALIASES, 2)),  # type: ignore[arg-type]
        (FormulaError, lambda: KernelSolve("x*b", ["x = Vi(1)", "b = Pm(1)"], "b")),
        (DimensionError, lambda: KernelSolve("Sum(x*b)", ["x = Vi(2)", "b = Vj(2)"], "b")),
    ],
)
def test_misuse_at_construction(error: type[Exception], make: Any) -> None:
    with pytest.raises(error):
        make()


@mark.parametrize(
    ("error", "arrays", "options"),
    [
        (ShapeError, (x, x[:, :2], b, p), {}),
        (ShapeError, (x, x[:-1], b, p), {}),
        (ShapeError, (x, x, b[:, 0], p), {}),
        (ShapeError, (x[None, :, :].repeat(2, 0), x, b[None].repeat(3, 0), p), {}),
        (DtypeError, (x, x, b.astype(int), p), {}),
        (OperandError, (x, x, b.tolist(), p), {}),
        (OperandError, (x, x, b, p), {"alpha": "much"}),
        (OperandError, (x, x, b, p), {"alpha": 1j}),
        (OperandError, (x, x, b, p), {"alpha": np.ones((N, 1))}),
        (FormulaError, (x, x, b, p), {"eps": 0.0}),
        (ShapeError, (x, x, b, p), {"ranges": (np.zeros((1, 2), int),)}),
        (TypeError, (x, x, b, p), {"out": b}),
        (TypeError, (x, x, b, p), {"foo": 1}),
    ],
)
def test_misuse_at_the_call(error: type[Exception], arrays: Any, options: Any) -> None:
    with pytest.raises(error):
        KernelSolve(GAUSS, ALIASES, "b", axis=1)(*arrays, **options)


def test_a_dtype_that_was_asked_for_is_required() -> None:
    solve = KernelSolve(GAUSS, ALIASES, "b", axis=1, dtype=np.float64)
    assert_allclose(solve(x, x, b, p, alpha=ALPHA), EXACT, atol=1e-4)
    with pytest.raises(DtypeError, match="b has dtype float32"):
        solve(x, x, b.astype(np.float32), p)


def test_aliases_of_the_caller_stay_and_the_solver_travels() -> None:
    aliases = ALIASES[:2]
    solve = KernelSolve("Exp(-SqDist(x,y))*Var(2,2,1)", aliases, "Var(2,2,1)", axis=1)
    assert aliases == ALIASES[:2]
    want = solve(x, x, b, alpha=ALPHA)
    for again in (copy.deepcopy(solve), pickle.loads(pickle.dumps(solve))):
        assert_array_equal(again(x, x, b, alpha=ALPHA), want)
        assert repr(again) == repr(solve)
    assert repr(solve).startswith("KernelSolve('Exp(-SqDist(x,y))*Var(2,2,1)'")


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
