"""Building formulas with simplification: one table of rules, applied to each new node.

Operands are simple already when a node is made, so applying the rules to the new node until none fits
is all there is to it. Each rule keeps the value of the formula, except that a product with a structural
`Zero` is zero whatever the other side is. `Zero` comes from differentiation (a term that does not
depend on the variable) and from users who write it; a computed 0 is never taken for one.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from farsum_kernels.formula.expr import CONST, Expr, constant, node, walk

Rule = Callable[[tuple[Expr, ...], tuple[Any, ...], int], Expr | None]
RULES: dict[str, list[Rule]] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """A simplification of nodes of these operations: gives the simpler formula, or None if it does not fit."""

    def add(simplify: Rule) -> Rule:
        for op in ops:
            RULES.setdefault(op, []).append(simplify)
        return simplify

    return add


def make(op: str, *args: Expr, params: tuple[Any, ...] = ()) -> Expr:
    """The node op(*args, *params), simplified."""
    made = node(op, *args, params=params)
    for simplify in RULES.get(op, ()):
        if (simpler := simplify(args, params, made.dim)) is not None:
            return simpler
    return made


# ── vocabulary of the rules and of the derivatives ────────────────────────────────────────────────


# fmt: off
def add(a: Expr, b: Expr) -> Expr: return make("Add", a, b)
def sub(a: Expr, b: Expr) -> Expr: return make("Subtract", a, b)
def mul(a: Expr, b: Expr) -> Expr: return make("Mult", a, b)
def div(a: Expr, b: Expr) -> Expr: return make("Divide", a, b)
def neg(a: Expr) -> Expr: return make("Minus", a)
def total(a: Expr) -> Expr: return make("Sum", a)
def zero(dim: int) -> Expr: return node("Zero", params=(dim,))
def is_zero(a: Expr) -> bool: return a.op.name == "Zero"
# fmt: on


def spread(a: Expr, dim: int) -> Expr:
    """A scalar repeated to `dim` entries; anything else as it is."""
    return make("SumT", a, params=(dim,)) if a.dim == 1 and dim > 1 else a


def exact(a: Expr) -> Fraction | None:
    """The value of an integer or rational constant."""
    if a.op is CONST and isinstance(a.params[0], int):
        return Fraction(a.params[0])
    if a.op.name == "RatCst":
        return Fraction(*a.params)
    return None


def rational(value: Fraction | int) -> Expr:
    """A constant, exact in the data dtype up to its own rounding."""
    value = Fraction(value)
    if value.denominator == 1:
        return constant(int(value))
    return node("RatCst", params=(value.numerator, value.denominator))


def _small(value: Fraction) -> bool:
    return max(abs(value.numerator), value.denominator) < 1 << 53


# ── the table ─────────────────────────────────────────────────────────────────────────────────────


def _folded(op: str, combine: Callable[[Fraction, Fraction], Fraction]) -> None:
    @rule(op)
    def _(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
        a, b = exact(args[0]), exact(args[1])
        if a is None or b is None or (op == "Divide" and b == 0):
            return None
        value = combine(a, b)
        return rational(value) if _small(value) else None


_folded("Add", lambda a, b: a + b)
_folded("Subtract", lambda a, b: a - b)
_folded("Mult", lambda a, b: a * b)
_folded("Divide", lambda a, b: a / b)


@rule("Add")
def _add_zero(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
    a, b = args
    if is_zero(a):
        return spread(b, dim)
    return spread(a, dim) if is_zero(b) else None


@rule("Add")
def _add_itself(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
    return mul(constant(2), args[0]) if args[0] is args[1] else None


@rule("Add")
def _add_negative(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
    a, b = args
    if b.op.name == "Minus":
        return sub(a, b.args[0])
    return sub(b, a.args[0]) if a.op.name == "Minus" else None


@rule("Subtract")
def _subtract_zero(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
    a, b = args
    if is_zero(b):
        return spread(a, dim)
    return spread(neg(b), dim) if is_zero(a) else None


@rule("Minus")
def _minus_twice(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
    (a,) = args
    if a.op.name == "Minus":
        return a.args[0]
    if is_zero(a):
        return a
    value = exact(a)
    return None if value is None else rational(-value)


@rule("Mult")
def _times_zero(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
    return zero(dim) if is_zero(args[0]) or is_zero(args[1]) else None


@rule("Mult")
def _times_one(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
    for one, other in (args, args[::-1]):
        match exact(one):
            case Fraction(numerator=1, denominator=1):
                return spread(other, dim)
            case Fraction(numerator=-1, denominator=1):
                return spread(neg(other), dim)
    return None


@rule("Mult")
def _signs_come_out(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
    a, b = args
    if a.op.name == "Minus":
        return neg(mul(a.args[0], b))
    return neg(mul(a, b.args[0])) if b.op.name == "Minus" else None


@rule("Mult")
def _constants_meet(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
    for c, other in (args, args[::-1]):
        value = exact(c)
        if value is None or other.op.name != "Mult":
            continue
        for d, rest in (other.args, other.args[::-1]):
            inner = exact(d)
            if inner is not None and _small(value * inner):
                return spread(mul(rational(value * inner), rest), dim)
    return None


@rule("Mult")
def _product_of_exponentials(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
    # One exponential instead of two, and no overflow halfway.
    a, b = args
    if a.op.name == b.op.name == "Exp":
        return make("Exp", add(a.args[0], b.args[0]))
    return None


@rule("Mult")
def _square(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
    return make("Square", args[0]) if args[0] is args[1] else None


@rule("Divide")
def _zero_over(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
    a, b = args
    if is_zero(a):
        return zero(dim)
    return spread(a, dim) if exact(b) == 1 else None


@rule("Sum")
def _sum_of_simple(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
    (a,) = args
    if a.dim == 1:
        return a
    if is_zero(a):
        return zero(1)
    if a.op.name == "SumT":
        return mul(constant(a.dim), a.args[0])
    if a.op.name == "Minus":
        return neg(total(a.args[0]))
    if a.op.name == "Mult":
        for scalar, vector in (a.args, a.args[::-1]):
            if scalar.dim == 1:
                return mul(scalar, total(vector))
    return None


@rule("Scalprod")
def _scalar_product_of_simple(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
    if is_zero(args[0]) or is_zero(args[1]):
        return zero(1)
    for scalar, vector in (args, args[::-1]):
        if scalar.dim == 1:
            return mul(scalar, total(vector))
        if scalar.op.name == "SumT":
            return mul(scalar.args[0], total(vector))
    return None


@rule(
    "Concat",
    "BasisSum",
    "SumT",
    "ExtractT",
    "Extract",
    "Interleave",
    "ComplexReal",
    "ComplexImag",
    "Sqrt",
    "Sin",
    "Abs",
    "TensorDot",
)
def _of_zero(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
    # f(0, …) = 0; a product needs one zero factor, the others need all.
    return zero(dim) if all(map(is_zero, args)) else None


@rule("IfElse")
def _either_zero(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
    return zero(dim) if is_zero(args[1]) and is_zero(args[2]) else None


@rule("TensorDot")
def _product_with_zero(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
    return zero(dim) if any(map(is_zero, args)) else None


@rule("SumT")
def _spread_to_one(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
    return args[0] if dim == 1 else None


@rule("Extract")
def _whole_extract(args: tuple[Expr, ...], params: tuple[Any, ...], dim: int) -> Expr | None:
    (a,) = args
    start = params[0]
    if dim == a.dim:
        return a
    if a.op.name == "Concat":
        first = a.args[0].dim
        if start + dim <= first:
            return make("Extract", a.args[0], params=params)
        if start >= first:
            return make("Extract", a.args[1], params=(start - first, dim))
    return None


def simplified(root: Expr) -> Expr:
    """The formula rebuilt through the rules: equal in value, canonical in form."""
    new: dict[Expr, Expr] = {}
    for expr in walk(root):
        new[expr] = (
            make(expr.op.name, *(new[a] for a in expr.args), params=expr.params) if expr.args else expr
        )
    return new[root]
