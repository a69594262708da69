"""Leaves that are no input: structural zero, rationals, the number of a row."""

from __future__ import annotations

from math import gcd
from typing import Any

from farsum_kernels.errors import FormulaError
from farsum_kernels.formula.expr import VAR, Expr, I, J, Op, register
from farsum_kernels.formula.lower import Lowering, Vector
from farsum_kernels.scalar import ir


def _zero(lowering: Lowering, node: Expr) -> Vector:
    return Vector(node.dim, lambda k: lowering.block.zero())


def _length(dim: Any) -> int:
    if type(dim) is not int:
        raise FormulaError(f"Zero takes an int dimension, not {dim!r}")
    return dim


def _ratio(p: Any, q: Any) -> int:
    if type(p) is not int or type(q) is not int or q < 2 or gcd(p, q) != 1 or max(abs(p), q) > 1 << 53:
        raise FormulaError(
            f"RatCst takes a fraction of two ints in lowest terms, at most 2**53, the second above 1; "
            f"received {p!r} and {q!r}"
        )
    return 1


def _rational(lowering: Lowering, node: Expr) -> Vector:
    value = lowering.block.constant(node.params[0] / node.params[1])
    return Vector(1, lambda k: value)


def _row(lowering: Lowering, node: Expr) -> Vector:
    category = node.args[0].params[2]
    value = lowering.block.row(ir.I if category == I else ir.J)
    return Vector(1, lambda k: value)


def _of_rows(v: Expr) -> None:
    if v.op is not VAR or v.params[2] not in (I, J):
        raise FormulaError(f"RowIndex takes a variable with rows, x_i or y_j, not {v}")


zero = register(Op("Zero", 0, _length, lower=_zero, grad=lambda *_: (), params=1))
rational = register(Op("RatCst", 0, _ratio, lower=_rational, grad=lambda *_: (), params=2))
row = register(Op("RowIndex", 1, lambda d: 1, lower=_row, grad=lambda *_: (None,), check=_of_rows))
