"""Operations at special points, constants and variables, row by row of the parity table; the expected numbers are written out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from farsum_kernels.errors import FormulaError
from farsum_kernels.formula.expr import Expr, I, J, P, constant, node, variable
from farsum_kernels.formula.rewrite import rational
from farsum_kernels.job import Spec
from tests.evaluate import BACKENDS, run
from tests.parity.rows import at, rows, same

case, mark = pytest.param, pytest.mark
inf, nan = np.inf, np.nan
both = mark.parametrize("backend", BACKENDS)


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
