"""Every pointwise operation: one declaration each.

`rule` is the scalar meaning, in the IR. Operands have one common dimension, or dimension 1, which
is broadcast. Conventions at special points (0, infinities, NaN) are those of docs/parity.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from farsum_kernels.errors import DimensionError, FormulaError
from farsum_kernels.formula.expr import Expr, Op, register
from farsum_kernels.formula.lower import Lowering, Vector
from farsum_kernels.scalar import ir


def same_or_one(name: str) -> Callable[..., int]:
    """The dims rule "equal, or 1": the output has the larger one."""

    def dims(*dims: int) -> int:
        top = max(dims)
        if any(d not in (1, top) for d in dims):
            raise DimensionError(
                f"{name} needs operands of equal dimension, or 1; received {' and '.join(map(str, dims))}"
            )
        return top

    return dims


def pointwise(name: str, arity: int, rule: Callable[..., ir.Val], *, params: int = 0, infix: str | None = None,
              check: Callable[..., None] | None = None) -> Op:  # fmt: skip
    """Declare an operation that acts on each component by itself."""
    common = same_or_one(name)

    def dims(*all_dims: Any) -> int:
        if check:
            check(*all_dims[arity:])
        return common(*all_dims[:arity])

    def lower(lowering: Lowering, node: Expr) -> Vector:
        operands = [lowering.vector(a) for a in node.args]
        return Vector(node.dim, lambda k: rule(*(v.at(k) for v in operands), *node.params))

    return register(Op(name, arity, dims, lower=lower, params=params, infix=infix))


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


def _int_exponent(n: Any) -> None:
    if type(n) is not int or abs(n) > 1 << 20:
        raise FormulaError(
            f"the exponent of Pow must be an int of at most 2**20, not {n!r}; use Powf for others"
        )


# fmt: off
add      = pointwise("Add",      2, lambda a, b: a + b, infix="+")
subtract = pointwise("Subtract", 2, lambda a, b: a - b, infix="-")
mult     = pointwise("Mult",     2, lambda a, b: a * b, infix="*")
divide   = pointwise("Divide",   2, lambda a, b: a / b, infix="/")
minus    = pointwise("Minus",    1, lambda x: -x)
square   = pointwise("Square",   1, lambda x: x * x)
inv      = pointwise("Inv",      1, lambda x: 1.0 / x)
exp      = pointwise("Exp",      1, ir.exp)
log      = pointwise("Log",      1, ir.log)
sin      = pointwise("Sin",      1, ir.sin)
cos      = pointwise("Cos",      1, ir.cos)
sqrt     = pointwise("Sqrt",     1, ir.sqrt)
rsqrt    = pointwise("Rsqrt",    1, _rsqrt)
absolute = pointwise("Abs",      1, ir.absolute)
pow_     = pointwise("Pow",      1, _pow, params=1, check=_int_exponent)
powf     = pointwise("Powf",     2, ir.power)
# fmt: on
