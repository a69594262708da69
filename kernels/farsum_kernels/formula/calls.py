"""What Name(a,b,…) means in the string language: the operations of the table, and those written in a way of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import TYPE_CHECKING, Any

from farsum_kernels.errors import FormulaError, UnknownOperation
from farsum_kernels.formula.aliases import Argument
from farsum_kernels.formula.expr import MAX_DIM, OPS, VAR, Expr, I, J, fictitious, node, op_named, variables
from farsum_kernels.formula.reductions import reduction_named
from farsum_kernels.formula.rewrite import rational
from farsum_kernels.formula.tokens import Token

if TYPE_CHECKING:
    from farsum_kernels.formula.parser import Parser

# Names that users look for, and what to write.
INSTEAD = {
    "ComplexScal": "ComplexMult(f,g) for a complex scalar, ComplexRealScal(f,g) for a real one",
    "Tan": "Sin(f)/Cos(f)",
    "Sigmoid": "1/(1+Exp(-f))",
    "Log1p": "Log(1+f)",
    "Expm1": "Exp(f)-1",
    "Ceil": "-Floor(-f)",
    "abs": "Abs(f)",
    "sum": "Sum(f) for the sum of the entries of f",
}


@dataclass(frozen=True, slots=True)
class Reduced:
    """A text whose outermost operation is a reduction, e.g. Sum_Reduction(f,0).

    axis   1 reduces over j, 0 over i
    """

    name: str
    axis: int
    formula: Expr
    weight: Expr | None = None
    k: int = 0


@dataclass(frozen=True, slots=True)
class Term:
    """A part of the text and what it means.

    value   a formula; a Fraction for an int literal, or for ints combined; a tuple of ints; a tuple of
            formulas; a reduction
    """

    value: Expr | Fraction | tuple[Any, ...] | Reduced
    start: int
    end: int


class Call:
    """An operation and the terms between its parentheses."""

    def __init__(self, parser: Parser, name: Token, terms: list[Term]) -> None:
        self.parser, self.token, self.name, self.terms = parser, name, name.text, terms

    def meaning(self) -> Expr | tuple[Any, ...] | Reduced:
        if special := SPECIAL.get(self.name):
            return special(self)
        if self.name.endswith("_Reduction"):
            return _reduction(self)
        if self.name in INSTEAD and self.name not in OPS:
            raise self.error(f"unknown operation {self.name!r}; write {INSTEAD[self.name]}", UnknownOperation)
        try:
            op = op_named(self.name)
        except UnknownOperation as error:
            raise self.error(str(error), UnknownOperation) from None
        self.count(op.arity + op.params, _usage(self.name, op.arity, op.params))
        params = tuple(self.parser.literal(t) for t in self.terms[op.arity :])
        return self.made(self.terms[: op.arity], params)

    def error(self, message: str, kind: type[FormulaError] = FormulaError) -> FormulaError:
        return self.parser.source.error(message, self.token.at, kind)

    def count(self, counts: int | tuple[int, ...], usage: str) -> None:
        if len(self.terms) not in (counts if isinstance(counts, tuple) else (counts,)):
            raise self.error(f"expected {usage}; {self.name} received {len(self.terms)} operands")

    def ints(self, usage: str) -> list[int]:
        """The terms, all of them int literals, as many as the usage shows."""
        self.count(usage.count(",") + 1, usage)
        return [self.parser.whole_number(t) for t in self.terms]

    def made(self, terms: Sequence[Term], params: tuple[Any, ...] = ()) -> Expr:
        return self.parser.node(self.name, terms, self.token.at, params)

    def one(self) -> Term:
        """The literal 1, for an operand that was left out."""
        return Term(Fraction(1), self.token.at, self.token.end)

    def built(self, op: str, *operands: Expr, params: tuple[Any, ...] = ()) -> Expr:
        """A node that the text does not show; its errors show this place."""
        try:
            return node(op, *operands, params=params)
        except FormulaError as error:
            raise self.error(str(error), type(error)) from None

    def declared(self, argument: Argument) -> Expr:
        """The variable of an argument that the formula itself declares."""
        try:
            return self.parser.arguments.add(argument)
        except FormulaError as error:
            raise self.error(str(error), type(error)) from None


def _usage(name: str, arity: int, params: int) -> str:
    words = [
        *("fgh"[:arity] if arity <= 3 else (f"f{n}" for n in range(arity))),
        *(f"int{n}" for n in range(params)),
    ]
    return f"{name}({','.join(words)})"


# ── operations that are written in a way of their own ─────────────────────────────────────────────


def _var(call: Call) -> Expr:
    index, dim, category = call.ints("Var(index,dimension,category)")
    if index >= 0:
        return call.declared(Argument(index, dim, category))
    if not (index >= -1024 and 1 <= dim <= MAX_DIM and category in (0, 1, 2)):
        raise call.error(f"Var({index},{dim},{category}) is out of range")
    return fictitious(index, dim)


def _ratio(call: Call, p: int, q: int) -> Expr:
    if q == 0:
        raise call.error("division by zero")
    return rational(Fraction(p, q)) if p else node("Zero", params=(1,))


def _int_constant(call: Call) -> Expr:
    return _ratio(call, call.ints("IntCst(n)")[0], 1)


def _int_inverse(call: Call) -> Expr:
    return _ratio(call, 1, call.ints("IntInv(n)")[0])


def _rational(call: Call) -> Expr:
    p, q = call.ints("RatCst(p,q)")
    return _ratio(call, p, q)


def _index_list(call: Call) -> tuple[int, ...]:
    return tuple(call.parser.whole_number(t) for t in call.terms)


def _grad(call: Call) -> Expr:
    call.count((2, 3), "Grad(f,v) or Grad(f,v,e)")
    if len(call.terms) == 3:
        return call.made(call.terms)
    f, v = map(call.parser.lifted, call.terms)
    if v.op is not VAR or v.params[2] not in (I, J):
        raise call.error("Grad(f,v) needs a variable v of x_i or y_j; for others write Grad(f,v,e)")
    # The cotangent is an argument of its own: the next position, rows along the other axis.
    place = 1 + max(variables(f, v))
    implicit = Argument(place, f.dim, 1 - v.params[2])
    e = call.declared(implicit)
    return call.built("Grad", f, v, e)


def _diff(call: Call) -> Expr:
    call.count(3, "Diff(f,v,u), or Diff(f,(v,w),(a,b))")
    f, vs, us = call.terms
    if not (isinstance(vs.value, tuple) or isinstance(us.value, tuple)):
        return call.made(call.terms)
    if not (isinstance(vs.value, tuple) and isinstance(us.value, tuple) and len(vs.value) == len(us.value)):
        raise call.error("Diff needs as many directions as variables")
    inner = call.parser.lifted(f)
    parts = [call.built("Diff", inner, v, u) for v, u in zip(vs.value, us.value, strict=True)]
    return reduce(lambda a, b: call.built("Add", a, b), parts)


def _trace(call: Call) -> Expr:
    call.count((2, 3), "TraceOperator(f,v) or TraceOperator(f,v,w)")
    return call.made([*call.terms, call.one()][:3])


def _sum_operator(call: Call) -> Expr:
    call.count((2, 3, 4), "SumLinOperator(f,v), SumLinOperator(f,v,left) or SumLinOperator(f,v,left,right)")
    return call.made([*call.terms, call.one(), call.one()][:4])


def _tensordot(call: Call) -> Expr:
    call.count((6, 7), "TensorDot(f,g,[dims f],[dims g],[axes f],[axes g]) with or without a permutation")
    params = [call.parser.literal(t) for t in call.terms[2:]]
    return call.made(call.terms[:2], (*params, ()) if len(params) == 4 else tuple(params))


def _basis_sum(call: Call) -> Expr:
    call.count(3, "BasisSum(f,index,dimension)")
    index, dim = (call.parser.whole_number(t) for t in call.terms[1:])
    if not (-1024 <= index < 0 and 1 <= dim <= MAX_DIM):
        raise call.error("BasisSum needs a negative index and a dimension of at least 1")
    return call.made(call.terms[:1], (index, dim))


def _saved_forward(call: Call) -> Expr:
    raise call.error(
        f"{call.name} is the work of autograd: expected a formula such as Grad(f,v,e), reduced by Sum along the "
        f"other axis, with e the cotangent of the result"
    )


def _reduction(call: Call) -> Reduced:
    """name_Reduction(f,c), name_Reduction(f,K,c) or name_Reduction(f,c,weight); c is 0 for a row per i."""
    parser, name = call.parser, call.name.removesuffix("_Reduction")
    if name == "Zero":
        dim, category = call.ints("Zero_Reduction(dimension,category)")
        zero = call.built("Zero", params=(dim,))
        return Reduced("Sum", _kept_axis(call, category), zero)
    try:
        listed = reduction_named(name).listed
    except UnknownOperation as error:
        raise call.error(str(error), UnknownOperation) from None
    if listed:
        call.count(3, f"{call.name}(f,K,c)")
    else:
        call.count((2, 3), f"{call.name}(f,c) or {call.name}(f,c,weight)")
    formula, *rest = call.terms
    k = parser.whole_number(rest.pop(0)) if listed else 0
    weight = parser.lifted(rest[1]) if len(rest) == 2 else None
    return Reduced(name, _kept_axis(call, parser.whole_number(rest[0])), parser.lifted(formula), weight, k)


def _kept_axis(call: Call, category: int) -> int:
    if category not in (0, 1):
        raise call.error(
            f"the category of a reduction's output is 0 (rows of i) or 1 (rows of j), not {category}"
        )
    return 1 - category


SPECIAL: dict[str, Callable[[Call], Expr | tuple[Any, ...] | Reduced]] = {
    "Var": _var,
    "IntCst": _int_constant,
    "IntInv": _int_inverse,
    "RatCst": _rational,
    "Ind": _index_list,
    "Grad": _grad,
    "Diff": _diff,
    "TraceOperator": _trace,
    "SumLinOperator": _sum_operator,
    "TensorDot": _tensordot,
    "BasisSum": _basis_sum,
    "Grad_WithSavedForward": _saved_forward,
    "Diff_WithSavedForward": _saved_forward,
}
