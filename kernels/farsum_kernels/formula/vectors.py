"""Every operation that changes the vector dimension: one declaration each."""

from __future__ import annotations

from collections.abc import Callable

from farsum_kernels.errors import DimensionError
from farsum_kernels.formula import pointwise
from farsum_kernels.formula.expr import Expr, Op, node, register
from farsum_kernels.formula.lower import Lowering, Vector
from farsum_kernels.formula.pointwise import same_or_one


def _one(*dims: int) -> int:
    return 1


def _sum(lowering: Lowering, expr: Expr) -> Vector:
    (operand,) = (lowering.vector(a) for a in expr.args)
    return Vector(1, lambda k: lowering.sum(operand, operand.dim, k))


total = register(Op("Sum", 1, _one, lower=_sum))


def _scalar_product_dims(a: int, b: int) -> int:
    if a != b and 1 not in (a, b):
        raise DimensionError(f"the scalar product needs operands of the same dimension; received {a} and {b}")
    return 1


def _scalar_product(a: Expr, b: Expr) -> Expr:
    return node(total, node(pointwise.mult, a, b))


def _broadcast_then_one(name: str) -> Callable[[int, int], int]:
    common = same_or_one(name)
    return lambda a, b: min(1, common(a, b))


def _sqnorm2(x: Expr) -> Expr:
    return node(total, node(pointwise.square, x))


# fmt: off
scalprod  = register(Op("Scalprod",  2, _scalar_product_dims, expand=_scalar_product, infix="|"))
sqnorm2   = register(Op("SqNorm2",   1, _one, expand=_sqnorm2))
norm2     = register(Op("Norm2",     1, _one, expand=lambda x: node(pointwise.sqrt, _sqnorm2(x))))
normalize = register(Op("Normalize", 1, lambda d: d,
                        expand=lambda x: node(pointwise.mult, x, node(pointwise.rsqrt, _sqnorm2(x)))))
sqdist    = register(Op("SqDist",    2, _broadcast_then_one("SqDist"),
                        expand=lambda x, y: _sqnorm2(node(pointwise.subtract, x, y))))
# fmt: on
