"""`KernelSolve` against numpy.linalg.solve; what cannot be solved is refused, and never loops."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from farsum.solve import KernelSolve
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
