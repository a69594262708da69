"""Complex vectors: interleaved (re, im) pairs of reals. Every operation is a formula of its real parts.

Dimensions count reals. The derivative is that of the real embedding, which is torch's convention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from farsum_kernels.errors import DimensionError, FormulaError
from farsum_kernels.formula.expr import Expr, Op, register
from farsum_kernels.formula.rewrite import add, div, make, mul, neg, spread, sub, zero


def re(f: Expr) -> Expr:
    return make("ComplexReal", f)


def im(f: Expr) -> Expr:
    return make("ComplexImag", f)


def pairs(real: Expr, imag: Expr) -> Expr:
    dim = max(real.dim, imag.dim)
    return make("Interleave", spread(real, dim), spread(imag, dim))


def _even(name: str, *dims: int) -> None:
    for d in dims:
        if d % 2:
            raise DimensionError(f"{name}: a complex vector has an even number of reals; received {d}")


def _same(name: str) -> Callable[[int], int]:
    def dims(d: int) -> int:
        _even(name, d)
        return d

    return dims


def _halved(name: str) -> Callable[[int], int]:
    return lambda d: _same(name)(d) // 2


def _common(name: str) -> Callable[[int, int], int]:
    def dims(a: int, b: int) -> int:
        _even(name, a, b)
        if a != b and 2 not in (a, b):
            raise DimensionError(
                f"{name} needs complex vectors of one dimension, or a complex scalar; received {a} and {b}"
            )
        return max(a, b)

    return dims


def _scaled_dims(a: int, b: int) -> int:
    if a != 1 and b != 1:
        raise DimensionError(f"ComplexRealScal needs a real scalar of dimension 1; received {a} and {b}")
    top = max(a, b)
    _even("ComplexRealScal", top)
    return top


def _sum_t_dims(d: int, length: Any) -> int:
    if d != 2 or type(length) is not int or length < 2 or length % 2:
        raise FormulaError(
            f"ComplexSumT repeats one complex scalar to an even number of reals; received {d} and {length!r}"
        )
    return int(length)


def _times(f: Expr, g: Expr) -> Expr:
    a, b, c, d = re(f), im(f), re(g), im(g)
    return pairs(sub(mul(a, c), mul(b, d)), add(mul(a, d), mul(b, c)))


def _square_abs(f: Expr) -> Expr:
    return add(make("Square", re(f)), make("Square", im(f)))


def _over(f: Expr, g: Expr) -> Expr:
    product = _times(f, make("Conj", g))
    size = _square_abs(g)
    return pairs(div(re(product), size), div(im(product), size))


def _exp(f: Expr) -> Expr:
    size = make("Exp", re(f))
    return pairs(mul(size, make("Cos", im(f))), mul(size, make("Sin", im(f))))


def _scaled(f: Expr, g: Expr) -> Expr:
    # Both of dimension 2 or more cannot be: one is a real scalar, and multiplies every entry alike.
    return mul(f, g)


def _both(combine: Callable[[Expr, Expr], Expr]) -> Callable[[Expr, Expr], Expr]:
    return lambda f, g: pairs(combine(re(f), re(g)), combine(im(f), im(g)))


# fmt: off
from_real  = register(Op("Real2Complex",    1, lambda d: 2 * d, expand=lambda f: make("Interleave", f, zero(f.dim))))
from_imag  = register(Op("Imag2Complex",    1, lambda d: 2 * d, expand=lambda f: make("Interleave", zero(f.dim), f)))
conj       = register(Op("Conj",            1, _same("Conj"), expand=lambda f: pairs(re(f), neg(im(f)))))
c_add      = register(Op("ComplexAdd",      2, _common("ComplexAdd"), expand=_both(add)))
c_sub      = register(Op("ComplexSubtract", 2, _common("ComplexSubtract"), expand=_both(sub)))
c_mul      = register(Op("ComplexMult",     2, _common("ComplexMult"), expand=_times))
c_div      = register(Op("ComplexDivide",   2, _common("ComplexDivide"), expand=_over))
c_scale    = register(Op("ComplexRealScal", 2, _scaled_dims, expand=_scaled))
c_sqabs    = register(Op("ComplexSquareAbs", 1, _halved("ComplexSquareAbs"), expand=_square_abs))
c_abs      = register(Op("ComplexAbs",      1, _halved("ComplexAbs"), expand=lambda f: make("Sqrt", _square_abs(f))))
c_angle    = register(Op("ComplexAngle",    1, _halved("ComplexAngle"), expand=lambda f: make("Atan2", im(f), re(f))))
c_exp      = register(Op("ComplexExp",      1, _same("ComplexExp"), expand=_exp))
c_exp1j    = register(Op("ComplexExp1j",    1, lambda d: 2 * d, expand=lambda f: make("Interleave", make("Cos", f), make("Sin", f))))
c_sum      = register(Op("ComplexSum",      1, lambda d: _same("ComplexSum")(d) and 2, expand=lambda f: pairs(make("Sum", re(f)), make("Sum", im(f)))))
c_sum_t    = register(Op("ComplexSumT",     1, _sum_t_dims, expand=lambda f, n: pairs(spread(re(f), n // 2), spread(im(f), n // 2)), params=1))
# fmt: on
