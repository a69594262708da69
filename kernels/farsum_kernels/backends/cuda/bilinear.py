"""Which formulas are a monotone function of one distance or product, or have one: what tensor cores can be used for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from farsum_kernels.formula.lower import Program
from farsum_kernels.formula.reductions import Kind
from farsum_kernels.job import Part
from farsum_kernels.scalar.indices import Affine
from farsum_kernels.scalar.ir import I, J, Prim

SHORTEST = 3  # components of vectors for which products by tensor cores are of use


@dataclass(frozen=True)
class Side:
    """Where the vectors of the rows, or of the columns, are: an input, and the first of their components."""

    slot: int
    base: int


@dataclass(frozen=True)
class Bilinear:
    """|x - y|² or x·y, and what is made of it.

    dim        components of the vectors
    distance   is it a distance?
    chain      the operations from the term of the reduction inwards: NEG or SQRT
    smallest   do the smallest distances or products win?
    """

    rows: Side
    columns: Side
    dim: int
    distance: bool
    chain: tuple[Prim, ...]
    smallest: bool


def bilinear(program: Program, parts: Sequence[Part]) -> Bilinear | None:
    """The distance or product that decides a smallest or largest value, or the K best; None if there is no such thing."""
    if len(parts) != 1:
        return None
    (part,), (terms,), code = parts, program.terms, program.code
    kinds = part.rule.state(1, 0)
    if terms.long or terms.dim != 1 or terms.weight or Kind.WIDE in kinds or part.rule.additive:
        return None
    smallest = part.rule.identity(1, 0)[0] == float("inf")
    n, chain = terms.value[0], []
    while code[n].prim in (Prim.NEG, Prim.SQRT):
        chain.append(code[n].prim)
        smallest ^= code[n].prim is Prim.NEG
        n = code[n].args[0]
    found = _looped(program, n) if code[n].prim is Prim.FOLD else _written_out(program, n)
    if found is None:
        return None
    rows, columns, dim, distance = found
    if Prim.SQRT in chain[:-1] or (Prim.SQRT in chain and not distance):
        return None  # a root of what may be negative
    return Bilinear(rows, columns, dim, distance, tuple(chain), smallest)


def _looped(program: Program, n: int) -> tuple[Side, Side, int, bool] | None:
    """A distance or product as a loop: where its vectors are, their components, is it a distance?"""
    code = program.code
    loop = code[n].imm.loop
    if code[n].imm.how != "sum" or (factors := _factors(program, code[n].args[0])) is None:
        return None
    *loads, distance = factors
    sides = []
    for load in loads:
        slot, place = code[load].imm
        if place.terms != ((loop, 1),):
            return None
        sides.append(Side(slot, place.base))
    return sides[0], sides[1], loop.extent, distance


def _written_out(program: Program, n: int) -> tuple[Side, Side, int, bool] | None:
    """The same of short vectors, whose components are added up one after the other."""
    code, terms = program.code, []
    while code[n].prim is Prim.ADD:
        terms.append(code[n].args[1])
        n = code[n].args[0]
    terms = [n, *reversed(terms)]
    found = [factors for t in terms if (factors := _factors(program, t)) is not None]
    if len(found) < len(terms) or len(terms) < SHORTEST or len({distance for *_, distance in found}) > 1:
        return None
    sides = []
    for which in (0, 1):
        slots, bases = zip(*(code[factors[which]].imm for factors in found), strict=True)
        first = bases[0]
        if first.terms or len(set(slots)) > 1 or any(b != first + d for d, b in enumerate(bases)):
            return None
        sides.append(Side(slots[0], first.base))
    return sides[0], sides[1], len(terms), found[0][2]


def _factors(program: Program, n: int) -> tuple[int, int, bool] | None:
    """Of x·y or (x - y)²: the loads of x, of a row, and of y, of a column; and is it a square?"""
    code = program.code
    if code[n].prim is not Prim.MUL:
        return None
    a, b = code[n].args
    square = a == b and code[a].prim is Prim.SUB
    if square:
        a, b = code[a].args
    if code[a].prim is not Prim.LOAD or code[b].prim is not Prim.LOAD:
        return None
    sides = {J in program.scopes[m]: m for m in (a, b) if len(program.scopes[m] & {I, J}) == 1}
    return (sides[False], sides[True], square) if len(sides) == 2 else None


@dataclass(frozen=True)
class Product:
    """A scalar product of two inputs, of a row and of a column, the only one of its program.

    rows, columns   the slots of the inputs
    place    its value, or that of the product with `factor`
    factor   what it is multiplied by wherever it is used, in an exponent: a value of parameters and constants; or None
    """

    rows: int
    columns: int
    dim: int
    place: int
    factor: int | None


def scalar_product(program: Program) -> Product | None:
    """The scalar product of two inputs in a program that needs no other work along vectors for each pair."""
    code, scopes = program.code, program.scopes
    shapes = [v.params[1:3] for v in program.slots]
    found = [
        (n, rows, columns, dim)
        for rows, (dim, category) in enumerate(shapes)
        for columns, other in enumerate(shapes)
        for n in range(len(code))
        if category == 0 and other == (dim, 1) and _is_product(program, n, rows, columns, dim)
    ]
    folds = [n for n, i in enumerate(code) if i.prim is Prim.FOLD and {I, J} <= scopes[n]]
    if len(found) != 1 or any(n != found[0][0] for n in folds) or any(t.long for t in program.terms):
        return None
    ((place, rows, columns, dim),) = found
    sides = rows, columns
    uses = [n for n, instr in enumerate(code) if place in instr.args]
    if len(uses) == 1 and code[uses[0]].prim is Prim.MUL:
        a, b = code[uses[0]].args
        factor = b if a == place else a
        powers = [n for n, instr in enumerate(code) if uses[0] in instr.args]
        if not scopes[factor] and all(code[n].prim is Prim.EXP2 for n in powers):
            return Product(*sides, dim, uses[0], factor)
    return Product(*sides, dim, place, None)


def _is_product(program: Program, n: int, rows: int, columns: int, dim: int) -> bool:
    """A loop over all components, or the sum of their products from the first to the last."""
    code = program.code

    def factors(n: int) -> dict[int, Affine]:
        loads = [code[a] for a in code[n].args if code[a].prim is Prim.LOAD]
        return {load.imm[0]: load.imm[1] for load in loads} if code[n].prim is Prim.MUL else {}

    if code[n].prim is Prim.FOLD:
        loop = code[n].imm.loop
        along = Affine.of(loop)
        wanted = {rows: along, columns: along}
        return code[n].imm.how == "sum" and loop.extent == dim and factors(code[n].args[0]) == wanted
    if dim < 2 or code[n].prim is not Prim.ADD or {I, J} - program.scopes[n]:
        return False
    for d in range(dim - 1, 0, -1):
        if code[n].prim is not Prim.ADD or factors(code[n].args[1]) != {rows: Affine(d), columns: Affine(d)}:
            return False
        n = code[n].args[0]
    return factors(n) == {rows: Affine(0), columns: Affine(0)}
