"""Two formulas become one: lifting, dimensions, what both sides must agree on, and the shortcuts of arithmetic."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from farsum.numpy import ComplexLazyTensor, LazyTensor, Vi, Vj
from farsum_kernels.errors import (
    AxisError,
    DimensionError,
    FormulaError,
    OperandError,
    ShapeError,
)

mark = pytest.mark
rng = np.random.default_rng(0)
x, y = rng.uniform(0.2, 0.9, (5, 3)), rng.uniform(0.2, 0.9, (7, 3))
w = rng.uniform(0.2, 0.9, (7, 2))
X, Y = x[:, None], y[None]
# Any: what the type checker refuses is tried here too.
x_i: Any = Vi(x)
y_j: Any = Vj(y)
w_j: Any = Vj(w)
D_ij: Any = x_i.sqdist(y_j)
reduced: Any = D_ij.sum(axis=1, call=False)
symbolic: Any = (Vi(0, 3) | y_j).sum(axis=1)
ends = np.array([1])
ranges = (np.array([[0, 5]]), ends, np.array([[0, 4]]), np.array([[0, 4]]), ends, np.array([[0, 5]]))


def same(lazy: Any, dense: np.ndarray) -> None:
    """The sums over j of a formula without y_j, and with it, agree."""
    assert_allclose((lazy + 0.0 * y_j[0]).sum(axis=1), np.broadcast_to(dense, (5, 7, dense.shape[-1])).sum(1))


# ── lifting ───────────────────────────────────────────────────────────────────────────────────────

LIFTED: list[tuple[Any, Any]] = [  # operand, and what it is in NumPy
    (2, 2.0), (2.5, 2.5), (np.int64(2), 2.0), (np.uint8(2), 2.0), (np.float16(2.5), 2.5), (np.float32(2.5), 2.5),
    (np.float64(2.5), 2.5), ([1.0, 2.0, 3.0], np.array([1.0, 2, 3])), ([2], 2.0), (np.array(2.5), 2.5),
    (np.array([1.0, 2, 3]), np.array([1.0, 2, 3])), (np.array([2.5]), 2.5), (X + 1, X + 1), (Y + 1, Y + 1),
    (x[None, :1], x[:1]),
]  # fmt: skip


@mark.parity("L-69", "L-91", "L-70", "X-52")
@mark.parametrize(("other", "dense"), LIFTED, ids=[f"{type(o).__name__}{np.shape(o)}" for o, _ in LIFTED])
def test_operands_are_lifted_on_both_sides(other: Any, dense: Any) -> None:
    same(x_i + other, X + dense)
    same(other + x_i, X + dense)
    same(x_i - other, X - dense)
    same(other - x_i, dense - X)
    same(x_i * other, X * dense)
    same(other * x_i, dense * X)
    same(x_i / other, X / dense)
    same(other / x_i, dense / X)
    same(x_i < other, (dense > X) * 1.0)
    same(x_i.atan2(other), np.arctan2(X, dense))


@mark.parity("L-69", "L-63")
def test_batches_are_lifted_too() -> None:
    b = rng.random((2, 5, 1, 3))
    got = (x_i * b - y_j).sum(axis=2)
    assert_allclose(got, (X * b - Y).sum(-2))


@mark.parity("L-69", "X-52")
@mark.parametrize(
    ("operand", "kind"),
    [(None, "None"), ("x", "str"), (True, "bool"), (np.False_, "bool"), ({1.0}, "set"), ({}, "dict"), ((1.0, 2.0, 3.0), "tuple"),
     (object(), "object"), (np.ones((1, 1)).view(np.matrix), "matrix")],
)  # fmt: skip
@mark.parametrize(
    "op",
    [
        lambda a: x_i + a, lambda a: x_i - a, lambda a: x_i * a, lambda a: x_i / a, lambda a: a + x_i, lambda a: a * x_i,
        lambda a: x_i == a, lambda a: x_i < a, lambda a: x_i | a, lambda a: x_i.sqdist(a), lambda a: x_i.clamp(a, 1),
    ],
    ids=["+", "-", "*", "/", "r+", "r*", "==", "<", "|", "sqdist", "clamp"],
)  # fmt: skip
def test_operands_that_mean_nothing(op: Callable[[Any], Any], operand: Any, kind: str) -> None:
    with pytest.raises(OperandError, match=kind) as caught:
        op(operand)
    assert isinstance(caught.value, TypeError)


@mark.parity("L-69", "E-01")
@mark.parametrize(
    "op", [lambda: x_i * y, lambda: y - x_i, lambda: x_i | y, lambda: x_i.sqdist(y), lambda: x_i == y]
)
def test_points_as_an_operand_need_their_axis(op: Callable[[], Any]) -> None:
    with pytest.raises(ShapeError, match=r"\(7, 3\).*Vj"):
        op()


# ── what both sides must agree on ─────────────────────────────────────────────────────────────────


@mark.parity("L-64")
@mark.parametrize(
    ("op", "name"),
    [
        (lambda: x_i + w_j, "Add"), (lambda: w_j - x_i, "Subtract"), (lambda: x_i * w_j, "Mult"), (lambda: x_i / w_j, "Divide"),
        (lambda: x_i * [1.0, 2.0], "Mult"), (lambda: x_i ** w_j, "exponent"), (lambda: x_i.atan2(w_j), "Atan2"), (lambda: x_i < w_j, "Less"),
        (lambda: x_i == w_j, "Equal"), (lambda: x_i.sqdist(w_j), "SqDist"), (lambda: x_i.clamp(w_j, 1.0), "Clamp"),
        (lambda: x_i.ifelse(w_j, 1.0), "IfElse"), (lambda: x_i.mod(w_j), "Mod"), (lambda: x_i | w_j, "scalar product"),
    ],
)  # fmt: skip
def test_dimensions_are_equal_or_one(op: Callable[[], Any], name: str) -> None:
    with pytest.raises(DimensionError, match=r"3.*2|2.*3") as caught:
        op()
    assert name in str(caught.value)


@mark.parity("L-64")
def test_scalars_stretch_over_vectors() -> None:
    s_i: Any = Vi(x[:, :1].copy())
    same(x_i * s_i, X * X[..., :1])
    same(s_i - y_j, X[..., :1] - Y)
    same(s_i.ifelse(x_i, 1.0), X)


@mark.parity("L-65")
def test_two_ranges_must_be_the_same() -> None:
    a, b, c = (Vi(x).sqdist(y_j) for _ in range(3))
    a.ranges, b.ranges = ranges, tuple(r.copy() for r in ranges)
    assert (a + b).ranges is not None and (a + c).ranges is not None and (c + a).ranges is not None
    b.ranges = (*ranges[:2], np.array([[0, 6]]), *ranges[3:])
    with pytest.raises(FormulaError, match="ranges"):
        a + b


@mark.parity("L-66")
def test_two_backends_must_be_the_same() -> None:
    a, b, c = (Vi(x).sqdist(y_j) for _ in range(3))
    a.backend = b.backend = "CPU"
    assert (a + b).backend == (a * c).backend == (c - a).backend == "CPU"
    b.backend = "auto"
    with pytest.raises(FormulaError, match=r"CPU.*auto"):
        a + b


@mark.parity("L-68", "E-20")
@mark.parametrize("done", [lambda: reduced, lambda: symbolic], ids=["call=False", "symbolic"])
@mark.parametrize(
    "op",
    [
        lambda r: x_i + r, lambda r: x_i * r, lambda r: r - x_i, lambda r: r * 2, lambda r: 2 * r, lambda r: r + 0, lambda r: r / 1,
        lambda r: -r, lambda r: abs(r), lambda r: r**2, lambda r: r | x_i, lambda r: r == x_i, lambda r: r < x_i, lambda r: x_i.sqdist(r),
        lambda r: r.exp(), lambda r: r.sqnorm2(), lambda r: r[0], lambda r: x_i.concat(r), lambda r: LazyTensor.concatenate((x_i, r)),
        lambda r: D_ij.logsumexp(axis=1, weight=r), lambda r: LazyTensor.concatenate((r, x_i)), lambda r: np.float64(2) * r,
        lambda r: x[:, None] + r,
    ],
)  # fmt: skip
def test_reduced_operands_are_refused(done: Callable[[], Any], op: Callable[[Any], Any]) -> None:
    with pytest.raises(FormulaError, match="reduced"):
        op(done())


# ── arithmetic ────────────────────────────────────────────────────────────────────────────────────


@mark.parity("L-82", "X-44")
@mark.parametrize("zero", [lambda: x_i * 0, lambda: 0 * x_i, lambda: x_i * 0.0, lambda: 0.0 * x_i, lambda: 0 / x_i,
                           lambda: x_i * np.float64(0), lambda: np.int64(0) * x_i])  # fmt: skip
def test_zero_times_a_formula_is_a_formula(zero: Callable[[], Any]) -> None:
    made = zero()
    assert isinstance(made, LazyTensor)
    assert (made.shape, made.dtype, made.ni) == ((5, 1, 3), "float64", 5)
    assert_array_equal(made.sum(axis=1), np.zeros((5, 3)))
    assert_array_equal((made.exp() * y_j).sum(axis=1), np.tile(y.sum(0), (5, 1)))


@mark.parity("L-82", "X-44")
def test_zero_times_both_sides_keeps_both_sides() -> None:
    made = (x_i - y_j) * 0
    assert made.shape == (5, 7, 3)
    assert_array_equal((made.sum(-1) + 1).sum(axis=1), np.full((5, 1), 7.0))
    assert_array_equal((made + 1).sum(axis=0), np.full((7, 3), 5.0))


@mark.parity("L-82", "L-80", "L-81", "L-83")
def test_neutral_numbers_leave_the_object_alone() -> None:
    for made in (
        x_i * 1,
        1 * x_i,
        x_i * 1.0,
        x_i + 0,
        0 + x_i,
        0.0 + x_i,
        x_i - 0,
        x_i / 1,
        x_i + np.float64(0),
    ):
        assert made is x_i
    total: Any = 0
    for term in (x_i, y_j):
        total += term
    assert_allclose(total.sum(axis=1), (X + Y).sum(1))
    assert sum([x_i, y_j]).formula == total.formula
    with pytest.raises(FormulaError, match=r"division|zero"):
        x_i / 0


@mark.parity("L-82", "L-85", "L-81")
def test_signs() -> None:
    for made in (-x_i, x_i * -1, -1 * x_i, 0 - x_i, x_i * -1.0):
        assert made.formula == "Minus(Var(0,3,0))"
        same(made, -X)
    same(abs(x_i - y_j), np.abs(X - Y))
    same((x_i - y_j).abs(), np.abs(X - Y))
    with pytest.raises(TypeError, match="unary"):
        operator.pos(x_i)


@mark.parity("L-82")
def test_zeros_in_an_array_are_not_special() -> None:
    made = x_i * np.zeros(3)
    assert made.formula == "(Var(0,3,0) * Var(1,3,2))"
    same(made, 0 * X)


@mark.parity("L-90", "L-232")
@mark.parametrize(
    ("lazy", "dense"),
    [
        (lambda: x_i + 1j, X + 1j), (lambda: 1j + x_i, X + 1j), (lambda: x_i - (2 + 1j), X - 2 - 1j), (lambda: (2 + 1j) - x_i, 2 + 1j - X),
        (lambda: x_i / 2j, X / 2j), (lambda: 2j / x_i, 2j / X), (lambda: x_i * (1 - 1j), X * (1 - 1j)),
        (lambda: np.complex128(1j) + x_i, X + 1j), (lambda: x_i + np.complex64(1j), X + 1j),
        (lambda: [1j, 2, 3] - x_i, np.array([1j, 2, 3]) - X),
        (lambda: x_i * [1j, 2, 3], X * np.array([1j, 2, 3])), (lambda: x_i * np.array([1j, 2, 3]), X * np.array([1j, 2, 3])),
    ],
)  # fmt: skip
def test_complex_numbers_make_a_real_formula_complex(lazy: Callable[[], Any], dense: np.ndarray) -> None:
    made = lazy()
    assert isinstance(made, ComplexLazyTensor) and made.dtype == "complex128"
    assert_allclose((made * y_j).sum(axis=1), (dense * Y).sum(1))


# ── methods without an operation of their own ─────────────────────────────────────────────────────


@mark.parity("L-132", "X-67")
def test_the_matrix_of_differences() -> None:
    got = x_i.difference_matrix(w_j)
    assert got.shape == (5, 7, 6)
    dense = X[..., :, None] - w[None, :, None, :]
    assert_allclose(got.sum(axis=1), dense.reshape(5, 7, 6).sum(1))
    assert_allclose((got * y_j[0]).sum(axis=0), (dense.reshape(5, 7, 6) * Y[..., :1]).sum(0))


@mark.parity("L-146", "L-147")
@mark.parametrize(
    "rewrite", [lambda f: f.factorize(y_j), lambda f: f.factorize(x_i), lambda f: f.auto_factorize()]
)
def test_factoring_keeps_the_value(rewrite: Callable[[Any], Any]) -> None:
    formula = (x_i * y_j + x_i * 2).exp() * y_j
    made = rewrite(formula)
    assert (made.shape, made.dtype) == (formula.shape, formula.dtype)
    dense = np.exp(X * Y + X * 2) * Y
    assert_allclose(made.sum(axis=1), dense.sum(1))
    assert_allclose(made.sum(axis=0), dense.sum(0))


@mark.parity("L-148")
@mark.parametrize("name", ["jacobian", "separate_kernels"])
def test_methods_that_do_not_exist(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(x_i, name)


# ── axes ──────────────────────────────────────────────────────────────────────────────────────────


@mark.parity("X-47", "L-150", "L-151")
@mark.parametrize(("lazy", "dense"), [
    (lambda: x_i - y_j, X - Y), (lambda: LazyTensor(np.stack([X, X + 1])) - y_j, np.stack([X, X + 1]) - Y),
])  # fmt: skip
def test_axes_count_from_the_end(lazy: Callable[[], Any], dense: np.ndarray) -> None:
    made = lazy()
    assert_allclose(made.sum(axis=-2), dense.sum(-2))
    assert_allclose(made.sum(axis=-3), dense.sum(-3))
    assert_allclose(made.sum(dim=-2), dense.sum(-2))
    assert_allclose(made.min_reduction(axis=-3), dense.min(-3))
    assert_allclose(made.sum(-1).sum(axis=-2)[..., 0], dense.sum((-1, -2)))
    assert_array_equal(made.sqnorm2().argmin(axis=-2)[..., 0], (dense**2).sum(-1).argmin(-1))
    assert_array_equal(made.sum(axis=np.int64(-2)), made.sum(axis=-2))
    assert isinstance(made.sum(axis=-1), LazyTensor)


@mark.parity("X-47", "E-21")
@mark.parametrize(("axis", "reduce"), [
    (-4, lambda a: (x_i - y_j).sum(axis=a)), (3, lambda a: (x_i - y_j).sum(axis=a)), (0, lambda a: LazyTensor(X[None]).sum(axis=a)),
    (-1, lambda a: (x_i - y_j).sum_reduction(axis=a)), (2, lambda a: D_ij.logsumexp(axis=a)), (-1, lambda a: D_ij.min_argmin(axis=a)),
])  # fmt: skip
def test_other_axes_are_refused(axis: int, reduce: Callable[[int], Any]) -> None:
    with pytest.raises(AxisError, match=r"over i.*over j"):
        reduce(axis)
