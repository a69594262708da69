"""Each operation of vectors, norms and matrices: its values, cotangents, special points, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from farsum_kernels.errors import FormulaError
from farsum_kernels.formula.expr import I, J, constant, node, variable
from farsum_kernels.job import Spec
from tests.evaluate import BACKENDS, run
from tests.parity.rows import at, check_all, dense_rows, joined, rows, same, sq, total

case, mark = pytest.param, pytest.mark
inf, nan = np.inf, np.nan
both = mark.parametrize("backend", BACKENDS)


def _first(x: np.ndarray, place: np.ndarray) -> np.ndarray:
    return (np.arange(x.shape[-1]) == place[:, None]) * 1.0


def _embedded(x: np.ndarray, start: int, length: int) -> np.ndarray:
    return np.pad(x, ((0, 0), (start, length - start - x.shape[-1])))


def _mv(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("rnp,rp->rn", a.reshape(len(a), -1, b.shape[-1]), b)


def _vm(b: np.ndarray, a: np.ndarray) -> np.ndarray:
    return np.einsum("rn,rnp->rp", b, a.reshape(len(a), b.shape[-1], -1))


def _outer(f: np.ndarray, g: np.ndarray) -> np.ndarray:
    return (f[:, :, None] * g[:, None, :]).reshape(len(f), -1)


def _sym(a: np.ndarray, f: np.ndarray) -> np.ndarray:
    return total(f * _mv(a, f))


def _sym_vjp(e: np.ndarray, a: np.ndarray, f: np.ndarray) -> tuple:
    return e * _outer(f, f), e * (_mv(a, f) + _vm(f, a))


# fmt: off
VECTORS = [
    case("Sum", (), (5,), total, lambda e, x: (np.repeat(e, 5, -1),), id="Sum", marks=mark.parity("O-60")),
    case("Sum", (), (1,), lambda x: x, lambda e, x: (e,), id="Sum-1", marks=mark.parity("O-60")),
    case("Sum", (), (130,), total, lambda e, x: (np.repeat(e, 130, -1),), id="Sum-130", marks=mark.parity("O-60")),
    case("SumT", (4,), (1,), lambda x: np.repeat(x, 4, -1), lambda e, x: (total(e),), id="SumT", marks=mark.parity("O-61")),
    case("Max", (), (5,), lambda x: x.max(-1, keepdims=True), lambda e, x: (e * _first(x, x.argmax(-1)),), id="Max", marks=mark.parity("O-62")),
    case("Min", (), (50,), lambda x: x.min(-1, keepdims=True), lambda e, x: (e * _first(x, x.argmin(-1)),), id="Min", marks=mark.parity("O-62")),
    case("ArgMax", (), (5,), lambda x: x.argmax(-1)[:, None] * 1.0, lambda e, x: (None,), id="ArgMax", marks=mark.parity("O-63")),
    case("ArgMin", (), (50,), lambda x: x.argmin(-1)[:, None] * 1.0, lambda e, x: (None,), id="ArgMin", marks=mark.parity("O-63")),
    case("Elem", (2,), (4,), lambda x: x[:, 2:3], lambda e, x: (_embedded(e, 2, 4),), id="Elem", marks=mark.parity("O-64")),
    case("ElemT", (4, 2), (1,), lambda x: _embedded(x, 2, 4), lambda e, x: (e[:, 2:3],), id="ElemT", marks=mark.parity("O-65")),
    case("Extract", (1, 3), (6,), lambda x: x[:, 1:4], lambda e, x: (_embedded(e, 1, 6),), id="Extract", marks=mark.parity("O-66")),
    case("Extract", (9, 30), (60,), lambda x: x[:, 9:39], lambda e, x: (_embedded(e, 9, 60),), id="Extract-30", marks=mark.parity("O-66")),
    case("ExtractT", (1, 4), (2,), lambda x: _embedded(x, 1, 4), lambda e, x: (e[:, 1:3],), id="ExtractT", marks=mark.parity("O-67")),
    case("ExtractT", (20, 70), (30,), lambda x: _embedded(x, 20, 70), lambda e, x: (e[:, 20:50],), id="ExtractT-30", marks=mark.parity("O-67")),
    case("Concat", (), (2, 3), lambda f, g: np.concatenate([f, g], -1), lambda e, f, g: (e[:, :2], e[:, 2:]), id="Concat", marks=mark.parity("O-68")),
    case("Concat", (), (20, 31), lambda f, g: np.concatenate([f, g], -1), lambda e, f, g: (e[:, :20], e[:, 20:]), id="Concat-51", marks=mark.parity("O-68")),
    case("OneHot", (3,), (1,), lambda x: (np.trunc(x + 0.5) == np.arange(3)) * 1.0, lambda e, x: (None,), id="OneHot", marks=mark.parity("O-69")),
    case("Scalprod", (), (3, 3), lambda f, g: total(f * g), lambda e, f, g: (e * g, e * f), id="Scalprod", marks=mark.parity("O-75")),
    case("Scalprod", (), (1, 3), lambda f, g: total(f * g), lambda e, f, g: (e * total(g), e * f), id="Scalprod-13", marks=mark.parity("O-75")),
    case("Scalprod", (), (3, 1), lambda f, g: total(f * g), lambda e, f, g: (e * g, e * total(f)), id="Scalprod-31", marks=mark.parity("O-75")),
    case("SqNorm2", (), (3,), sq, lambda e, x: (2 * e * x,), id="SqNorm2", marks=mark.parity("O-76")),
    case("Norm2", (), (3,), lambda x: np.sqrt(sq(x)), lambda e, x: (e * x / np.sqrt(sq(x)),), id="Norm2", marks=mark.parity("O-77")),
    case("Normalize", (), (3,), lambda x: x / np.sqrt(sq(x)), lambda e, x: (e / np.sqrt(sq(x)) - x * total(e * x) / sq(x) ** 1.5,), id="Normalize", marks=mark.parity("O-78")),
    case("SqDist", (), (3, 3), lambda f, g: sq(f - g), lambda e, f, g: (2 * e * (f - g), 2 * e * (g - f)), id="SqDist", marks=mark.parity("O-79")),
    case("SqDist", (), (3, 1), lambda f, g: sq(f - g), lambda e, f, g: (2 * e * (f - g), 2 * e * (g - f)), id="SqDist-31", marks=mark.parity("O-79")),
    case("SqNormIso", (), (4, 3), lambda s, f: s * sq(f), lambda e, s, f: (e * sq(f), 2 * f * total(e * s)), id="SqNormIso", marks=mark.parity("O-80")),
    case("SqNormDiag", (), (3, 3), lambda s, f: total(s * f * f), lambda e, s, f: (e * f * f, 2 * e * s * f), id="SqNormDiag", marks=mark.parity("O-81")),
    case("SqNormDiag", (), (1, 3), lambda s, f: s * sq(f), lambda e, s, f: (e * sq(f), 2 * e * s * f), id="SqNormDiag-13", marks=mark.parity("O-81")),
    case("SymSqNorm", (), (9, 3), _sym, _sym_vjp, id="SymSqNorm", marks=mark.parity("O-82")),
    case("WeightedSqNorm", (), (1, 3), lambda s, f: s * sq(f), lambda e, s, f: (e * sq(f), 2 * e * s * f), id="WeightedSqNorm-1", marks=mark.parity("O-83")),
    case("WeightedSqNorm", (), (3, 3), lambda s, f: total(s * f * f), lambda e, s, f: (e * f * f, 2 * e * s * f), id="WeightedSqNorm-3", marks=mark.parity("O-83")),
    case("WeightedSqNorm", (), (9, 3), _sym, _sym_vjp, id="WeightedSqNorm-9", marks=mark.parity("O-83")),
    case("WeightedSqDist", (), (9, 3, 3), lambda s, f, g: _sym(s, f - g),
         lambda e, s, f, g: (_sym_vjp(e, s, f - g)[0], _sym_vjp(e, s, f - g)[1], -_sym_vjp(e, s, f - g)[1]), id="WeightedSqDist", marks=mark.parity("O-84")),
    case("MatVecMult", (), (6, 3), _mv, lambda e, a, b: (_outer(e, b), _vm(e, a)), id="MatVecMult", marks=mark.parity("O-90")),
    case("MatVecMult", (), (6, 2), _mv, lambda e, a, b: (_outer(e, b), _vm(e, a)), id="MatVecMult-32", marks=mark.parity("O-90")),
    case("MatVecMult", (), (6, 1), _mv, lambda e, a, b: (_outer(e, b), _vm(e, a)), id="MatVecMult-61", marks=mark.parity("O-90")),
    case("MatVecMult", (), (200, 20), _mv, lambda e, a, b: (_outer(e, b), _vm(e, a)), id="MatVecMult-200", marks=mark.parity("O-90")),
    case("VecMatMult", (), (2, 6), _vm, lambda e, b, a: (_mv(a, e), _outer(b, e)), id="VecMatMult", marks=mark.parity("O-91")),
    case("VecMatMult", (), (6, 6), _vm, lambda e, b, a: (_mv(a, e), _outer(b, e)), id="VecMatMult-61", marks=mark.parity("O-91")),
    case("TensorProd", (), (2, 3), _outer, lambda e, f, g: (_mv(e, g), _vm(f, e)), id="TensorProd", marks=mark.parity("O-92")),
    case("TensorProd", (), (1, 3), _outer, lambda e, f, g: (_mv(e, g), _vm(f, e)), id="TensorProd-13", marks=mark.parity("O-92")),
]
# fmt: on


@mark.parametrize(("op", "params", "dims", "value", "vjp"), VECTORS)
@both
def test_vectors(backend: str, op: str, params: tuple, dims: tuple, value: Callable, vjp: Callable) -> None:
    check_all(backend, op, params, dense_rows(dims, -2.0, 2.0), value, vjp)


@mark.parity("O-62", "O-63", "X-77")
@mark.parametrize("length", [4, 40])
@both
def test_extremum_of_a_vector_takes_the_first_and_skips_nan(backend: str, length: int) -> None:
    x, e = rows(length, 1)
    data = np.zeros((4, length))
    data[0, 1:3] = 5, 5  # a tie
    data[1, 0], data[1, 2] = nan, 9  # a NaN in the first place stays
    data[2, 1], data[2, 2] = nan, 9  # elsewhere it is skipped
    data[3] = 7  # all equal
    parts = [node(op, x) for op in ("Max", "ArgMax")] + [
        node("Min", node("Minus", x)),
        node("ArgMin", node("Minus", x)),
    ]
    got = at(backend, joined(*parts, node("Grad", parts[0], x, e)), data, np.full((4, 1), 3.0))
    same(got[:, 0], [5, nan, 9, 7])
    same(got[:, 1], [1, 0, 2, 0])
    same(got[:, 2], [-5, nan, -9, -7])
    same(got[:, 3], [1, 0, 2, 0])
    same(got[:, 4:], 3.0 * (np.arange(length) == [[1], [0], [2], [0]]))


@mark.parity("O-69", "X-18")
@mark.parametrize("length", [4, 40])
@both
def test_one_hot_counts_from_the_half_and_is_zero_outside(backend: str, length: int) -> None:
    points = {
        -0.7: 0,
        -0.5: 0,
        0.4: 0,
        0.5: 1,
        2.4: 2,
        2.5: 3,
        -1.5: None,
        length - 0.5: None,
        1e300: None,
        nan: None,
    }
    got = at(backend, node("OneHot", *rows(1), params=(length,)), [[p] for p in points])
    want = np.zeros((len(points), length))
    for row, place in enumerate(points.values()):
        if place is not None:
            want[row, place] = 1
    same(got, want)


@mark.parity("O-77", "O-78")
@both
def test_norms_are_smooth_enough_at_the_origin(backend: str) -> None:
    x, u = rows(3, 3)
    zero, direction = np.zeros((1, 3)), [[1.0, 2.0, 3.0]]
    norm = node("Norm2", x)
    first = node("Grad", norm, x, constant(1))
    second = node("Grad", node("Scalprod", first, u), x, constant(1))
    got = at(backend, joined(norm, first, node("Normalize", x), second), zero, direction)
    same(got[0, :7], np.zeros(7), atol=0)
    assert np.isfinite(got[0, 7:]).all()
    same(at(backend, node("Normalize", x), [[inf, 1.0, 2.0]])[0, 0], nan)


# fmt: off
REFUSED = [
    case("SumT",     (3,), (4,),   "SumT", id="SumT", marks=mark.parity("O-61")),
    case("Elem",     (4,), (-1,),  "vector of dimension 4", id="Elem-negative", marks=mark.parity("O-64", "X-18")),
    case("Elem",     (4,), (4,),   "vector of dimension 4", id="Elem", marks=mark.parity("O-64", "X-18")),
    case("Elem",     (4,), (1.0,), "int parameters", id="Elem-float", marks=mark.parity("O-64")),
    case("ElemT",    (2,), (4, 1), "ElemT", id="ElemT-dim", marks=mark.parity("O-65")),
    case("ElemT",    (1,), (4, 4), "into a vector of dimension 4", id="ElemT", marks=mark.parity("O-65", "X-18")),
    case("ElemT",    (1,), (4, -1), "into a vector of dimension 4", id="ElemT-negative", marks=mark.parity("O-65", "X-18")),
    case("Extract",  (4,), (2, 3), "dimension 4", id="Extract", marks=mark.parity("O-66")),
    case("Extract",  (4,), (-1, 2), "dimension 4", id="Extract-negative", marks=mark.parity("O-66")),
    case("Extract",  (4,), (1, 0), "dimension 4", id="Extract-empty", marks=mark.parity("O-66")),
    case("ExtractT", (2,), (3, 4), "dimension 4", id="ExtractT", marks=mark.parity("O-67")),
    case("ExtractT", (2,), (-1, 4), "dimension 4", id="ExtractT-negative", marks=mark.parity("O-67")),
    case("Concat",   (2, 2, 2), (), "takes 2 operands", id="Concat", marks=mark.parity("O-68")),
    case("OneHot",   (2,), (3,),   "OneHot", id="OneHot-dim", marks=mark.parity("O-69")),
    case("OneHot",   (1,), (0,),   "at least one entry", id="OneHot", marks=mark.parity("O-69")),
    case("Scalprod", (3, 2), (),   "same dimension; received 3 and 2", id="Scalprod", marks=mark.parity("O-75")),
    case("SqDist",   (3, 2), (),   "SqDist .* 3 and 2", id="SqDist", marks=mark.parity("O-79")),
    case("SqNormDiag", (3, 2), (), "SqNormDiag", id="SqNormDiag", marks=mark.parity("O-81")),
    case("SymSqNorm", (8, 3), (),  "3 × 3", id="SymSqNorm", marks=mark.parity("O-82")),
    case("WeightedSqNorm", (4, 3), (), "1, 3 or 9; received 4", id="WeightedSqNorm", marks=mark.parity("O-83")),
    case("WeightedSqDist", (3, 3, 2), (), "WeightedSqDist", id="WeightedSqDist", marks=mark.parity("O-84")),
    case("MatVecMult", (7, 3), (), "dimension 3 does not divide a matrix of 7", id="MatVecMult", marks=mark.parity("O-90", "X-69")),
    case("MatVecMult", (2, 3), (), "does not divide", id="MatVecMult-small", marks=mark.parity("O-90", "X-69")),
    case("VecMatMult", (3, 7), (), "does not divide", id="VecMatMult", marks=mark.parity("O-91", "X-69")),
    case("TensorDot", (6, 6), ((2, 2), (2, 3), (0,), (0,), ()), "first operand", id="TensorDot-shape", marks=mark.parity("O-93")),
    case("TensorDot", (6, 6), ((2, 3), (2, 3), (1,), (0,), ()), "contracts axes", id="TensorDot-contract", marks=mark.parity("O-93")),
    case("TensorDot", (6, 6), ((2, 3), (2, 3), (2,), (0,), ()), "not axes", id="TensorDot-axis", marks=mark.parity("O-93")),
    case("TensorDot", (6, 6), ((2, 3), (2, 3), (1,), (1,), (0, 0)), "does not order", id="TensorDot-perm", marks=mark.parity("O-93")),
    case("Kron",     (6, 2), ((2, 3), (2,)), "shapes of one length", id="Kron", marks=mark.parity("O-94")),
    case("Kron",     (6, 2), ((2, 2), (1, 2)), "first operand", id="Kron-shape", marks=mark.parity("O-94")),
    case("BSpline",  (6, 2), (2,), "sampled at a scalar", id="BSpline-x", marks=mark.parity("O-95")),
    case("BSpline",  (6, 1), (-1,), "degree", id="BSpline-k", marks=mark.parity("O-95", "X-69")),
    case("BSpline",  (3, 1), (2,), "knots", id="BSpline-knots", marks=mark.parity("O-95", "X-69")),
    case("SoftDTW_SqDist", (3, 3, 2), (), "scalar", id="SoftDTW", marks=mark.parity("O-96")),
    case("Round",    (2,), (1.5,), "int number", id="Round", marks=mark.parity("O-30")),
    case("ClampInt", (2,), (0.5, 1), "int bounds", id="ClampInt", marks=mark.parity("O-31")),
    case("Pow",      (2,), (0.5,), "Powf", id="Pow", marks=mark.parity("O-24")),
]
# fmt: on


@mark.parametrize(("op", "dims", "params", "words"), REFUSED)
def test_operands_and_parameters_that_do_not_fit_are_refused_at_once(
    op: str, dims: tuple, params: tuple, words: str
) -> None:
    with pytest.raises(FormulaError, match=words) as caught:
        node(op, *rows(*dims), params=params)
    assert isinstance(caught.value, ValueError)


@mark.parity("X-29")
@both
def test_a_product_of_long_vectors_under_a_sum(backend: str) -> None:
    x, y, b = variable(0, 150, I), variable(1, 150, J), variable(2, 150, J)
    rng = np.random.default_rng(2)
    data = {0: rng.normal(size=(4, 150)), 1: rng.normal(size=(5, 150)), 2: rng.normal(size=(5, 150))}
    kernel = node("Exp", node("Minus", node("SqDist", x, y)))
    for f, want in (
        (node("Mult", x, y), data[0] * data[1].sum(0)),
        (node("Mult", node("Scalprod", x, y), b), (data[0] @ data[1].T) @ data[2]),
        (node("Mult", kernel, b), np.exp(-((data[0][:, None] - data[1]) ** 2).sum(-1)) @ data[2]),
    ):
        (got,) = run(backend, Spec(f, "Sum", 1, "float64"), data)
        same(got, want, rtol=1e-12)
