"""Rewriting keeps values. Each row of the table of rewrites is shown on the value alone: as written, and as
`simplified` gives it. What the rules may change is named: NaN and infinities beside a structural zero, and
two exponentials that overflow where their product does not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farsum_kernels.backends import reference
from farsum_kernels.formula.expr import Expr, I, J, constant, node, variable, variables
from farsum_kernels.formula.rewrite import is_zero, simplified
from farsum_kernels.job import Spec
from tests import strategies as some
from tests.conformance.test_random import magnitude
from tests.evaluate import BACKENDS, run

case, mark = pytest.param, pytest.mark
nan, inf = np.nan, np.inf
both = mark.parametrize("backend", BACKENDS)

x, y, s = variable(0, 3, I), variable(1, 3, I), variable(2, 1, I)
X = np.array([[0.3, -1.7, 2.9], [1e-3, 0.1, 5.0], [3.0, 7.0, -0.7]])
Y = np.array([[1.1, 0.2, -0.3], [4.0, -0.5, 0.25], [0.1, 0.9, 12.0]])
S = np.array([[0.7], [-3.0], [1.3]])


def _add(a: Expr, b: Expr) -> Expr:
    return node("Add", a, b)


def _sub(a: Expr, b: Expr) -> Expr:
    return node("Subtract", a, b)


def _mul(a: Expr, b: Expr) -> Expr:
    return node("Mult", a, b)


def _div(a: Expr, b: Expr) -> Expr:
    return node("Divide", a, b)


def value(backend: str, formula: Expr, *data: np.ndarray) -> np.ndarray:
    arrays = dict(enumerate(np.asarray(d, float) for d in (data or (X, Y, S))))
    spec = Spec(formula, "Sum", 1, "float64")
    (out,) = run(backend, spec, {n: arrays[n] for n in spec.inputs})
    return out


def zeros(dim: int) -> Expr:
    return node("Zero", params=(dim,))


one, two, three, seven = (constant(n) for n in (1, 2, 3, 7))
half, third = node("RatCst", params=(1, 2)), node("RatCst", params=(1, 3))
exp_x, exp_y = node("Exp", x), node("Exp", y)
dot = np.sum(X * Y, -1, keepdims=True)

# fmt: off
ROUNDED = [  # the value, up to the rounding of one or two operations
    case(_sub(x, x), 0 * X, id="f-f", marks=mark.parity("S-01")),
    case(_mul(exp_x, exp_y), np.exp(X + Y), id="exp*exp", marks=mark.parity("S-03")),
    case(_mul(exp_x, node("Exp", node("Minus", x))), np.ones_like(X), id="exp*exp-inverse", marks=mark.parity("S-03")),
    case(_add(x, x), 2 * X, id="f+f", marks=mark.parity("S-04")),
    case(_mul(x, x), X**2, id="f*f", marks=mark.parity("S-04")),
    case(_add(_mul(three, x), x), 4 * X, id="nf+f", marks=mark.parity("S-04")),
    case(_sub(_mul(three, x), x), 2 * X, id="nf-f", marks=mark.parity("S-04")),
    case(_add(_mul(x, y), _mul(x, s)), X * (Y + S), id="ab+ac", marks=mark.parity("S-05")),
    case(_sub(_mul(x, y), _mul(s, x)), X * (Y - S), id="ab-ca", marks=mark.parity("S-05")),
    case(_mul(three, _mul(seven, x)), 21 * X, id="m(nf)", marks=mark.parity("S-06")),
    case(_mul(third, _mul(x, three)), X, id="(f*3)/3", marks=mark.parity("S-06")),
    case(_add(three, _add(seven, x)), 10 + X, id="m+(n+f)", marks=mark.parity("S-06")),
    case(_sub(_add(seven, x), three), 4 + X, id="(n+f)-m", marks=mark.parity("S-06")),
    case(node("Minus", node("Minus", x)), X, id="--f", marks=mark.parity("S-07")),
    case(_mul(node("Minus", x), y), -X * Y, id="(-f)g", marks=mark.parity("S-07")),
    case(_mul(x, node("Minus", _mul(node("Minus", s), y))), X * S * Y, id="signs", marks=mark.parity("S-07")),
    case(_add(x, node("Minus", y)), X - Y, id="f+-g", marks=mark.parity("S-07")),
    case(_add(node("Minus", x), y), Y - X, id="-f+g", marks=mark.parity("S-07")),
    case(node("Sum", _mul(s, x)), S * X.sum(-1, keepdims=True), id="Sum(sf)", marks=mark.parity("S-08")),
    case(node("Sum", _mul(x, s)), S * X.sum(-1, keepdims=True), id="Sum(fs)", marks=mark.parity("S-08")),
    case(node("Sum", _mul(x, y)), dot, id="Sum(fg)", marks=mark.parity("S-08")),
    case(node("Scalprod", _mul(s, x), y), S * dot, id="(sf)|g", marks=mark.parity("S-08")),
    case(node("Scalprod", s, x), S * X.sum(-1, keepdims=True), id="s|f", marks=mark.parity("S-08")),
    case(node("Sum", node("SumT", s, params=(5,))), 5 * S, id="Sum(SumT)", marks=mark.parity("S-08")),
    case(_div(x, three), X / 3, id="f/3", marks=mark.parity("S-09", "X-01")),
    case(_div(_add(x, y), node("RatCst", params=(2, 3))), (X + Y) * 1.5, id="f/(2/3)", marks=mark.parity("S-09")),
]
EXACT = [  # bit for bit
    case(_div(_mul(x, two), two), X, id="(f*2)/2", marks=mark.parity("S-06")),
    case(_mul(_mul(two, x), half), X, id="(2f)*half", marks=mark.parity("S-06")),
    case(_add(half, one), [[1.5]], id="1/2+1", marks=mark.parity("S-11", "X-27")),
    case(_sub(half, one), [[-0.5]], id="1/2-1", marks=mark.parity("S-11", "X-27")),
    case(_add(one, third), [[4 / 3]], id="1+1/3", marks=mark.parity("S-11", "X-27")),
    case(_add(_div(one, two), one), [[1.5]], id="(1/2)+1", marks=mark.parity("S-11", "X-27")),
    case(_mul(third, three), [[1.0]], id="1/3*3", marks=mark.parity("S-06", "X-04")),
    case(_add(constant(1 << 52), one), [[float((1 << 52) + 1)]], id="large", marks=mark.parity("S-06", "X-03")),
    case(_sub(_add(s, one), one), (S + 1) - 1, id="(f+1)-1", marks=mark.parity("S-06")),
    case(_mul(zeros(3), s), [[0.0] * 3], id="0*f", marks=mark.parity("S-02")),
    case(_mul(s, zeros(3)), [[0.0] * 3], id="f*0", marks=mark.parity("S-02")),
    case(_mul(x, zeros(1)), [[0.0] * 3], id="f*0-scalar", marks=mark.parity("S-02")),
    case(_div(zeros(1), x), [[0.0] * 3], id="0/f", marks=mark.parity("S-02")),
    case(_div(zeros(3), s), [[0.0] * 3], id="0/f-spread", marks=mark.parity("S-02")),
    case(_add(zeros(3), s), np.repeat(S, 3, -1), id="0+s", marks=mark.parity("S-02")),
    case(_sub(zeros(3), s), -np.repeat(S, 3, -1), id="0-s", marks=mark.parity("S-02", "S-07")),
]
# fmt: on


@mark.parametrize("rewritten", [False, True], ids=["as written", "simplified"])
@mark.parametrize(("formula", "want"), ROUNDED)
@both
def test_the_value_is_kept(backend: str, formula: Expr, want: np.ndarray, rewritten: bool) -> None:
    shown = simplified(formula) if rewritten else formula
    assert shown.dim == formula.dim
    np.testing.assert_allclose(value(backend, shown), want, rtol=1e-15, atol=4e-15)


@mark.parametrize("rewritten", [False, True], ids=["as written", "simplified"])
@mark.parametrize(("formula", "want"), EXACT)
@both
def test_the_value_is_exact(backend: str, formula: Expr, want: np.ndarray, rewritten: bool) -> None:
    shown = simplified(formula) if rewritten else formula
    assert shown.dim == formula.dim
    got = value(backend, shown)
    np.testing.assert_array_equal(got, np.broadcast_to(want, got.shape))


@mark.parity("S-06")
@both
def test_a_constant_is_not_folded_through_a_sum_that_rounds(backend: str) -> None:
    tiny = np.full((3, 1), 1e-20)
    for f in (_sub(_add(s, one), one), simplified(_sub(_add(s, one), one))):
        np.testing.assert_array_equal(value(backend, f, X, Y, tiny), np.zeros((3, 1)))


@mark.parity("S-01", "X-40")
@both
def test_a_difference_with_itself_keeps_nan(backend: str) -> None:
    bad = np.array([[nan, inf, 1.0]])
    for f in (_sub(x, x), simplified(_sub(x, x))):
        np.testing.assert_array_equal(value(backend, f, bad), [[nan, nan, 0]])


@mark.parity("S-02", "X-40")
@both
def test_only_a_structural_zero_hides_nan(backend: str) -> None:
    bad = np.array([[nan, inf, 1.0]])
    for f in (_mul(zeros(1), x), simplified(_mul(zeros(1), x)), _div(zeros(3), x)):
        np.testing.assert_array_equal(value(backend, f, bad), [[0, 0, 0]])
    for f in (_mul(constant(0), x), simplified(_mul(constant(0), x))):
        np.testing.assert_array_equal(value(backend, f, bad), [[nan, nan, 0]])


@mark.parity("S-03", "X-40")
def test_exponentials_that_overflow_alone() -> None:
    large = np.array([[800.0, 1.0, -800.0, nan]])
    four = [node("Exp", variable(n, 4, c)) for n, c in ((0, I), (1, J))]
    product = _mul(*four)
    # Compiled code adds the exponents; the definition multiplies, as written.
    np.testing.assert_array_equal(value("cpu", product, large, -large), [[1, 1, 1, nan]])
    as_written = value("reference", product, large, -large)[0]
    assert as_written[1] == pytest.approx(1, abs=1e-15)
    assert np.isnan(as_written[[0, 2, 3]]).all()


@mark.parity("S-10")
@both
def test_a_formula_that_is_zero_gives_zeros(backend: str) -> None:
    u, v = variable(0, 3, I), variable(1, 3, J)
    nothing = _mul(zeros(1), _add(u, v))
    data = {0: np.full((4, 3), nan), 1: np.full((5, 3), nan)}
    for axis, count in ((1, 4), (0, 5)):
        (got,) = run(backend, Spec(nothing, "Sum", axis, "float64"), data)
        np.testing.assert_array_equal(got, np.zeros((count, 3)))
    gradient = node("Grad", u, v, v)  # the derivative of a formula without the variable
    (got,) = run(backend, Spec(gradient, "Sum", 1, "float64"), data)
    np.testing.assert_array_equal(got, np.zeros((4, 3)))


SIMPLER = [
    case(lambda: _mul(three, _mul(seven, x)), lambda: _mul(constant(21), x), id="constants"),
    case(lambda: _add(half, one), lambda: node("RatCst", params=(3, 2)), id="rationals"),
    case(lambda: node("Minus", node("Minus", x)), lambda: x, id="signs"),
    case(lambda: _mul(one, x), lambda: x, id="one"),
    case(lambda: _add(zeros(3), x), lambda: x, id="zero"),
    case(lambda: node("Extract", node("Concat", x, s), params=(0, 3)), lambda: x, id="cut"),
    case(lambda: node("Sum", s), lambda: s, id="sum of one"),
]


@mark.parametrize(("formula", "want"), SIMPLER)
def test_rules_reach_the_simple_form(formula: Callable[[], Expr], want: Callable[[], Expr]) -> None:
    assert simplified(formula()) is want()
    assert is_zero(simplified(_mul(zeros(1), formula())))


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(some.formulas(), some.seeds)
def test_random_formulas_keep_their_value(formula: Expr, seed: int) -> None:
    simple = simplified(formula)
    assert simple.dim == formula.dim
    assert simplified(simple).dim == formula.dim
    assert set(variables(simple)) <= set(variables(formula))
    arrays = some.arrays_for(variables(formula), 3, 4, seed)
    # Both shapes must be the same though inputs may have vanished: an all-j formula keeps the axis i.
    keep = _mul(zeros(1), _add(variable(50, 1, I), variable(51, 1, J)))
    arrays |= {50: np.zeros((3, 1)), 51: np.zeros((4, 1))}
    want, got = (
        reference.run(Spec(_add(f, keep), "Sum", 1, "float64"), arrays)[0] for f in (formula, simple)
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-11 * 4 * magnitude(formula, arrays))


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_simplifying_twice_is_simplifying_once(data: st.DataObject) -> None:
    once = simplified(data.draw(some.formulas(depth=3)))
    assert simplified(once) is once


FACTORED = [
    case(
        [[nan], [inf]], np.ones((0, 1)), [[0], [0]], "float64", id="empty", marks=mark.parity("S-08", "R-36")
    ),
    case([[2.0]], [[nan], [1.0]], [[nan]], "float64", id="nan", marks=mark.parity("S-08", "X-40")),
    case([[1e30]], [[1e-38], [3e-38]], [[4e-8]], "float32", id="tiny", marks=mark.parity("S-08")),
]


@mark.parametrize(("left", "right", "want", "dtype"), FACTORED)
@both
def test_a_factor_that_leaves_the_sum_keeps_its_value(
    backend: str, left: list, right: list, want: list, dtype: str
) -> None:
    product = _mul(variable(0, 1, I), variable(1, 1, J))
    data = {0: np.asarray(left, dtype), 1: np.asarray(right, dtype)}
    (got,) = run(backend, Spec(product, "Sum", 1, dtype), data)
    np.testing.assert_allclose(got, want, rtol=1e-6)
