"""Every pointwise operation: one declaration each.

`rule` is the scalar meaning, in the IR. `grad(e, y, *args)` is the chain rule, in the formula language:
given the cotangent e of the output y, one cotangent per operand, None for zero; a cotangent may be
left as long as the output, it is summed for an operand of dimension 1. Operands have one common
dimension, or dimension 1, which is broadcast. Conventions at special points (0, infinities, NaN, ties)
are those of docs/parity.md: derivatives of distances stay finite at the origin.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import factorial
from typing import Any

from farsum_kernels.errors import DimensionError, FormulaError
from farsum_kernels.formula.expr import Expr, Op, constant, register
from farsum_kernels.formula.lower import Lowering, Vector
from farsum_kernels.formula.rewrite import add, div, make, mul, neg, rational, sub, zero
from farsum_kernels.scalar import ir

Grad = Callable[..., tuple[Expr | None, ...]]


def same_or_one(name: str) -> Callable[..., int]:
    """The dims rule "equal, or 1": the output has the larger one."""

    def dims(*dims: int) -> int:
        top = max(dims)
        if any(d not in (1, top) for d in dims):
            received = " and ".join(map(str, dims))
            raise DimensionError(f"{name} needs operands of equal dimension, or 1; received {received}")
        return top

    return dims


def pointwise(
    name: str,
    arity: int,
    rule: Callable[..., ir.Val],
    grad: Grad | None = None,
    *,
    params: int = 0,
    infix: str | None = None,
    check: Callable[..., None] | None = None,
    check_operands: Callable[..., None] | None = None,
) -> Op:
    """Declare an operation that acts on each component by itself. Without `grad` its derivative is zero."""
    common = same_or_one(name)

    def dims(*all_dims: Any) -> int:
        if check:
            check(*all_dims[arity:])
        return common(*all_dims[:arity])

    def lower(lowering: Lowering, node: Expr) -> Vector:
        operands = [lowering.vector(a) for a in node.args]
        return Vector(node.dim, lambda k: rule(*(v.at(k) for v in operands), *node.params))

    flat: Grad = lambda *_: (None,) * arity
    return register(
        Op(
            name,
            arity,
            dims,
            lower=lower,
            grad=grad or flat,
            check=check_operands,
            params=params,
            infix=infix,
        )
    )


# ── scalar rules that are longer than a line ──────────────────────────────────────────────────────


def _rsqrt(x: ir.Val) -> ir.Val:
    # 1/sqrt(0) counts as 0, so that gradients of distances stay finite at the origin.
    return ir.select(ir.equal(x, 0.0), 0.0, x.block.emit(ir.Prim.RSQRT, x))


def _pow(x: ir.Val, n: int) -> ir.Val:
    if n == 0:
        return x.block.constant(1.0)
    if abs(n) > 64:
        return ir.power(x, float(n))
    # Square and multiply.
    result, base, left = None, x, abs(n)
    while left:
        if left & 1:
            result = base if result is None else result * base
        left >>= 1
        base = base * base if left else base
    assert result is not None
    return 1.0 / result if n < 0 else result


def _indicator(mask: ir.Val) -> ir.Val:
    return ir.select(mask, 1.0, 0.0)


def _sign(x: ir.Val) -> ir.Val:
    return ir.select(x > 0.0, 1.0, ir.select(x < 0.0, -1.0, 0.0))


def _clamp(x: ir.Val, low: ir.Val | float, high: ir.Val | float) -> ir.Val:
    return ir.select(x < low, low, ir.select(x > high, high, x))


def _round(x: ir.Val, k: int) -> ir.Val:
    # Powers of ten up to 10^22 are exact in float64; scaling by their inverse would not be.
    scale = float(10 ** abs(k))
    if k == 0:
        return ir.nearest(x)
    return ir.nearest(x * scale) / scale if k > 0 else ir.nearest(x / scale) * scale


def _not_negative(x: ir.Val) -> ir.Val:
    return x.block.emit(ir.Prim.LE, 0.0, x)  # false for NaN


def _mod(x: ir.Val, n: ir.Val, offset: ir.Val) -> ir.Val:
    return x - n * ir.floor((x - offset) / n)


def _not(mask: ir.Val) -> ir.Val:
    return ir.select(mask, 0.0, 1.0)


# ── checks of literal parameters ──────────────────────────────────────────────────────────────────


def _int_exponent(n: Any) -> None:
    if type(n) is not int or abs(n) > 1 << 20:
        raise FormulaError(
            f"the exponent of Pow must be an int of at most 2**20, not {n!r}; use Powf for others"
        )


def _no_zero_divisor(a: Expr, b: Expr) -> None:
    if b.op.name == "Zero":
        raise FormulaError(f"division of {a} by zero")


def _decimals(k: Any) -> None:
    if type(k) is not int or abs(k) > 22:
        raise FormulaError(f"Round takes an int number of decimals from -22 to 22, not {k!r}")


def _int_bounds(a: Any, b: Any) -> None:
    if type(a) is not int or type(b) is not int or max(abs(a), abs(b)) > 1 << 53:
        raise FormulaError(f"ClampInt takes two int bounds, not {a!r} and {b!r}; use Clamp for others")


# ── derivatives that are longer than a line ───────────────────────────────────────────────────────


def _times(c: int, x: Expr) -> Expr:
    return mul(constant(c), x)


def _half(x: Expr) -> Expr:
    return mul(rational(Fraction(1, 2)), x)


def _one_over_root(x: Expr) -> Expr:
    """1/sqrt(1 - x²), counted as 0 at ±1."""
    return make("Rsqrt", sub(constant(1), make("Square", x)))


def _sinc_slope(x: Expr) -> Expr:
    """cos(x)/x - sin(x)/x²; near 0, where that cancels, its series Σ (-1)^n 2n x^(2n-1) / (2n+1)!."""
    square, series = make("Square", x), None
    for n in range(7, 0, -1):
        term = rational(Fraction((-1) ** n * 2 * n, factorial(2 * n + 1)))
        series = term if series is None else add(term, mul(square, series))
    assert series is not None
    far = sub(make("Abs", x), rational(Fraction(1, 2)))
    # Away from 0 even where it is not used: what is masked must have a finite derivative too.
    safe = make("IfElse", far, x, constant(1))
    direct = sub(div(make("Cos", safe), safe), div(make("Sin", safe), make("Square", safe)))
    return make("IfElse", far, direct, mul(x, series))


def _grad_pow(e: Expr, y: Expr, x: Expr, n: int) -> tuple[Expr | None, ...]:
    if n == 0:
        return (None,)
    power = x if n == 2 else make("Pow", x, params=(n - 1,)) if n != 1 else constant(1)
    return (mul(_times(n, e), power),)


def _grad_powf(e: Expr, y: Expr, x: Expr, p: Expr) -> tuple[Expr | None, ...]:
    base = mul(mul(e, p), make("Powf", x, sub(p, constant(1))))
    return base, mul(e, mul(make("Log", x), y))


def _grad_atan2(e: Expr, y: Expr, f: Expr, g: Expr) -> tuple[Expr | None, ...]:
    norm = add(make("Square", f), make("Square", g))
    return div(mul(e, g), norm), neg(div(mul(e, f), norm))


def _grad_clamp(e: Expr, y: Expr, f: Expr, a: Expr, b: Expr) -> tuple[Expr | None, ...]:
    below, above = make("LessThan", f, a), make("LessThan", b, f)
    low = mul(e, below)
    high = mul(e, mul(sub(constant(1), below), above))
    inside = sub(sub(e, low), high)
    # Between equal bounds f moves nothing.
    return mul(inside, make("NotEqual", a, b)), low, high


def _grad_ifelse(e: Expr, y: Expr, f: Expr, a: Expr, b: Expr) -> tuple[Expr | None, ...]:
    # The mask is applied to the cotangent, before it enters a branch.
    nothing = zero(1)
    return None, make("IfElse", f, e, nothing), make("IfElse", f, nothing, e)


def _grad_mod(e: Expr, y: Expr, f: Expr, n: Expr, o: Expr) -> tuple[Expr | None, ...]:
    return e, neg(mul(make("Floor", div(sub(f, o), n)), e)), None


# fmt: off
add_     = pointwise("Add",      2, lambda a, b: a + b, lambda e, y, a, b: (e, e), infix="+")
subtract = pointwise("Subtract", 2, lambda a, b: a - b, lambda e, y, a, b: (e, neg(e)), infix="-")
mult     = pointwise("Mult",     2, lambda a, b: a * b, lambda e, y, a, b: (mul(e, b), mul(e, a)), infix="*")
divide   = pointwise("Divide",   2, ir.quotient, lambda e, y, a, b: (div(e, b), neg(div(mul(e, y), b))), infix="/", check_operands=_no_zero_divisor)
minus    = pointwise("Minus",    1, lambda x: -x, lambda e, y, x: (neg(e),))
square   = pointwise("Square",   1, lambda x: x * x, lambda e, y, x: (mul(_times(2, e), x),))
inv      = pointwise("Inv",      1, lambda x: 1.0 / x, lambda e, y, x: (neg(mul(e, make("Square", y))),))
exp      = pointwise("Exp",      1, ir.exp, lambda e, y, x: (mul(e, y),))
log      = pointwise("Log",      1, ir.log, lambda e, y, x: (div(e, x),))
xlogx    = pointwise("XLogX",    1, lambda x: ir.select(ir.equal(x, 0.0), 0.0, x * ir.log(x)),
                                    lambda e, y, x: (mul(e, add(make("Log", x), constant(1))),))
sin      = pointwise("Sin",      1, ir.sin, lambda e, y, x: (mul(e, make("Cos", x)),))
cos      = pointwise("Cos",      1, ir.cos, lambda e, y, x: (neg(mul(e, make("Sin", x))),))
sinxdivx = pointwise("SinXDivX", 1, lambda x: ir.select(ir.equal(x, 0.0), 1.0, ir.sin(x) / x),
                                    lambda e, y, x: (mul(e, _sinc_slope(x)),))
asin     = pointwise("Asin",     1, ir.asin, lambda e, y, x: (mul(e, _one_over_root(x)),))
acos     = pointwise("Acos",     1, ir.acos, lambda e, y, x: (neg(mul(e, _one_over_root(x))),))
atan     = pointwise("Atan",     1, ir.atan, lambda e, y, x: (div(e, add(constant(1), make("Square", x))),))
sqrt     = pointwise("Sqrt",     1, ir.sqrt, lambda e, y, x: (mul(_half(e), make("Rsqrt", x)),))
rsqrt    = pointwise("Rsqrt",    1, _rsqrt, lambda e, y, x: (neg(mul(_half(e), make("Pow", y, params=(3,)))),))
absolute = pointwise("Abs",      1, ir.absolute, lambda e, y, x: (mul(e, make("Sign", x)),))
sign     = pointwise("Sign",     1, _sign)
step     = pointwise("Step",     1, lambda x: ir.select(x < 0.0, 0.0, 1.0))
relu     = pointwise("ReLU",     1, lambda x: ir.select(x < 0.0, 0.0, x), lambda e, y, x: (mul(e, make("Step", x)),))
floor    = pointwise("Floor",    1, ir.floor)
round_   = pointwise("Round",    1, _round, params=1, check=_decimals)
clampint = pointwise("ClampInt", 1, lambda x, a, b: _clamp(x, float(a), float(b)),
                                    lambda e, y, x, a, b: (mul(e, make("DiffClampInt", x, params=(a, b))),), params=2, check=_int_bounds)
inside   = pointwise("DiffClampInt", 1, lambda x, a, b: _not((x < float(a)) | (x > float(b))), params=2, check=_int_bounds)
pow_     = pointwise("Pow",      1, _pow, _grad_pow, params=1, check=_int_exponent)
powf     = pointwise("Powf",     2, ir.power, _grad_powf)
atan2    = pointwise("Atan2",    2, ir.atan2, _grad_atan2)
equal    = pointwise("Equal",    2, lambda a, b: _indicator(ir.equal(a, b)), infix="==")
differs  = pointwise("NotEqual", 2, lambda a, b: _not(ir.equal(a, b)), infix="!=")
less     = pointwise("LessThan", 2, lambda a, b: _indicator(a < b), infix="<")
at_most  = pointwise("LessOrEqual", 2, lambda a, b: _indicator(a <= b), infix="<=")
clamp    = pointwise("Clamp",    3, _clamp, _grad_clamp)
ifelse   = pointwise("IfElse",   3, lambda f, a, b: ir.select(_not_negative(f), a, b), _grad_ifelse)
mod      = pointwise("Mod",      3, _mod, _grad_mod)
# fmt: on
