"""Every operation that cuts, joins or folds the vector dimension: one declaration each.

A vector is pulled component by component (formula/lower.py); a component k may be a loop counter, so
each rule works on indices, and out-of-range operands are never read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from farsum_kernels.errors import DimensionError, FormulaError
from farsum_kernels.formula.expr import Expr, Op, register
from farsum_kernels.formula.lower import Lowering, Vector
from farsum_kernels.formula.rewrite import make, mul, spread, total
from farsum_kernels.scalar import ir
from farsum_kernels.scalar.indices import Affine
from farsum_kernels.scalar.ir import Val


def _one(*dims: int) -> int:
    return 1


def _ints(name: str, *values: Any) -> None:
    if any(type(v) is not int for v in values):
        raise FormulaError(f"{name} takes int parameters, not {', '.join(map(repr, values))}")


def _operand(lowering: Lowering, node: Expr) -> Vector:
    return lowering.vector(node.args[0])


# ── folds ─────────────────────────────────────────────────────────────────────────────────────────


def _sum(lowering: Lowering, node: Expr) -> Vector:
    operand = _operand(lowering, node)
    return Vector(1, lambda k: lowering.sum(operand.at, operand.dim, k))


def _extremum(how: str) -> Callable[[Lowering, Expr], Vector]:
    def lower(lowering: Lowering, node: Expr) -> Vector:
        operand = _operand(lowering, node)
        return Vector(1, lambda k: lowering.extremum(how, operand.at, operand.dim, k))

    return lower


def _grad_extremum(place: str) -> Callable[..., tuple[Expr | None, ...]]:
    # All of e goes to the first extremum.
    return lambda e, y, x: (mul(make("OneHot", make(place, x), params=(x.dim,)), e),)


# ── repeat, cut, embed, join ──────────────────────────────────────────────────────────────────────


def _needs_scalar(name: str, dim: int) -> None:
    if dim != 1:
        raise DimensionError(f"{name} needs an operand of dimension 1; received {dim}")


def _spread_dims(dim: int, length: Any) -> int:
    _ints("SumT", length)
    _needs_scalar("SumT", dim)
    return int(length)


def _spread(lowering: Lowering, node: Expr) -> Vector:
    operand = _operand(lowering, node)
    return Vector(node.dim, lambda k: operand.at(0))


def _extract_dims(dim: int, start: Any, length: Any) -> int:
    _ints("Extract", start, length)
    if not (start >= 0 and length >= 1 and start + length <= dim):
        raise DimensionError(
            f"Extract takes entries {start} to {start + length - 1} of a vector of dimension {dim}"
        )
    return int(length)


def _extract(lowering: Lowering, node: Expr) -> Vector:
    operand, start = _operand(lowering, node), node.params[0]
    return Vector(node.dim, lambda k: operand.at(k + start if operand.dim > 1 else 0))


def _embed_dims(dim: int, start: Any, length: Any) -> int:
    _ints("ExtractT", start, length)
    if not (start >= 0 and start + dim <= length):
        raise DimensionError(f"ExtractT puts {dim} entries at {start} into a vector of dimension {length}")
    return int(length)


def _elem_dims(dim: int, place: Any) -> int:
    _ints("Elem", place)
    if not 0 <= place < dim:
        raise DimensionError(f"Elem takes entry {place} of a vector of dimension {dim}")
    return 1


def _elem_t_dims(dim: int, length: Any, place: Any) -> int:
    _needs_scalar("ElemT", dim)
    return _embed_dims(dim, place, length)


def between(lowering: Lowering, k: Affine, low: int, high: int, value: Callable[[Affine], Val]) -> Val:
    """value(k - low) where low <= k < high, else a structural zero."""
    first, last = k.bounds
    if last < low or first >= high:
        return lowering.block.zero()
    inner = value((k - low).clip(high - low - 1))
    if low <= first and last < high:
        return inner
    place = lowering.block.place(k)
    return ir.select((place < float(low)) | (place > float(high - 1)), lowering.block.zero(), inner)


def _embed(lowering: Lowering, node: Expr) -> Vector:
    operand, start = _operand(lowering, node), node.params[0]
    return Vector(node.dim, lambda k: between(lowering, k, start, start + operand.dim, operand.at))


def _concat(lowering: Lowering, node: Expr) -> Vector:
    first, second = (lowering.vector(a) for a in node.args)

    def at(k: Affine) -> Val:
        low, high = k.bounds
        if high < first.dim:
            return first.at(k)
        if low >= first.dim:
            return second.at(k - first.dim)
        left, right = first.at(k.clip(first.dim - 1)), second.at((k - first.dim).clip(second.dim - 1))
        return ir.select(lowering.block.place(k) < float(first.dim), left, right)

    return Vector(node.dim, at)


def _grad_concat(e: Expr, y: Expr, f: Expr, g: Expr) -> tuple[Expr | None, ...]:
    e = spread(e, y.dim)
    return make("Extract", e, params=(0, f.dim)), make("Extract", e, params=(f.dim, g.dim))


def _one_hot_dims(dim: int, length: Any) -> int:
    _ints("OneHot", length)
    _needs_scalar("OneHot", dim)
    if length < 1:
        raise DimensionError(f"OneHot gives at least one entry, not {length}")
    return int(length)


def _one_hot(lowering: Lowering, node: Expr) -> Vector:
    operand = _operand(lowering, node)

    def at(k: Affine) -> Val:
        # The index is f + 0.5, cut towards zero: -0.7 counts as 0. Outside the range all entries are 0.
        shifted = operand.at(0) + 0.5
        cut = ir.select(shifted < 0.0, -ir.floor(-shifted), ir.floor(shifted))
        return ir.select(ir.equal(cut, lowering.block.place(k)), 1.0, 0.0)

    return Vector(node.dim, at)


# ── every other entry, and back ───────────────────────────────────────────────────────────────────


def _half_dims(dim: int) -> int:
    if dim % 2:
        raise DimensionError(f"a complex vector has an even number of reals; received {dim}")
    return dim // 2


def _every_other(start: int) -> Callable[[Lowering, Expr], Vector]:
    def lower(lowering: Lowering, node: Expr) -> Vector:
        operand = _operand(lowering, node)
        return Vector(node.dim, lambda k: operand.at(k * 2 + start))

    return lower


def _interleave_dims(a: int, b: int) -> int:
    if a != b:
        raise DimensionError(f"real and imaginary parts need one dimension; received {a} and {b}")
    return 2 * a


def _interleave(lowering: Lowering, node: Expr) -> Vector:
    even, odd = (lowering.vector(a) for a in node.args)

    def at(k: Affine) -> Val:
        half, rest = k.div(2), k.mod(2)
        if not rest.terms:
            return (odd if rest.base else even).at(half)
        return ir.select(ir.equal(lowering.block.place(rest), 0.0), even.at(half), odd.at(half))

    return Vector(node.dim, at)


def _parts(e: Expr, y: Expr) -> tuple[Expr, Expr]:
    e = spread(e, y.dim)
    return make("ComplexReal", e), make("ComplexImag", e)


def _zero(dim: int) -> Expr:
    return make("Zero", params=(dim,))


# fmt: off
sum_      = register(Op("Sum",      1, _one, lower=_sum, grad=lambda e, y, x: (spread(e, x.dim),)))
sum_t     = register(Op("SumT",     1, _spread_dims, lower=_spread, grad=lambda e, y, x, n: (total(spread(e, n)),), params=1))
max_      = register(Op("Max",      1, _one, lower=_extremum("max"), grad=_grad_extremum("ArgMax")))
min_      = register(Op("Min",      1, _one, lower=_extremum("min"), grad=_grad_extremum("ArgMin")))
argmax    = register(Op("ArgMax",   1, _one, lower=_extremum("argmax"), grad=lambda *_: (None,)))
argmin    = register(Op("ArgMin",   1, _one, lower=_extremum("argmin"), grad=lambda *_: (None,)))
extract   = register(Op("Extract",  1, _extract_dims, lower=_extract, params=2,
                        grad=lambda e, y, x, s, n: (make("ExtractT", spread(e, n), params=(s, x.dim)),)))
embed     = register(Op("ExtractT", 1, _embed_dims, lower=_embed, params=2,
                        grad=lambda e, y, x, s, n: (make("Extract", spread(e, n), params=(s, x.dim)),)))
elem      = register(Op("Elem",     1, _elem_dims, params=1,
                        expand=lambda x, m: make("Extract", x, params=(m, 1))))
elem_t    = register(Op("ElemT",    1, _elem_t_dims, params=2,
                        expand=lambda x, n, m: make("ExtractT", x, params=(m, n))))
concat    = register(Op("Concat",   2, lambda a, b: a + b, lower=_concat, grad=_grad_concat))
one_hot   = register(Op("OneHot",   1, _one_hot_dims, lower=_one_hot, grad=lambda *_: (None,), params=1))

real      = register(Op("ComplexReal", 1, _half_dims, lower=_every_other(0),
                        grad=lambda e, y, x: (make("Interleave", spread(e, y.dim), _zero(y.dim)),)))
imag      = register(Op("ComplexImag", 1, _half_dims, lower=_every_other(1),
                        grad=lambda e, y, x: (make("Interleave", _zero(y.dim), spread(e, y.dim)),)))
weave     = register(Op("Interleave",  2, _interleave_dims, lower=_interleave, grad=lambda e, y, a, b: _parts(e, y)))
# fmt: on
