"""Each operation of the formula language, row by row: its values at ordinary and at special points, the
dimensions that it refuses, the cotangents of its operands. The expected numbers are written out here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import pytest

from farsum_kernels.errors import DimensionError, FormulaError, UnknownOperation
from farsum_kernels.formula.expr import Expr, I, J, P, constant, node, operations, variable
from farsum_kernels.formula.grad import reduction_vjp
from farsum_kernels.formula.reductions import REDUCTIONS
from farsum_kernels.formula.rewrite import rational
from farsum_kernels.job import Spec
from tests import oracles
from tests.evaluate import BACKENDS, run

case, mark = pytest.param, pytest.mark
inf, nan = np.inf, np.nan
both = mark.parametrize("backend", BACKENDS)


def rows(*dims: int) -> list[Expr]:
    """One variable along i per dimension, numbered from 0."""
    return [variable(n, d, I) for n, d in enumerate(dims)]


def at(backend: str, formula: Expr, *values: Any, dtype: str = "float64") -> np.ndarray:
    """The formula on rows of its variables 0, 1, … along i: one result per row."""
    arrays = {n: np.asarray(v, dtype).reshape(-1, np.shape(v)[-1]) for n, v in enumerate(values)}
    (out,) = run(backend, Spec(formula, "Sum", 1, dtype), arrays)
    return out


def joined(*parts: Expr) -> Expr:
    return reduce(lambda a, b: node("Concat", a, b), parts)


def same(got: Any, want: Any, rtol: float = 2e-14, atol: float = 1e-13) -> None:
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def dense_rows(
    dims: tuple[int, ...], low: float = 0.3, high: float = 2.0, count: int = 6
) -> list[np.ndarray]:
    rng = np.random.default_rng(11)
    return [rng.uniform(low, high, (count, d)) for d in dims]


def fitted(c: np.ndarray | None, like: np.ndarray) -> np.ndarray:
    """A cotangent as long as its operand: summed for a scalar, zeros for None."""
    if c is None:
        return np.zeros_like(like)
    c = np.broadcast_to(c, np.broadcast_shapes(c.shape, like.shape))
    return c if c.shape[-1] == like.shape[-1] else c.sum(-1, keepdims=True)


# ── special values ────────────────────────────────────────────────────────────────────────────────

POINTS = [-inf, -2.5, -1.5, -0.5, -0.0, 0.0, 0.5, 1.5, 2.5, inf, nan]
PI_2 = np.pi / 2
S05, S15, S25 = np.sin(0.5) / 0.5, np.sin(1.5) / 1.5, np.sin(2.5) / 2.5
L05, L15, L25 = np.log(0.5), np.log(1.5), np.log(2.5)
R05, R15, R25 = np.sqrt(0.5), np.sqrt(1.5), np.sqrt(2.5)


def _with(op: str, *numbers: float, params: tuple[int, ...] = ()) -> Callable[[Expr], Expr]:
    return lambda x: node(op, x, *(constant(n) for n in numbers), params=params)


# fmt: off
SPECIAL = [
    case(_with("Sign"),     [-1, -1, -1, -1, 0, 0, 1, 1, 1, 1, 0], id="Sign", marks=mark.parity("O-26", "X-77")),
    case(_with("Step"),     [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1], id="Step", marks=mark.parity("O-27", "X-77")),
    case(_with("ReLU"),     [0, 0, 0, 0, 0, 0, .5, 1.5, 2.5, inf, nan], id="ReLU", marks=mark.parity("O-28")),
    case(_with("Inv"),      [0, -.4, -1 / 1.5, -2, -inf, inf, 2, 1 / 1.5, .4, 0, nan], id="Inv", marks=mark.parity("O-23")),
    case(_with("Rsqrt"),    [nan, nan, nan, nan, 0, 0, 1 / R05, 1 / R15, 1 / R25, 0, nan], id="Rsqrt", marks=mark.parity("O-22")),
    case(_with("Sqrt"),     [nan, nan, nan, nan, 0, 0, R05, R15, R25, inf, nan], id="Sqrt", marks=mark.parity("O-21")),
    case(_with("Log"),      [nan, nan, nan, nan, -inf, -inf, L05, L15, L25, inf, nan], id="Log", marks=mark.parity("O-12")),
    case(_with("XLogX"),    [nan, nan, nan, nan, 0, 0, .5 * L05, 1.5 * L15, 2.5 * L25, inf, nan], id="XLogX", marks=mark.parity("O-13")),
    case(_with("SinXDivX"), [nan, S25, S15, S05, 1, 1, S05, S15, S25, nan, nan], id="SinXDivX", marks=mark.parity("O-16")),
    case(_with("Floor"),    [-inf, -3, -2, -1, 0, 0, 0, 1, 2, inf, nan], id="Floor", marks=mark.parity("O-29")),
    case(_with("Round", params=(0,)), [-inf, -3, -2, -1, 0, 0, 1, 2, 3, inf, nan], id="Round", marks=mark.parity("O-30", "X-79")),
    case(_with("Pow", params=(0,)),   [1] * 11, id="Pow0", marks=mark.parity("O-24")),
    case(_with("Pow", params=(1,)),   POINTS, id="Pow1", marks=mark.parity("O-24")),
    case(_with("Pow", params=(3,)),   [-inf, -15.625, -3.375, -.125, 0, 0, .125, 3.375, 15.625, inf, nan], id="Pow3", marks=mark.parity("O-24")),
    case(_with("Pow", params=(-1,)),  [0, -.4, -1 / 1.5, -2, -inf, inf, 2, 1 / 1.5, .4, 0, nan], id="Pow-1", marks=mark.parity("O-24")),
    case(_with("Powf", 2.0),    [inf, 6.25, 2.25, .25, 0, 0, .25, 2.25, 6.25, inf, nan], id="Powf2", marks=mark.parity("O-44")),
    case(_with("Powf", 0.5),    [inf, nan, nan, nan, 0, 0, R05, R15, R25, inf, nan], id="Powf-half", marks=mark.parity("O-44")),
    case(_with("Powf", 0.0),    [1] * 11, id="Powf0", marks=mark.parity("O-44")),
    case(_with("ClampInt", params=(-1, 1)), [-1, -1, -1, -.5, 0, 0, .5, 1, 1, 1, nan], id="ClampInt", marks=mark.parity("O-31")),
    case(_with("DiffClampInt", params=(-1, 1)), [0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1], id="DiffClampInt", marks=mark.parity("O-32", "X-77")),
    case(_with("IfElse", 7, 8), [8, 8, 8, 8, 7, 7, 7, 7, 7, 7, 8], id="IfElse", marks=mark.parity("O-51", "X-77")),
    case(_with("Clamp", -1, 1), [-1, -1, -1, -.5, 0, 0, .5, 1, 1, 1, nan], id="Clamp", marks=mark.parity("O-50")),
    case(_with("Clamp", 1, -1), [1, 1, 1, 1, 1, 1, 1, -1, -1, -1, nan], id="Clamp-crossed", marks=mark.parity("O-50")),
    case(_with("Mod", 2, 0),    [nan, 1.5, .5, 1.5, 0, 0, .5, 1.5, .5, nan, nan], id="Mod", marks=mark.parity("O-52")),
    case(_with("Mod", 2, -1),   [nan, -.5, .5, -.5, 0, 0, .5, -.5, .5, nan, nan], id="Mod-offset", marks=mark.parity("O-52", "X-80")),
    case(_with("Mod", -2, 0),   [nan, -.5, -1.5, -.5, 0, 0, -1.5, -.5, -1.5, nan, nan], id="Mod-negative", marks=mark.parity("O-52")),
    case(_with("Mod", 0, 0),    [nan] * 11, id="Mod-zero", marks=mark.parity("O-52")),
    case(lambda x: node("Equal", x, x),    [1] * 10 + [0], id="Equal", marks=mark.parity("O-46")),
    case(lambda x: node("NotEqual", x, x), [0] * 10 + [1], id="NotEqual", marks=mark.parity("O-47")),
    case(_with("LessThan", 0),    [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], id="LessThan", marks=mark.parity("O-48")),
    case(_with("LessOrEqual", 0), [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0], id="LessOrEqual", marks=mark.parity("O-49")),
    case(_with("Atan2", 0),       [-PI_2, -PI_2, -PI_2, -PI_2, 0, 0, PI_2, PI_2, PI_2, PI_2, nan], id="Atan2", marks=mark.parity("O-45")),
    case(_with("Asin"), [nan, nan, nan, -np.pi / 6, 0, 0, np.pi / 6, nan, nan, nan, nan], id="Asin", marks=mark.parity("O-17")),
    case(_with("Acos"), [nan, nan, nan, 2 * np.pi / 3, PI_2, PI_2, np.pi / 3, nan, nan, nan, nan], id="Acos", marks=mark.parity("O-18")),
    case(_with("Minus"), [inf, 2.5, 1.5, .5, 0, 0, -.5, -1.5, -2.5, -inf, nan], id="Minus", marks=mark.parity("O-10")),
    case(_with("Abs"),   [inf, 2.5, 1.5, .5, 0, 0, .5, 1.5, 2.5, inf, nan], id="Abs", marks=mark.parity("O-25")),
    case(_with("Divide", 0.0), [-inf] * 4 + [nan] * 2 + [inf] * 4 + [nan], id="Divide", marks=mark.parity("O-43")),
]
# fmt: on


@mark.parametrize("place", ["row", "pair"])
@mark.parametrize("dtype", ["float32", "float64"])
@mark.parametrize(("formula", "want"), SPECIAL)
@both
def test_special_values(
    backend: str, formula: Callable[[Expr], Expr], want: list, dtype: str, place: str
) -> None:
    x = variable(0, 1, I)
    if place == "pair":  # the same numbers, but the operation now belongs to the pairs
        x = node("Subtract", x, variable(1, 1, J))
    got = at(backend, formula(x), np.array(POINTS)[:, None], [[0.0]], dtype=dtype)
    same(got[:, 0], want, rtol={"float32": 5e-7, "float64": 5e-16}[dtype], atol=0)


@mark.parity("O-17", "O-18")
@both
def test_inverse_sine_and_cosine_at_the_ends(backend: str) -> None:
    (x,) = rows(1)
    ends = [[-1.0], [1.0]]
    same(at(backend, node("Asin", x), ends), [[-PI_2], [PI_2]])
    same(at(backend, node("Acos", x), ends), [[np.pi], [0]])


@mark.parity("O-30", "X-79")
@mark.parametrize("place", ["row", "pair"])
@both
def test_round_takes_halves_away_from_zero_at_every_decimal(backend: str, place: str) -> None:
    x = variable(0, 1, I)
    if place == "pair":
        x = node("Subtract", x, variable(1, 1, J))

    def rounded(k: int, *values: float) -> list[float]:
        formula = node("Round", x, params=(k,))
        return list(at(backend, formula, np.array(values)[:, None], [[0.0]])[:, 0])

    assert rounded(-1, 14, 15, -15, 25, 35, 55, 95) == [10, 20, -20, 30, 40, 60, 100]
    assert rounded(1, 0.25, -0.25, 0.75, 3.14) == [0.3, -0.3, 0.8, 3.1]
    assert rounded(2, 1.125, 7.0, 0.07) == [1.13, 7.0, 0.07]
    assert rounded(-2, 350, 1050, 449) == [400, 1100, 400]
    with pytest.raises(FormulaError, match="int number of decimals"):
        node("Round", x, params=(0.5,))


@mark.parity("O-52", "X-80")
@mark.parametrize("place", ["row", "pair"])
@both
def test_mod_of_an_exact_multiple_is_the_offset(backend: str, place: str) -> None:
    x, n = variable(0, 1, I), variable(2, 1, P)
    if place == "pair":
        x = node("Subtract", x, variable(1, 1, J))
    for period in (3.0, 5.0, 7.0, 10.0, 49.0, 98.0, 107.0):
        multiples = period * np.arange(-6, 7)[:, None]
        for offset in (0, 1):
            formula = node("Mod", node("Add", x, constant(offset)), n, constant(offset))
            arrays = {0: multiples, 1: np.zeros((1, 1)), 2: np.array([period])}
            (got,) = run(backend, Spec(formula, "Sum", 1, "float64"), arrays)
            np.testing.assert_array_equal(got, np.full((13, 1), float(offset)))


# ── constants and variables ───────────────────────────────────────────────────────────────────────


@mark.parity("O-01", "X-03")
@both
def test_an_integer_constant_is_exact(backend: str) -> None:
    for n in (0, 3, -7, 16777217, 123456789):
        f = constant(n)
        assert f.dim == 1
        same(at(backend, f), [[n]], rtol=0)
    rounded = at(backend, constant(16777217), dtype="float32").astype("float32")
    same(rounded, [[16777216]], rtol=0)
    x = variable(0, 2, I)
    same(at(backend, node("Grad", constant(3), x, constant(1)), [[1.0, 2.0]]), [[0, 0]])


@mark.parity("O-02")
@both
def test_zero(backend: str) -> None:
    (x,) = rows(2)
    for dim in (1, 4, 300):
        zero = node("Zero", params=(dim,))
        assert zero.dim == dim
        same(at(backend, zero), np.zeros((1, dim)))
    same(
        at(backend, node("Grad", node("Zero", params=(4,)), x, node("Zero", params=(4,))), [[1.0, 2.0]]),
        [[0, 0]],
    )
    with pytest.raises(FormulaError):
        node("Zero", params=(0,))
    with pytest.raises(FormulaError, match="int dimension"):
        node("Zero", params=(2.0,))


@mark.parity("O-03", "O-04", "X-01", "X-04")
@both
def test_a_rational_constant_has_the_precision_of_the_data(backend: str) -> None:
    for p, q in ((1, 3), (5, 2), (-2, 7), (22, 7)):
        f = node("RatCst", params=(p, q))
        assert f.dim == 1
        same(at(backend, f), [[p / q]], rtol=0, atol=0)
    third = at(backend, node("RatCst", params=(1, 3)), dtype="float32").astype("float32")
    assert third[0, 0] == np.float32(1) / np.float32(3)
    assert rational(1) is constant(1)
    (x,) = rows(1)
    same(at(backend, node("Divide", x, constant(3)), [[1.0], [7.0]]), [[1 / 3], [7 / 3]], rtol=0, atol=0)
    for wrong in ((1, 0), (1.0, 2), (6, 3), (10**400, 3)):
        with pytest.raises(FormulaError, match="in lowest terms"):
            node("RatCst", params=wrong)


@mark.parity("O-05")
@both
def test_a_variable_is_the_row_and_differs_from_all_others(backend: str) -> None:
    x, y = rows(2, 2)
    e = node("Mult", x, constant(3))
    data = [[1.0, 2.0], [4.0, 5.0]]
    same(at(backend, x, data), data)
    same(at(backend, node("Grad", x, x, e), data), 3 * np.array(data))
    same(at(backend, node("Grad", x, y, e), data, data), np.zeros((2, 2)))


# ── unary operations: value and slope ─────────────────────────────────────────────────────────────

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


# ── operations of two and three operands ──────────────────────────────────────────────────────────

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


def check_all(
    backend: str, op: str, params: tuple, data: list[np.ndarray], value: Callable, vjp: Callable
) -> None:
    """The value of op and the cotangent of each operand, computed in one go."""
    args = rows(*(d.shape[-1] for d in data))
    f = node(op, *args, params=params)
    want = value(*data)
    assert f.dim == want.shape[-1]
    e = variable(len(data), f.dim, I)
    cotangent = np.random.default_rng(5).normal(size=want.shape)
    got = at(backend, joined(f, *(node("Grad", f, v, e) for v in args)), *data, cotangent)
    parts = [want, *(fitted(c, d) for c, d in zip(vjp(cotangent, *data), data, strict=True))]
    same(got, np.concatenate([np.broadcast_to(p, (len(got), p.shape[-1])) for p in parts], -1))


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


# ── vectors, norms, matrices: value and cotangents ────────────────────────────────────────────────


def _first(x: np.ndarray, place: np.ndarray) -> np.ndarray:
    return (np.arange(x.shape[-1]) == place[:, None]) * 1.0


def _embedded(x: np.ndarray, start: int, length: int) -> np.ndarray:
    return np.pad(x, ((0, 0), (start, length - start - x.shape[-1])))


def _sq(x: np.ndarray) -> np.ndarray:
    return (x * x).sum(-1, keepdims=True)


def _total(x: np.ndarray) -> np.ndarray:
    return x.sum(-1, keepdims=True)


def _mv(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("rnp,rp->rn", a.reshape(len(a), -1, b.shape[-1]), b)


def _vm(b: np.ndarray, a: np.ndarray) -> np.ndarray:
    return np.einsum("rn,rnp->rp", b, a.reshape(len(a), b.shape[-1], -1))


def _outer(f: np.ndarray, g: np.ndarray) -> np.ndarray:
    return (f[:, :, None] * g[:, None, :]).reshape(len(f), -1)


def _each(f: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda *args: np.stack([np.ravel(f(*row)) for row in zip(*args, strict=True)])


def _sym(a: np.ndarray, f: np.ndarray) -> np.ndarray:
    return _total(f * _mv(a, f))


def _sym_vjp(e: np.ndarray, a: np.ndarray, f: np.ndarray) -> tuple:
    return e * _outer(f, f), e * (_mv(a, f) + _vm(f, a))


# fmt: off
VECTORS = [
    case("Sum", (), (5,), _total, lambda e, x: (np.repeat(e, 5, -1),), id="Sum", marks=mark.parity("O-60")),
    case("Sum", (), (1,), lambda x: x, lambda e, x: (e,), id="Sum-1", marks=mark.parity("O-60")),
    case("Sum", (), (130,), _total, lambda e, x: (np.repeat(e, 130, -1),), id="Sum-130", marks=mark.parity("O-60")),
    case("SumT", (4,), (1,), lambda x: np.repeat(x, 4, -1), lambda e, x: (_total(e),), id="SumT", marks=mark.parity("O-61")),
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
    case("Scalprod", (), (3, 3), lambda f, g: _total(f * g), lambda e, f, g: (e * g, e * f), id="Scalprod", marks=mark.parity("O-75")),
    case("Scalprod", (), (1, 3), lambda f, g: _total(f * g), lambda e, f, g: (e * _total(g), e * f), id="Scalprod-13", marks=mark.parity("O-75")),
    case("Scalprod", (), (3, 1), lambda f, g: _total(f * g), lambda e, f, g: (e * g, e * _total(f)), id="Scalprod-31", marks=mark.parity("O-75")),
    case("SqNorm2", (), (3,), _sq, lambda e, x: (2 * e * x,), id="SqNorm2", marks=mark.parity("O-76")),
    case("Norm2", (), (3,), lambda x: np.sqrt(_sq(x)), lambda e, x: (e * x / np.sqrt(_sq(x)),), id="Norm2", marks=mark.parity("O-77")),
    case("Normalize", (), (3,), lambda x: x / np.sqrt(_sq(x)), lambda e, x: (e / np.sqrt(_sq(x)) - x * _total(e * x) / _sq(x) ** 1.5,), id="Normalize", marks=mark.parity("O-78")),
    case("SqDist", (), (3, 3), lambda f, g: _sq(f - g), lambda e, f, g: (2 * e * (f - g), 2 * e * (g - f)), id="SqDist", marks=mark.parity("O-79")),
    case("SqDist", (), (3, 1), lambda f, g: _sq(f - g), lambda e, f, g: (2 * e * (f - g), 2 * e * (g - f)), id="SqDist-31", marks=mark.parity("O-79")),
    case("SqNormIso", (), (4, 3), lambda s, f: s * _sq(f), lambda e, s, f: (e * _sq(f), 2 * f * _total(e * s)), id="SqNormIso", marks=mark.parity("O-80")),
    case("SqNormDiag", (), (3, 3), lambda s, f: _total(s * f * f), lambda e, s, f: (e * f * f, 2 * e * s * f), id="SqNormDiag", marks=mark.parity("O-81")),
    case("SqNormDiag", (), (1, 3), lambda s, f: s * _sq(f), lambda e, s, f: (e * _sq(f), 2 * e * s * f), id="SqNormDiag-13", marks=mark.parity("O-81")),
    case("SymSqNorm", (), (9, 3), _sym, _sym_vjp, id="SymSqNorm", marks=mark.parity("O-82")),
    case("WeightedSqNorm", (), (1, 3), lambda s, f: s * _sq(f), lambda e, s, f: (e * _sq(f), 2 * e * s * f), id="WeightedSqNorm-1", marks=mark.parity("O-83")),
    case("WeightedSqNorm", (), (3, 3), lambda s, f: _total(s * f * f), lambda e, s, f: (e * f * f, 2 * e * s * f), id="WeightedSqNorm-3", marks=mark.parity("O-83")),
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


# ── tensors ───────────────────────────────────────────────────────────────────────────────────────

# (shape of f, shape of g, contracted axes of f, of g, places of the kept axes)
TENSORS = [
    ((2, 3), (3, 2), (1,), (0,), ()),
    ((2, 3), (2, 3), (0, 1), (0, 1), ()),
    ((2, 3), (4,), (), (), ()),
    ((2, 3), (4,), (), (), (2, 0, 1)),
    ((2, 3, 4), (4, 3), (2, 1), (0, 1), ()),
    ((2, 3, 4), (3, 5), (1,), (0,), (1, 2, 0)),
    ((5, 2, 3), (3, 2, 4), (2, 1), (0, 1), (1, 0)),
    ((2, 3, 2), (2, 2, 5), (0, 2), (1, 0), (1, 0)),
]


@mark.parity("O-93")
@mark.parametrize(("df", "dg", "over_f", "over_g", "perm"), TENSORS, ids=str)
@both
def test_tensordot(backend: str, df: tuple, dg: tuple, over_f: tuple, over_g: tuple, perm: tuple) -> None:
    letters = iter("abcdefgh")
    in_f = [next(letters) for _ in df]
    in_g = [in_f[over_f[over_g.index(a)]] if a in over_g else next(letters) for a in range(len(dg))]
    kept = [c for a, c in enumerate(in_f) if a not in over_f] + [
        c for a, c in enumerate(in_g) if a not in over_g
    ]
    order = [kept[a] for a in np.argsort(perm)] if perm else kept
    f, g, out = "".join(in_f), "".join(in_g), "".join(order)

    def value(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        z = np.einsum(f"r{f},r{g}->r{out}", x.reshape(-1, *df), y.reshape(-1, *dg))
        return z.reshape(len(x), -1)

    def vjp(e: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple:
        sizes = dict(zip(f + g, df + dg, strict=True))
        e = e.reshape(-1, *(sizes[c] for c in out))
        return (
            np.einsum(f"r{out},r{g}->r{f}", e, y.reshape(-1, *dg)).reshape(len(x), -1),
            np.einsum(f"r{out},r{f}->r{g}", e, x.reshape(-1, *df)).reshape(len(x), -1),
        )

    data = dense_rows((int(np.prod(df)), int(np.prod(dg))))
    check_all(backend, "TensorDot", (df, dg, over_f, over_g, perm), data, value, vjp)


@mark.parity("O-94")
@mark.parametrize(("df", "dg"), [((2, 3), (1, 2)), ((3,), (4,)), ((2, 2, 2), (2, 1, 3))], ids=str)
@both
def test_kron(backend: str, df: tuple, dg: tuple) -> None:
    def kron(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.kron(x.reshape(df), y.reshape(dg))

    def vjp(e: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple:
        to_x = [[np.vdot(er, kron(b, yr)) for b in np.eye(x.shape[-1])] for er, yr in zip(e, y, strict=True)]
        to_y = [[np.vdot(er, kron(xr, b)) for b in np.eye(y.shape[-1])] for er, xr in zip(e, x, strict=True)]
        return np.array(to_x), np.array(to_y)

    def vdot_ready(e: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple:
        shape = np.multiply(df, dg)
        return vjp(e.reshape(-1, *shape), x, y)

    data = dense_rows((int(np.prod(df)), int(np.prod(dg))))
    check_all(backend, "Kron", (df, dg), data, _each(kron), vdot_ready)


@mark.parity("O-95", "X-24")
@mark.parametrize("dtype", ["float32", "float64"])
@both
def test_bspline(backend: str, dtype: str) -> None:
    t, x = rows(5, 1)
    points = np.array([[0.5], [1.0], [1.5], [2.5], [4.0], [-0.1], [0.0]])
    knots = np.broadcast_to(np.arange(5.0), (7, 5))
    f = node("BSpline", t, x, params=(2,))
    assert f.dim == 2
    got = at(backend, f, knots, points, dtype=dtype)
    want = [[0.125, 0], [0.5, 0], [0.75, 0.125], [0.125, 0.75], [0, 0], [0, 0], [0, 0]]
    same(got, want, rtol=1e-6 if dtype == "float32" else 1e-14)
    # repeated knots: 0/0 counts as 0; nothing at or after the last knot
    clamped = np.broadcast_to([0.0, 0, 0, 1, 2, 2, 2], (5, 7))
    t = variable(0, 7, I)
    got = at(
        backend, node("BSpline", t, x, params=(2,)), clamped, [[0.0], [0.5], [1.0], [1.5], [2.5]], dtype=dtype
    )
    want = [[1, 0, 0, 0], [0.25, 0.625, 0.125, 0], [0, 0.5, 0.5, 0], [0, 0.125, 0.625, 0.25], [0, 0, 0, 0]]
    same(got, want, rtol=1e-6 if dtype == "float32" else 1e-14)
    # degree 0: the cells, half-open
    got = at(
        backend,
        node("BSpline", t, x, params=(0,)),
        np.broadcast_to(np.arange(7.0), (3, 7)),
        [[0.0], [1.0], [6.0]],
    )
    same(got, [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0] * 6])


@mark.parity("X-24")
@both
def test_bspline_has_a_derivative(backend: str) -> None:
    t, x, e = rows(7, 1, 4)
    slope = node("Grad", node("BSpline", t, x, params=(2,)), x, e)
    clamped = np.broadcast_to([0.0, 0, 0, 1, 2, 2, 2], (2, 7))
    got = at(backend, slope, clamped, [[0.5], [1.5]], [[1.0, 10, 100, 1000]] * 2)
    # on [0, 1): (1-x)², 2x - 1.5x², 0.5x²; the other half mirrors it
    same(got, [[-1 + 10 * 0.5 + 100 * 0.5], [-10 * 0.5 - 100 * 0.5 + 1000]])


@mark.parity("O-96", "X-23")
@both
def test_soft_dtw(backend: str) -> None:
    x, y, gamma, e = rows(2, 2, 1, 1)
    f = node("SoftDTW_SqDist", x, y, gamma)
    data = np.array([[0.2, 0.9]]), np.array([[0.5, 0.1]]), np.array([[0.1]])
    same(at(backend, f, *data), [[0.655486]], rtol=1e-6)
    # the cotangents, gamma's included, and the second order
    step = 1e-5
    got = at(backend, joined(*(node("Grad", f, v, e) for v in (x, y, gamma))), *data, [[2.0]])
    want = []
    for n, k in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0)):
        up, down = ([d.copy() for d in data] for _ in range(2))
        up[n][0, k] += step
        down[n][0, k] -= step
        high, low = (oracles._softdtw(*(d[0] for d in moved))[0] for moved in (up, down))
        want.append(2 * (high - low) / (2 * step))
    same(got, [want], rtol=1e-7, atol=1e-8)
    second = node("Laplacian", f, x)
    assert np.isfinite(at(backend, second, *data)).all()


@mark.parity("O-96")
@both
def test_soft_dtw_of_long_sequences(backend: str) -> None:
    x, y, gamma = rows(30, 25, 1)
    data = dense_rows((30, 25, 1), count=2)
    want = [oracles._softdtw(*(d[r] for d in data)) for r in range(2)]
    same(at(backend, node("SoftDTW_SqDist", x, y, gamma), *data), want, rtol=1e-12)


# ── derivatives and linear operators as operations ────────────────────────────────────────────────


@mark.parity("O-100")
@both
def test_grad(backend: str) -> None:
    x, y, e = rows(3, 3, 3)
    f = node("Mult", node("Exp", x), y)
    data = dense_rows((3, 3, 3))
    same(at(backend, node("Grad", f, x, e), *data), data[2] * np.exp(data[0]) * data[1])
    # the cotangent may be any formula, that of the formula itself included
    same(at(backend, node("Grad", f, x, f), *data), (np.exp(data[0]) * data[1]) ** 2)
    square = node("SqNorm2", x)
    same(at(backend, node("Grad", square, x, constant(1)), *data), 2 * data[0])
    # a variable that does not occur
    same(at(backend, node("Grad", square, y, constant(1)), *data), np.zeros((6, 3)))
    # a derivative of a derivative
    twice = node("Grad", node("Scalprod", node("Grad", f, x, e), e), x, constant(1))
    same(at(backend, twice, *data), data[2] ** 2 * np.exp(data[0]) * data[1])


@mark.parity("O-100", "O-103", "O-106", "O-107", "X-69")
def test_derivatives_refuse_what_does_not_fit() -> None:
    x, y = rows(3, 2)
    scalar = node("SqNorm2", x)
    with pytest.raises(DimensionError, match="formula and the cotangent"):
        node("Grad", x, x, y)
    with pytest.raises(FormulaError, match="with respect to a variable"):
        node("Grad", scalar, node("Exp", x), constant(1))
    with pytest.raises(DimensionError, match="variable and the direction"):
        node("Diff", scalar, x, y)
    with pytest.raises(DimensionError, match="Divergence"):
        node("Divergence", scalar, x)
    with pytest.raises(DimensionError, match="Laplacian"):
        node("Laplacian", x, x)
    for op in ("Divergence", "GradMatrix"):
        with pytest.raises(FormulaError, match="with respect to a variable"):
            node(op, x, node("Exp", x))


@mark.parity("O-103")
@both
def test_diff(backend: str) -> None:
    x, u = rows(3, 3)
    data = dense_rows((3, 3))
    same(at(backend, node("Diff", node("Exp", x), x, u), *data), np.exp(data[0]) * data[1])
    same(at(backend, node("Diff", node("SqNorm2", x), x, x), [[1.0, 10, 100]]), [[20202]])


@mark.parity("O-105", "X-28")
@both
def test_grad_matrix_is_the_jacobian_by_rows(backend: str) -> None:
    x, m = rows(3, 6)
    data = dense_rows((3, 6))
    same(
        at(backend, node("GradMatrix", node("Mult", x, x), x), [[1.0, 10, 100]]),
        [[2, 0, 0, 0, 20, 0, 0, 0, 200]],
    )
    f = node("MatVecMult", m, x)
    assert node("GradMatrix", f, x).dim == 6
    same(at(backend, node("GradMatrix", f, x), *data), data[1])
    same(at(backend, node("GradMatrix", node("SqNorm2", x), x), *data), 2 * data[0])
    same(
        at(backend, node("GradMatrix", node("Square", variable(0, 1, I)), variable(0, 1, I)), [[3.0]]), [[6]]
    )


@mark.parity("O-105", "X-69")
@both
def test_grad_matrix_of_a_long_vector(backend: str) -> None:
    (x,) = rows(40)
    data = dense_rows((40,), count=2)
    same(
        at(backend, node("GradMatrix", node("Exp", x), x), *data),
        [np.ravel(np.diag(r)) for r in np.exp(data[0])],
    )


# fmt: off
TRACES = [
    case(lambda x: x, lambda x, m: np.full((len(x), 1), 3.0), 3, id="identity", marks=mark.parity("O-106")),
    case(lambda x: node("Mult", x, x), lambda x, m: 2 * _total(x), 3, id="square", marks=mark.parity("O-106")),
    case(lambda x: node("MatVecMult", variable(1, 9, I), x), lambda x, m: m[:, [0, 4, 8]].sum(-1, keepdims=True), 3, id="matrix", marks=mark.parity("O-106", "O-110", "O-111")),
    case(lambda x: node("Normalize", x), lambda x, m: 2 / np.sqrt(_sq(x)), 3, id="normalize", marks=mark.parity("O-106", "X-83")),
    case(lambda x: node("IfElse", node("Subtract", x, constant(1)), node("Square", x), x), lambda x, m: _total(np.where(x >= 1, 2 * x, 1)), 3, id="branches", marks=mark.parity("O-110", "X-83")),
    case(lambda x: node("TensorDot", variable(1, 9, I), x, params=((3, 3), (3,), (0,), (0,), ())), lambda x, m: m[:, [0, 4, 8]].sum(-1, keepdims=True), 3, id="tensordot", marks=mark.parity("O-110", "X-83")),
    case(lambda x: node("Concat", node("Extract", x, params=(1, 2)), node("Square", node("Elem", x, params=(0,)))), lambda x, m: np.zeros((len(x), 1)), 3, id="cut", marks=mark.parity("O-111", "X-83")),
    case(lambda x: node("Factorize", node("Mult", node("Exp", x), node("Exp", x)), node("Exp", x)), lambda x, m: _total(2 * np.exp(2 * x)), 3, id="factorize", marks=mark.parity("O-110", "O-112")),
    case(lambda x: node("ComplexMult", x, x), lambda x, m: 4 * _total(x[:, ::2]), 4, id="complex", marks=mark.parity("O-110", "X-83")),
    case(lambda x: node("Exp", x), lambda x, m: _total(np.exp(x)), 50, id="long", marks=mark.parity("O-106")),
]
LAPLACIANS = [
    case(lambda x: node("SqNorm2", x), lambda x, m: np.full((len(x), 1), 6.0), 3, id="square", marks=mark.parity("O-107")),
    case(lambda x: node("Norm2", x), lambda x, m: 2 / np.sqrt(_sq(x)), 3, id="norm", marks=mark.parity("O-107")),
    case(lambda x: node("Exp", node("Minus", node("SqNorm2", x))), lambda x, m: np.exp(-_sq(x)) * (4 * _sq(x) - 6), 3, id="gaussian", marks=mark.parity("O-107")),
    case(lambda x: node("WeightedSqNorm", variable(1, 9, I), x), lambda x, m: 2 * m[:, [0, 4, 8]].sum(-1, keepdims=True), 3, id="matrix", marks=mark.parity("O-107", "O-111", "X-83")),
    case(lambda x: node("Mult", node("Elem", x, params=(0,)), node("Square", node("Elem", x, params=(1,)))), lambda x, m: 2 * x[:, :1], 3, id="elements", marks=mark.parity("O-111", "X-83")),
    case(lambda x: node("Max", node("Mult", x, node("Square", x))), lambda x, m: 6 * x.max(-1, keepdims=True), 3, id="max", marks=mark.parity("O-111", "X-83")),
    case(lambda x: node("Sum", node("Sin", x)), lambda x, m: -_total(np.sin(x)), 30, id="long", marks=mark.parity("O-107")),
    case(lambda x: node("ComplexAbs", x), lambda x, m: 1 / np.sqrt(_sq(x)), 2, id="complex", marks=mark.parity("O-111", "X-83")),
    case(lambda x: node("SoftDTW_SqDist", x, x, constant(1)), None, 2, id="softdtw", marks=mark.parity("O-111", "X-83")),
]
# fmt: on


@mark.parametrize(
    ("op", "formula", "want", "dim"),
    [case("Divergence", *c.values, id=f"div-{c.id}", marks=c.marks) for c in TRACES]
    + [case("Laplacian", *c.values, id=f"lap-{c.id}", marks=c.marks) for c in LAPLACIANS],
)
@both
def test_divergence_and_laplacian(
    backend: str, op: str, formula: Callable, want: Callable | None, dim: int
) -> None:
    (x,) = rows(dim)
    data = dense_rows((dim, 9))
    got = at(backend, node(op, formula(x), x), *data)
    if want:
        same(got, want(*data))
        return
    step = 1e-4  # no closed form: by differences of the value
    shifted = [(data[0] + s * b) for b in np.eye(dim) for s in (step, -step)]
    values = [at(backend, formula(x), d) for d in shifted]
    same(got, (sum(values) - 2 * dim * at(backend, formula(x), data[0])) / step**2, rtol=1e-5, atol=1e-5)


@mark.parity("O-108")
@both
def test_trace_operator(backend: str) -> None:
    v, m, w = rows(3, 9, 3)
    data = dense_rows((3, 9, 3))
    matrix, weight = data[1].reshape(-1, 3, 3), data[2]
    diagonal = np.einsum("rkk->rk", matrix)
    linear = node("MatVecMult", m, v)
    same(at(backend, node("TraceOperator", linear, v, constant(1)), *data), _total(diagonal))
    same(at(backend, node("TraceOperator", linear, v, w), *data), _total(diagonal * weight))
    same(at(backend, node("TraceOperator", linear, v, constant(3)), *data), 3 * _total(diagonal))
    # a row vector: its entries are summed, weighted too
    row = node("Scalprod", w, v)
    same(at(backend, node("TraceOperator", row, v, constant(1)), *data), _total(weight))
    same(at(backend, node("TraceOperator", row, v, w), *data), _sq(weight))


@mark.parity("O-109")
@both
def test_adjoint_and_sum_of_a_linear_operator(backend: str) -> None:
    v, m, u, right = rows(3, 6, 2, 3)
    data = dense_rows((3, 6, 2, 3))
    matrix = data[1].reshape(-1, 2, 3)
    linear = node("MatVecMult", m, v)
    adjoint = node("AdjointOperator", linear, v, u)
    assert adjoint.dim == 3
    same(at(backend, adjoint, *data), np.einsum("rn,rnp->rp", data[2], matrix))
    one = constant(1)
    same(at(backend, node("SumLinOperator", linear, v, one, one), *data), matrix.sum((1, 2))[:, None])
    weighted = np.einsum("rn,rnp,rp->r", data[2], matrix, data[3])[:, None]
    same(at(backend, node("SumLinOperator", linear, v, u, right), *data), weighted)


@mark.parity("O-108", "O-109")
@mark.parametrize("op", ["TraceOperator", "AdjointOperator", "SumLinOperator"])
def test_operators_that_are_not_linear_are_refused(op: str) -> None:
    v, w = rows(3, 3)
    more = {"TraceOperator": [constant(1)], "AdjointOperator": [w], "SumLinOperator": [constant(1)] * 2}[op]
    for f in (node("Square", v), node("Add", v, w), node("Exp", v)):
        with pytest.raises(FormulaError, match="not linear"):
            node(op, f, v, *more)
    with pytest.raises(DimensionError, match=op):
        node(op, *rows(3, 3), *[variable(7, 2, I)] * len(more))


# fmt: off
LINEAR = [
    case(lambda v, g: node("Extract", v, params=(1, 2)), id="Extract", marks=mark.parity("O-110")),
    case(lambda v, g: node("ExtractT", node("Elem", v, params=(3,)), params=(1, 2)), id="ExtractT", marks=mark.parity("O-110")),
    case(lambda v, g: node("Divide", node("Extract", node("Minus", v), params=(0, 2)), g), id="Divide", marks=mark.parity("O-110")),
    case(lambda v, g: node("Mult", g, node("Subtract", node("Sum", v), node("Elem", v, params=(1,)))), id="Mult", marks=mark.parity("O-110")),
    case(lambda v, g: node("Concat", node("Elem", v, params=(2,)), node("Sum", v)), id="Concat", marks=mark.parity("O-110", "X-83")),
    case(lambda v, g: node("IfElse", g, node("Extract", v, params=(0, 2)), node("Extract", v, params=(2, 2))), id="IfElse", marks=mark.parity("O-110", "X-83")),
    case(lambda v, g: node("ComplexSum", node("Conj", v)), id="complex", marks=mark.parity("O-110", "X-83")),
    case(lambda v, g: node("ComplexMult", g, node("ComplexSum", v)), id="ComplexMult", marks=mark.parity("O-110", "X-83")),
    case(lambda v, g: node("MatVecMult", v, g), id="MatVecMult", marks=mark.parity("O-109", "O-110", "X-83")),
    case(lambda v, g: node("TensorDot", v, g, params=((2, 2), (2,), (1,), (0,), ())), id="TensorDot", marks=mark.parity("O-110", "X-83")),
    case(lambda v, g: node("Extract", node("Kron", v, g, params=((4,), (2,))), params=(1, 2)), id="Kron", marks=mark.parity("O-110", "X-83")),
    case(lambda v, g: node("Factorize", node("Extract", v, params=(2, 2)), v), id="Factorize", marks=mark.parity("O-110", "O-112")),
]
# fmt: on


@mark.parametrize("operator", LINEAR)
@both
def test_the_adjoint_of_a_linear_operator_is_its_transpose(backend: str, operator: Callable) -> None:
    v, u, g = rows(4, 2, 2)
    f = operator(v, g)
    data = dense_rows((4, 2, 2), -1, 1)
    got = at(backend, node("AdjointOperator", f, v, u), *data)
    columns = [at(backend, f, np.broadcast_to(b, data[0].shape), *data[1:]) for b in np.eye(4)]
    same(got, np.concatenate([_total(data[1] * c) for c in columns], -1))


@mark.parity("O-112", "O-113")
@both
def test_factorizing_keeps_the_value_and_the_derivative(backend: str) -> None:
    x, e = rows(3, 3)
    part = node("Exp", node("Sin", x))
    whole = node("Add", node("Mult", part, x), node("Square", part))
    data = dense_rows((3, 3))
    want = at(backend, joined(whole, node("Grad", whole, x, e)), *data)
    for f in (node("Factorize", whole, part), node("Factorize", whole, x), node("AutoFactorize", whole)):
        assert f.dim == 3
        np.testing.assert_array_equal(at(backend, joined(f, node("Grad", f, x, e)), *data), want)


# ── complex vectors ───────────────────────────────────────────────────────────────────────────────


def _z(x: np.ndarray) -> np.ndarray:
    return x[..., ::2] + 1j * x[..., 1::2]


def _pairs(z: np.ndarray) -> np.ndarray:
    return np.stack([z.real, z.imag], -1).reshape(*z.shape[:-1], -1)


def _c(f: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A rule on complex vectors as one on pairs."""
    return lambda *args: _pairs(f(*map(_z, args)))


def _c_vjp(f: Callable[..., tuple]) -> Callable[..., tuple]:
    """Cotangents written in complex numbers; a broadcast scalar gets the complex sum."""

    def vjp(e: np.ndarray, *args: np.ndarray) -> tuple:
        parts = [np.broadcast_to(c, _z(e).shape) for c in f(_z(e), *map(_z, args))]
        return tuple(
            _pairs(c if c.shape[-1] * 2 == a.shape[-1] else c.sum(-1, keepdims=True))
            for c, a in zip(parts, args, strict=True)
        )

    return vjp


# fmt: off
COMPLEX = [
    case("Real2Complex", (), (3,), lambda x: _pairs(x + 0j), lambda e, x: (e[:, ::2],), id="Real2Complex", marks=mark.parity("O-120", "X-22")),
    case("Imag2Complex", (), (3,), lambda x: _pairs(1j * x), lambda e, x: (e[:, 1::2],), id="Imag2Complex", marks=mark.parity("O-121", "X-22")),
    case("ComplexReal", (), (6,), lambda x: x[:, ::2], lambda e, x: (_pairs(e + 0j),), id="ComplexReal", marks=mark.parity("O-122")),
    case("ComplexImag", (), (6,), lambda x: x[:, 1::2], lambda e, x: (_pairs(1j * e),), id="ComplexImag", marks=mark.parity("O-122")),
    case("ComplexImag", (), (40,), lambda x: x[:, 1::2], lambda e, x: (_pairs(1j * e),), id="ComplexImag-40", marks=mark.parity("O-122")),
    case("Conj", (), (4,), _c(np.conj), _c_vjp(lambda e, z: (e.conj(),)), id="Conj", marks=mark.parity("O-123")),
    case("ComplexAdd", (), (4, 4), _c(lambda a, b: a + b), _c_vjp(lambda e, a, b: (e, e)), id="ComplexAdd", marks=mark.parity("O-124")),
    case("ComplexAdd", (), (2, 6), _c(lambda a, b: a + b), _c_vjp(lambda e, a, b: (e, e)), id="ComplexAdd-26", marks=mark.parity("O-124")),
    case("ComplexSubtract", (), (6, 2), _c(lambda a, b: a - b), _c_vjp(lambda e, a, b: (e, -e)), id="ComplexSubtract", marks=mark.parity("O-124")),
    case("ComplexMult", (), (4, 4), _c(lambda a, b: a * b), _c_vjp(lambda e, a, b: (b.conj() * e, a.conj() * e)), id="ComplexMult", marks=mark.parity("O-125")),
    case("ComplexMult", (), (2, 6), _c(lambda a, b: a * b), _c_vjp(lambda e, a, b: (b.conj() * e, a.conj() * e)), id="ComplexMult-26", marks=mark.parity("O-125")),
    case("ComplexDivide", (), (4, 4), _c(lambda a, b: a / b), _c_vjp(lambda e, a, b: (e / b.conj(), -e * (a / b**2).conj())), id="ComplexDivide", marks=mark.parity("O-126")),
    case("ComplexDivide", (), (2, 6), _c(lambda a, b: a / b), _c_vjp(lambda e, a, b: (e / b.conj(), -e * (a / b**2).conj())), id="ComplexDivide-26", marks=mark.parity("O-126")),
    case("ComplexRealScal", (), (1, 4), lambda s, z: s * z, lambda e, s, z: (_total(e * z), e * s), id="ComplexRealScal", marks=mark.parity("O-127", "X-22")),
    case("ComplexRealScal", (), (4, 1), lambda z, s: s * z, lambda e, z, s: (e * s, _total(e * z)), id="ComplexRealScal-41", marks=mark.parity("O-127")),
    case("ComplexSquareAbs", (), (4,), lambda x: np.abs(_z(x)) ** 2, lambda e, x: (_pairs(2 * e * _z(x)),), id="ComplexSquareAbs", marks=mark.parity("O-128")),
    case("ComplexAbs", (), (4,), lambda x: np.abs(_z(x)), lambda e, x: (_pairs(e * _z(x) / np.abs(_z(x))),), id="ComplexAbs", marks=mark.parity("O-129")),
    case("ComplexAngle", (), (4,), lambda x: np.angle(_z(x)), lambda e, x: (_pairs(e * 1j * _z(x) / np.abs(_z(x)) ** 2),), id="ComplexAngle", marks=mark.parity("O-130")),
    case("ComplexExp", (), (4,), _c(np.exp), _c_vjp(lambda e, z: (e * np.exp(z).conj(),)), id="ComplexExp", marks=mark.parity("O-131")),
    case("ComplexExp1j", (), (3,), lambda x: _pairs(np.exp(1j * x)), lambda e, x: ((_z(e) * (1j * np.exp(1j * x)).conj()).real,), id="ComplexExp1j", marks=mark.parity("O-132", "X-22")),
    case("ComplexSum", (), (6,), lambda x: _pairs(_z(x).sum(-1, keepdims=True)), lambda e, x: (np.tile(e, 3),), id="ComplexSum", marks=mark.parity("O-133")),
    case("ComplexSumT", (6,), (2,), lambda x: np.tile(x, 3), lambda e, x: (_pairs(_z(e).sum(-1, keepdims=True)),), id="ComplexSumT", marks=mark.parity("O-134")),
]
ODD = ["ComplexReal", "ComplexImag", "Conj", "ComplexSquareAbs", "ComplexAbs", "ComplexAngle", "ComplexExp", "ComplexSum"]
# fmt: on


@mark.parametrize(("op", "params", "dims", "value", "vjp"), COMPLEX)
@both
def test_complex(backend: str, op: str, params: tuple, dims: tuple, value: Callable, vjp: Callable) -> None:
    check_all(backend, op, params, dense_rows(dims, 0.2, 2.0), value, vjp)


@mark.parity("O-129")
@both
def test_the_modulus_has_no_slope_at_zero(backend: str) -> None:
    z, e = rows(2, 1)
    f = node("ComplexAbs", z)
    same(at(backend, joined(f, node("Grad", f, z, e)), [[0.0, 0.0]], [[3.0]]), [[0, 0, 0]], atol=0)


@mark.parity("O-122", "O-123", "O-128", "O-131", "O-133", "O-135")
@mark.parametrize("op", ODD)
def test_a_complex_vector_has_an_even_number_of_reals(op: str) -> None:
    with pytest.raises(DimensionError, match="even number of reals; received 3"):
        node(op, *rows(3))


@mark.parity("O-124", "O-125", "O-126", "O-127", "O-134")
def test_complex_operands_that_do_not_fit() -> None:
    for op in ("ComplexAdd", "ComplexSubtract", "ComplexMult", "ComplexDivide"):
        with pytest.raises(DimensionError, match="even number of reals"):
            node(op, *rows(3, 3))
        with pytest.raises(DimensionError, match="one dimension, or a complex scalar; received 4 and 6"):
            node(op, *rows(4, 6))
    with pytest.raises(DimensionError, match="real scalar"):
        node("ComplexRealScal", *rows(2, 4))
    with pytest.raises(FormulaError, match="even number of reals; received 2 and 5"):
        node("ComplexSumT", *rows(2), params=(5,))


@mark.parity("O-135", "X-22")
@both
def test_complex_operations_of_real_variables_of_odd_dimension_have_gradients(backend: str) -> None:
    x, z, e = rows(3, 6, 6)
    f = node("ComplexMult", node("ComplexExp1j", x), z)
    data = dense_rows((3, 6, 6))
    got = at(backend, node("Grad", f, x, e), *data)
    slope = 1j * np.exp(1j * data[0]) * _z(data[1])
    same(got, (_z(data[2]) * slope.conj()).real)


# ── what is in the table of operations ────────────────────────────────────────────────────────────


# fmt: off
ABSENT = [
    case(["Tan", "Sinh", "Cosh", "Tanh", "Log1p", "Expm1", "Log2", "Ceil", "Sigmoid", "Erf", "Prod", "Cross", "Cumsum", "Sort"],
         id="never there", marks=mark.parity("O-143")),
    case(["ComplexScal", "GradSoftDTW_SqDist"], id="internal", marks=mark.parity("O-135", "O-140", "X-67")),
    case(["Sum_Reduction", "Min_Reduction", "Zero_Reduction"], id="reductions", marks=mark.parity("O-142")),
]
# fmt: on


@mark.parametrize("names", ABSENT)
def test_names_that_are_no_operations(names: list[str]) -> None:
    for name in names:
        with pytest.raises(UnknownOperation, match=f"unknown operation '{name}'"):
            node(name, *rows(2))
    assert issubclass(UnknownOperation, NameError)


@mark.parity("O-142")
def test_there_is_no_reduction_to_zero() -> None:
    with pytest.raises(UnknownOperation, match="unknown reduction 'Zero'"):
        Spec(variable(0, 2, I), "Zero", 1, "float64")


@mark.parity("O-144")
@both
def test_operations_that_only_formulas_have(backend: str) -> None:
    names = {"Floor", "Inv", "OneHot", "ElemT", "ExtractT", "SumT", "ComplexSquareAbs", "AdjointOperator",
             "SumLinOperator", "RatCst"}  # fmt: skip
    assert names <= set(operations())
    x, y = rows(1, 2)
    f = joined(
        node("Floor", x), node("Inv", x), node("ElemT", x, params=(2, 1)), node("ExtractT", y, params=(1, 3)),
        node("ComplexSquareAbs", y),
    )  # fmt: skip
    same(at(backend, f, [[2.5]], [[3.0, 4.0]]), [[2, 0.4, 0, 2.5, 0, 3, 4, 25]])


# ── long vectors ──────────────────────────────────────────────────────────────────────────────────


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


# ── reductions as the outermost node ──────────────────────────────────────────────────────────────


@mark.parity("O-102")
@both
def test_the_gradient_of_a_reduction_from_its_saved_result(backend: str) -> None:
    x, y, p = variable(0, 1, I), variable(1, 1, J), variable(2, 1, P)
    f = node("Mult", p, node("Mult", x, y))
    data = {0: np.array([[0.5], [-1.0]]), 1: np.array([[1.0], [2.0], [-0.5]]), 2: np.array([0.7])}
    (saved,) = run(backend, Spec(f, "LogSumExp", 1, "float64"), data)
    data |= {3: np.array([[2.0], [3.0]]), 4: saved}
    share = np.exp(0.7 * data[0] * data[1].T - saved)  # the weight of each pair, rows add to 1
    same(share.sum(1), [1, 1])
    e, y_out = variable(3, 1, I), variable(4, 1, I)
    for v, axis, want in (
        (x, 1, data[3] * (share @ (0.7 * data[1]))),
        (y, 0, 0.7 * share.T @ (data[3] * data[0])),
        (p, 1, data[3] * data[0] * (share @ data[1])),  # a row per i, to be added up
    ):
        gradient = reduction_vjp(REDUCTIONS["LogSumExp"], f, None, J, v, e, y_out)
        (got,) = run(backend, Spec(gradient, "Sum", axis, "float64"), data)
        same(got, want)


@mark.parity("X-30")
@both
def test_weighted_log_sum_exp_is_the_logarithm(backend: str) -> None:
    f, g = variable(0, 1, J), variable(1, 2, J)
    data = {0: np.array([[1000.0], [1001.0]]), 1: np.array([[1.0, 2.0], [3.0, 4.0]])}
    want = 1000 + np.log([1 + 3 * np.e, 2 + 4 * np.e])
    for name in ("LogSumExpWeight", "LogSumExp"):
        (got,) = run(backend, Spec(f, name, 1, "float64", g), data)
        same(got, [want])


@mark.parity("X-06")
def test_the_error_of_a_long_sum_in_float32_does_not_grow() -> None:
    y = np.random.default_rng(0).uniform(0.5, 1.5, (400_000, 1)).astype(np.float32)
    (got,) = run("cpu", Spec(variable(0, 1, J), "Sum", 1, "float32"), {0: y})
    exact = y.astype(np.float64).sum()
    assert abs(float(got[0, 0]) - exact) <= 1e-6 * exact  # adding one by one in float32 errs by 1.3e-5
