"""Squared distances by norms and a scalar product: |x − y|² = |x|² + |y|² − 2 x·y.

One multiply-add per dimension instead of a subtraction and a multiply-add, but what is subtracted is large: where
points lie far from the origin, compared with the distances between them, the digits are lost. So this form is made
only of formulas whose sensitivity to the squared distance is known, and the
caller must know its points. Kernels of the family exp(c·|x − y|² + …)·… are all that it is known for: there an absolute error of the
distance is a relative error of the term, c times as large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from farsum_kernels.formula.expr import MAX_VARIABLES, VAR, Expr, constant, node, variable, variables, walk
from farsum_kernels.formula.rewrite import add, div, mul, neg, sub, total

MIN_DIM = 8  # below, the subtractions cost less than what replaces them

# Operations that are read as what they stand for.
_READ = frozenset(
    {"Grad", "Norm2", "SqDist", "SqNorm2", "SqNormIso", "WeightedSqNorm", "WeightedSqDist", "Scalprod"}
)


@dataclass(frozen=True)
class Expanded:
    """Formulas in which one squared distance is written by norms and a scalar product.

    roots      the formulas, in the order they were given
    x, y       the points: variables of the rows and of the columns
    moved      the variables that stand for x and y in the distance; they may be moved by one vector, both alike
    scales     what the squared distance is multiplied by in the exponents, of parameters and constants alone
    """

    roots: tuple[Expr, ...]
    x: Expr
    y: Expr
    moved: tuple[Expr, Expr]
    scales: tuple[Expr, ...]


def expanded(wants: Sequence[tuple[str, Expr]], least: int = MIN_DIM, apart: bool = False) -> Expanded | None:
    """The formulas with their squared distance expanded; None where that is of no use or its error not known.

    Each is given with what it is to its reduction: an "exponent", as in LogSumExp, or a "term" that is summed up.

    least   components that the points must have
    apart   exp(c·s) becomes exp(c·|x|²)·exp(c·|y|²)·exp(−2c·x·y), of which only the last is of a pair. For points
            under a certificate none of them overflows. The formulas must not be simplified any more
    """
    roots = [_read(root) for _, root in wants]
    distances = {n for n in walk(*roots) if _is_distance(n, least)}
    if len(distances) != 1:
        return None
    (distance,) = distances
    scales: set[Expr] = set()
    for (wanted, _), root in zip(wants, roots, strict=True):
        kind, own = _use(root, distance)
        if kind not in ("free", wanted):
            return None
        scales |= own
    return _with_products(roots, distance, tuple(scales), apart)


def expanded_distance(root: Expr) -> Expanded | None:
    """The squared distance in expanded form, of a formula that is it or its square root; else None."""
    read = _read(root)
    inner = read.args[0] if read.op.name == "Sqrt" else read
    return _with_products([inner], inner, ()) if _is_distance(inner) else None


def _with_products(
    roots: Sequence[Expr], distance: Expr, scales: tuple[Expr, ...], apart: bool = False
) -> Expanded | None:
    a, b = distance.args[0].args[0].args
    x, y = (a, b) if a.indices == 1 else (b, a)
    taken = variables(*roots)
    places = [n for n in range(MAX_VARIABLES) if n not in taken][:2]
    if len(places) < 2:
        return None
    moved = variable(places[0], x.dim, x.params[2]), variable(places[1], y.dim, y.params[2])
    own, other = (total(node("Square", v)) for v in moved)
    product = total(node("Mult", *moved))
    made = node("Add", add(own, other), node("Mult", constant(-2), product))
    new: dict[Expr, Expr] = {distance: made}
    for n in walk(*roots) if apart else ():
        if n.op.name == "Exp" and (c := _factor(n.args[0], distance)) is not None:
            left, right = (node("Exp", mul(c, norm)) for norm in (own, other))
            pair = node("Exp", node("Mult", mul(constant(-2), c), product))
            new[n] = node("Mult", pair, node("Mult", left, right))
    return Expanded(tuple(_with(root, new) for root in roots), x, y, moved, scales)


def _factor(root: Expr, distance: Expr) -> Expr | None:
    """c, where the formula is c·s and nothing else."""
    if root is distance:
        return constant(1)
    a, b = (*root.args, root)[:2]
    match root.op.name:
        case "Minus":
            return None if (c := _factor(a, distance)) is None else neg(c)
        case "Mult" if a.indices == 0 and a.dim == 1:
            return None if (c := _factor(b, distance)) is None else mul(a, c)
        case "Mult" | "Divide" if b.indices == 0 and b.dim == 1:
            c = _factor(a, distance)
            return None if c is None else mul(c, b) if root.op.name == "Mult" else div(c, b)
    return None


def _is_distance(n: Expr, least: int = MIN_DIM) -> bool:
    """Is it a sum over squares of x − y, of variables of many dimensions?"""
    if n.op.name != "Sum" or n.args[0].op.name != "Square" or n.args[0].args[0].op.name != "Subtract":
        return False
    a, b = n.args[0].args[0].args
    return a.op is b.op is VAR and a.dim == b.dim >= least and {a.indices, b.indices} == {1, 2}


def _read(root: Expr) -> Expr:
    """The formula with norms and distances written as sums of squares."""
    new: dict[Expr, Expr] = {}
    for n in walk(root):
        made = node(n.op, *(new[a] for a in n.args), params=n.params) if n.args else n
        while made.op.name in _READ and made.op.expand:
            inner = made.op.expand(*made.args, *made.params)
            made = _read(inner) if inner is not made else inner
        new[n] = made
    return new[root]


def _with(root: Expr, new: dict[Expr, Expr]) -> Expr:
    """The formula with some of its parts replaced."""
    made = dict(new)
    for n in walk(root):
        if n not in made:
            made[n] = node(n.op, *(made[a] for a in n.args), params=n.params) if n.args else n
    return made[root]


Use = tuple[str, frozenset[Expr]]
"""How a formula uses the distance s, and the scales c: "free" not at all; "exponent" as c·s + …; "term" in sums of
exp(c·s + …)·…; "other" in another way."""

_FREE: Use = "free", frozenset()
_OTHER: Use = "other", frozenset()


def _use(root: Expr, distance: Expr) -> Use:
    """How the formula uses the distance."""
    known: dict[Expr, Use] = {distance: ("exponent", frozenset([constant(1)]))}
    for n in walk(root):
        if n not in known:
            uses = [known[a] for a in n.args]
            known[n] = _FREE if all(use is _FREE for use in uses) else _combined(n, uses)
    return known[root]


def _combined(n: Expr, uses: list[Use]) -> Use:
    kinds = tuple(kind for kind, _ in uses)
    first, last = uses[0][1], uses[-1][1]
    # What an exponent may be multiplied by: one number, the same for all pairs.
    number = [a.indices == 0 and a.dim == 1 for a in n.args]
    match n.op.name, kinds:
        case "Minus", ("exponent",):
            return "exponent", frozenset(map(neg, first))
        case "Exp", ("exponent",):
            return "term", first
        case "Mult", ("exponent", "free") if number[1]:
            return "exponent", frozenset(mul(c, n.args[1]) for c in first)
        case "Mult", ("free", "exponent") if number[0]:
            return "exponent", frozenset(mul(n.args[0], c) for c in last)
        case "Divide", ("exponent", "free") if number[1]:
            return "exponent", frozenset(div(c, n.args[1]) for c in first)
        case (("Add" | "Subtract"), ("exponent", "free")) if n.args[1].dim == 1:
            return uses[0]
        case (("Add" | "Subtract"), ("free", "exponent")) if n.args[0].dim == 1:
            return uses[1]
        case (("Add" | "Subtract"), ("exponent", "exponent")):
            combine = add if n.op.name == "Add" else sub
            return "exponent", frozenset(combine(c, d) for c in first for d in last)
        case (("Add" | "Subtract"), (("term" | "free"), ("term" | "free"))):
            return "term", first | last
        case (("Minus" | "Sum" | "SumT"), ("term",)):
            return uses[0]
        case (("Mult" | "Divide"), ("term", "free")):
            return uses[0]
        case "Mult", ("free", "term"):
            return uses[1]
    return _OTHER
