"""Each operation that goes component by component: its values, the cotangents of its operands, the dimensions it refuses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from farsum_kernels.errors import DimensionError, FormulaError
from farsum_kernels.formula.expr import I, J, constant, node, variable
from tests.evaluate import BACKENDS
from tests.parity.rows import at, check_all, dense_rows, joined, rows, same

case, mark = pytest.param, pytest.mark
inf, nan = np.inf, np.nan
both = mark.parametrize("backend", BACKENDS)


INSIDE = [-2.2, -0.7, 0.4, 1.9]
POSITIVE = [0.1, 0.7, 2.5, 40.0]
UNIT = [-0.9, -0.2, 0.5, 0.99]

# fmt: off
UNARY = [
    case("Minus",  (), INSIDE,   lambda x: -x,      lambda x: -np.ones_like(x), id="Minus", marks=mark.parity("O-10")),
    case("Exp",    (), INSIDE,   np.exp,            np.exp, id="Exp", marks=mark.parity("O-11")),
    case("Log",    (), POSITIVE, np.log,            lambda x: 1 / x, id="Log", marks=mark.parity("O-12")),
    case("XLogX",  (), POSITIVE, lambda x: x * np.log(x), lambda x: np.log(x) + 1, id="XLogX", marks=mark.parity("O-13")),
    case("Sin",    (), INSIDE,   np.sin,            np.cos, id="Sin", marks=mark.parity("O-14")),
    case("Cos",    (), INSIDE,   np.cos,            lambda x: -np.sin(x), id="Cos", marks=mark.parity("O-15")),
    case("SinXDivX", (), INSIDE, lambda x: np.sin(x) / x, lambda x: np.cos(x) / x - np.sin(x) / x**2, id="SinXDivX", marks=mark.parity("O-16")),
    case("Asin",   (), UNIT,     np.arcsin,         lambda x: 1 / np.sqrt(1 - x * x), id="Asin", marks=mark.parity("O-17")),
    case("Acos",   (), UNIT,     np.arccos,         lambda x: -1 / np.sqrt(1 - x * x), id="Acos", marks=mark.parity("O-18")),
    case("Atan",   (), INSIDE,   np.arctan,         lambda x: 1 / (1 + x * x), id="Atan", marks=mark.parity("O-19")),
    case("Square", (), INSIDE,   lambda x: x * x,   lambda x: 2 * x, id="Square", marks=mark.parity("O-20")),
    case("Sqrt",   (), POSITIVE, np.sqrt,           lambda x: 0.5 / np.sqrt(x), id="Sqrt", marks=mark.parity("O-21")),
    case("Rsqrt",  (), POSITIVE, lambda x: x**-0.5, lambda x: -0.5 * x**-1.5, id="Rsqrt", marks=mark.parity("O-22")),
    case("Inv",    (), INSIDE,   lambda x: 1 / x,   lambda x: -1 / x**2, id="Inv", marks=mark.parity("O-23")),
    case("Pow",    (5,), INSIDE,  lambda x: x**5,   lambda x: 5 * x**4, id="Pow5", marks=mark.parity("O-24")),
    case("Pow",    (-3,), INSIDE, lambda x: x**-3.0, lambda x: -3 * x**-4.0, id="Pow-3", marks=mark.parity("O-24")),
    case("Pow",    (100,), UNIT,  lambda x: x**100, lambda x: 100 * x**99, id="Pow100", marks=mark.parity("O-24")),
    case("Pow",    (1,), INSIDE,  lambda x: x,      np.ones_like, id="Pow1", marks=mark.parity("O-24")),
    case("Pow",    (0,), INSIDE,  np.ones_like,     np.zeros_like, id="Pow0", marks=mark.parity("O-24")),
    case("Abs",    (), INSIDE,   np.abs,            np.sign, id="Abs", marks=mark.parity("O-25")),
    case("Sign",   (), INSIDE,   np.sign,           np.zeros_like, id="Sign", marks=mark.parity("O-26")),
    case("Step",   (), INSIDE,   lambda x: (x >= 0) * 1.0, np.zeros_like, id="Step", marks=mark.parity("O-27")),
    case("ReLU",   (), INSIDE,   lambda x: np.maximum(x, 0), lambda x: (x >= 0) * 1.0, id="ReLU", marks=mark.parity("O-28")),
    case("Floor",  (), INSIDE,   np.floor,          np.zeros_like, id="Floor", marks=mark.parity("O-29")),
    case("Round",  (0,), INSIDE, np.round,          np.zeros_like, id="Round", marks=mark.parity("O-30")),
    case("ClampInt", (-1, 1), INSIDE, lambda x: np.clip(x, -1, 1), lambda x: (np.abs(x) <= 1) * 1.0, id="ClampInt", marks=mark.parity("O-31")),
    case("DiffClampInt", (-1, 1), INSIDE, lambda x: (np.abs(x) <= 1) * 1.0, np.zeros_like, id="DiffClampInt", marks=mark.parity("O-32")),
]
# fmt: on


@mark.parametrize(("op", "params", "points", "value", "slope"), UNARY)
@both
def test_unary(backend: str, op: str, params: tuple, points: list, value: Callable, slope: Callable) -> None:
    x, e = rows(2, 2)
    f = node(op, x, params=params)
    assert f.dim == 2
    data = np.reshape(points, (2, 2))
    cotangent = np.array([[1.5, -2.0], [0.25, 3.0]])
    got = at(backend, joined(f, node("Grad", f, x, e)), data, cotangent)
    same(got[:, :2], value(data))
    same(got[:, 2:], cotangent * slope(data))


# fmt: off
SLOPES = [
    case("Sqrt", (), [(0.0, 0.0)], id="Sqrt", marks=mark.parity("O-21", "X-78")),
    case("Rsqrt", (), [(0.0, 0.0)], id="Rsqrt", marks=mark.parity("O-22")),
    case("Asin", (), [(1.0, 0.0), (-1.0, 0.0)], id="Asin", marks=mark.parity("O-17", "X-78")),
    case("Acos", (), [(1.0, 0.0), (-1.0, 0.0)], id="Acos", marks=mark.parity("O-18", "X-78")),
    case("ReLU", (), [(0.0, 1.0), (-0.0, 1.0), (nan, 1.0)], id="ReLU", marks=mark.parity("O-28", "X-78")),
    case("Abs", (), [(0.0, 0.0), (nan, 0.0)], id="Abs", marks=mark.parity("O-25")),
    case("SinXDivX", (), [(0.0, 0.0), (-0.0, 0.0)], id="SinXDivX", marks=mark.parity("X-26")),
    case("XLogX", (), [(0.0, -inf)], id="XLogX", marks=mark.parity("O-13")),
    case("ClampInt", (-1, 1), [(-1.0, 1.0), (1.0, 1.0), (1.5, 0.0), (nan, 1.0)], id="ClampInt", marks=mark.parity("O-31", "O-32")),
    case("Norm2", (), [(0.0, 0.0)], id="Norm2", marks=mark.parity("O-77")),
]
# fmt: on


@mark.parametrize(("op", "params", "points"), SLOPES)
@both
def test_slope_at_special_points(backend: str, op: str, params: tuple, points: list) -> None:
    (x,) = rows(1)
    f = node("Grad", node(op, x, params=params), x, constant(1))
    got = at(backend, f, [[p] for p, _ in points])
    same(got[:, 0], [s for _, s in points], atol=0)


# fmt: off
POINTWISE = [
    case("Add",      lambda a, b: a + b, lambda e, a, b: (e, e), id="Add", marks=mark.parity("O-40")),
    case("Subtract", lambda a, b: a - b, lambda e, a, b: (e, -e), id="Subtract", marks=mark.parity("O-41")),
    case("Mult",     lambda a, b: a * b, lambda e, a, b: (e * b, e * a), id="Mult", marks=mark.parity("O-42")),
    case("Divide",   lambda a, b: a / b, lambda e, a, b: (e / b, -e * a / b**2), id="Divide", marks=mark.parity("O-43")),
    case("Powf",     lambda a, b: a**b,  lambda e, a, b: (e * b * a ** (b - 1), e * np.log(a) * a**b), id="Powf", marks=mark.parity("O-44", "X-02", "X-20")),
    case("Atan2",    np.arctan2, lambda e, a, b: (e * b / (a**2 + b**2), -e * a / (a**2 + b**2)), id="Atan2", marks=mark.parity("O-45", "X-20")),
    case("Equal",       lambda a, b: (a == b) * 1.0, lambda e, a, b: (None, None), id="Equal", marks=mark.parity("O-46")),
    case("NotEqual",    lambda a, b: (a != b) * 1.0, lambda e, a, b: (None, None), id="NotEqual", marks=mark.parity("O-47")),
    case("LessThan",    lambda a, b: (a < b) * 1.0,  lambda e, a, b: (None, None), id="LessThan", marks=mark.parity("O-48")),
    case("LessOrEqual", lambda a, b: (a <= b) * 1.0, lambda e, a, b: (None, None), id="LessOrEqual", marks=mark.parity("O-49")),
]
# fmt: on


@mark.parametrize("dims", [(3, 3), (3, 1), (1, 3), (1, 1), (40, 1)], ids=str)
@mark.parametrize(("op", "value", "vjp"), POINTWISE)
@both
def test_binary(backend: str, op: str, value: Callable, vjp: Callable, dims: tuple) -> None:
    data = dense_rows(dims)
    if "ess" in op or "qual" in op:
        data = [np.round(d) for d in data]  # so that equal ones occur
    check_all(backend, op, (), data, value, vjp)


@mark.parity("O-43")
@mark.parametrize("small", [1e-300, 1e300])
@both
def test_a_quotient_of_pairs_is_a_quotient(backend: str, small: float) -> None:
    pair = node("Subtract", variable(0, 1, I), variable(1, 1, J))
    ratio = node("Divide", pair, variable(2, 1, I))  # the divisor does not depend on the pair
    same(at(backend, ratio, [[small]], [[0.0]], [[small]]), [[1]])
    same(at(backend, ratio, [[3.0]], [[0.0]], [[inf]]), [[0]])


@mark.parity("O-44", "X-02")
@both
def test_powf_of_negative_bases(backend: str) -> None:
    a, b = rows(1, 1)
    points = [
        (-2.0, 3.0, -8.0),
        (-2.0, -2.0, 0.25),
        (-2.0, 0.5, nan),
        (0.0, 0.0, 1.0),
        (2.0, 1 / 3, 2 ** (1 / 3)),
    ]
    got = at(backend, node("Powf", a, b), [[p[0]] for p in points], [[p[1]] for p in points])
    same(got[:, 0], [p[2] for p in points])


@mark.parity("O-50")
@mark.parametrize("dims", [(3, 3, 3), (3, 1, 1), (3, 1, 3), (1, 3, 1)], ids=str)
@both
def test_clamp(backend: str, dims: tuple) -> None:
    f, a, b = dense_rows(dims, -2, 2)
    b = b + 2.5  # above a
    f[0], a[0], b[0] = 1.0, 1.0, 2.0  # the bounds are inclusive
    f[1], a[1], b[1] = 2.0, 1.0, 2.0

    def vjp(e: np.ndarray, f: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple:
        return np.where((a <= f) & (f <= b), e, 0), np.where(f < a, e, 0), np.where((f >= a) & (f > b), e, 0)

    check_all(backend, "Clamp", (), [f, a, b], lambda f, a, b: np.where(f < a, a, np.where(f > b, b, f)), vjp)


@mark.parity("X-25")
@both
def test_clamp_between_equal_bounds_has_no_slope(backend: str) -> None:
    f, a = rows(1, 1)
    slope = node("Grad", node("Clamp", f, a, a), f, constant(1))
    same(at(backend, slope, [[0.0], [2.0], [1.0]], [[1.0], [1.0], [1.0]]), [[0], [0], [0]])


@mark.parity("O-51", "X-20")
@mark.parametrize("dims", [(3, 3, 3), (3, 1, 1), (3, 1, 3), (1, 3, 1), (1, 1, 3)], ids=str)
@both
def test_if_else(backend: str, dims: tuple) -> None:
    f, a, b = dense_rows(dims, -2, 2)
    f[0], f[1] = -0.0, nan

    def vjp(e: np.ndarray, f: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple:
        return None, np.where(f >= 0, e, 0 * a), np.where(f >= 0, 0 * b, e)

    check_all(backend, "IfElse", (), [f, a, b], lambda f, a, b: np.where(f >= 0, a, b), vjp)


@mark.parity("X-21")
@both
def test_if_else_masks_the_cotangent_before_it_enters_a_branch(backend: str) -> None:
    f, m, b, e = rows(2, 6, 3, 2)
    chosen = node("IfElse", f, node("MatVecMult", m, b), node("Zero", params=(2,)))
    data = dense_rows((2, 6, 3, 2), -2, 2)
    got = at(backend, joined(node("Grad", chosen, m, e), node("Grad", chosen, b, e)), *data)
    masked = np.where(data[0] >= 0, data[3], 0)
    same(got[:, :6], np.einsum("rn,rp->rnp", masked, data[2]).reshape(-1, 6))
    same(got[:, 6:], np.einsum("rn,rnp->rp", masked, data[1].reshape(-1, 2, 3)))


@mark.parity("O-52")
@mark.parametrize("dims", [(3, 3, 3), (3, 1, 1), (1, 3, 1), (3, 1, 3)], ids=str)
@both
def test_mod(backend: str, dims: tuple) -> None:
    data = dense_rows(dims, -3, 3)
    data[1] = np.where(np.abs(data[1]) < 0.5, 1.0, data[1])

    def turns(f: np.ndarray, n: np.ndarray, o: np.ndarray) -> np.ndarray:
        return np.floor((f - o) / n)

    check_all(
        backend, "Mod", (), data, lambda f, n, o: f - n * turns(f, n, o),
        lambda e, f, n, o: (e + 0 * n * o, -turns(f, n, o) * e, None),
    )  # fmt: skip


@mark.parity("X-69")
@mark.parametrize("op", ["Add", "Subtract", "Mult", "Divide", "Powf", "Atan2", "Equal", "LessThan"])
def test_operands_have_one_dimension_or_are_scalars(op: str) -> None:
    with pytest.raises(DimensionError, match=f"{op} .* 3 and 2"):
        node(op, *rows(3, 2))
    assert issubclass(DimensionError, ValueError)
    with pytest.raises(FormulaError, match=f"{op} takes 2 operands"):
        node(op, *rows(3))
