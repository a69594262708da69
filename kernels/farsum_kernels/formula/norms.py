"""Norms, distances and scalar products: formulas of simpler operations, with names of their own."""

from __future__ import annotations

from collections.abc import Callable

from farsum_kernels.errors import DimensionError
from farsum_kernels.formula.expr import Expr, Op, register
from farsum_kernels.formula.pointwise import same_or_one
from farsum_kernels.formula.rewrite import make, mul, sub, total


def _one(*dims: int) -> int:
    return 1


def _scalar_product_dims(a: int, b: int) -> int:
    if a != b and 1 not in (a, b):
        raise DimensionError(f"the scalar product needs operands of the same dimension; received {a} and {b}")
    return 1


def _broadcast_then_one(name: str) -> Callable[[int, int], int]:
    common = same_or_one(name)
    return lambda a, b: min(1, common(a, b))


def _scalar_product(f: Expr, g: Expr) -> Expr:
    # A scalar beside a vector multiplies the sum of its entries.
    if f.dim == 1 or g.dim == 1:
        return mul(total(f), total(g))
    return total(mul(f, g))


def sqnorm2(x: Expr) -> Expr:
    return total(make("Square", x))


def _weighted_dims(s: int, d: int) -> int:
    if s not in (1, d, d * d):
        raise DimensionError(
            f"the weight of a norm of a vector of dimension {d} has dimension 1, {d} or {d * d}; received {s}"
        )
    return 1


def _full_dims(s: int, d: int) -> int:
    if s != d * d:
        raise DimensionError(f"SymSqNorm needs a matrix of {d} × {d} entries; received {s}")
    return 1


def _weighted(s: Expr, f: Expr) -> Expr:
    if s.dim == 1:
        return mul(s, sqnorm2(f))
    if s.dim == f.dim:
        return total(mul(s, make("Square", f)))
    return _full(s, f)


def _full(a: Expr, f: Expr) -> Expr:
    return make("Scalprod", f, make("MatVecMult", a, f))


def _weighted_distance_dims(s: int, f: int, g: int) -> int:
    return _weighted_dims(s, same_or_one("WeightedSqDist")(f, g))


# fmt: off
scalprod  = register(Op("Scalprod",  2, _scalar_product_dims, expand=_scalar_product, infix="|"))
sqnorm2_  = register(Op("SqNorm2",   1, _one, expand=sqnorm2))
norm2     = register(Op("Norm2",     1, _one, expand=lambda x: make("Sqrt", sqnorm2(x))))
normalize = register(Op("Normalize", 1, lambda d: d, expand=lambda x: mul(x, make("Rsqrt", sqnorm2(x)))))
sqdist    = register(Op("SqDist",    2, _broadcast_then_one("SqDist"), expand=lambda x, y: sqnorm2(sub(x, y))))
iso       = register(Op("SqNormIso",  2, lambda s, d: s, expand=lambda s, f: mul(s, sqnorm2(f))))
diag      = register(Op("SqNormDiag", 2, _broadcast_then_one("SqNormDiag"), expand=lambda s, f: total(mul(s, make("Square", f)))))
full      = register(Op("SymSqNorm",  2, _full_dims, expand=_full))
weighted  = register(Op("WeightedSqNorm", 2, _weighted_dims, expand=_weighted))
distance  = register(Op("WeightedSqDist", 3, _weighted_distance_dims, expand=lambda s, f, g: _weighted(s, sub(f, g))))
# fmt: on
