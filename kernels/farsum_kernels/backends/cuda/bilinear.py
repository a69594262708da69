"""Which formulas are a monotone function of one distance or product of long vectors: what the filter can be used for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from farsum_kernels.backends.cuda.layout import paneled
from farsum_kernels.formula.lower import Program
from farsum_kernels.formula.reductions import Kind
from farsum_kernels.job import Part
from farsum_kernels.scalar.ir import Affine, I, J, Loop, Prim


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
    if len(parts) != 1 or not paneled(program):
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
    if code[n].prim is not Prim.FOLD or code[n].imm.how != "sum":
        return None
    loop, term = code[n].imm.loop, code[code[n].args[0]]
    if term.prim is not Prim.MUL:
        return None
    a, b = term.args
    distance = a == b and code[a].prim is Prim.SUB
    if distance:
        a, b = code[a].args
    if Prim.SQRT in chain[:-1] or (Prim.SQRT in chain and not distance):
        return None  # a root of what may be negative
    sides = sorted((side for side in (_side(program, a, loop), _side(program, b, loop)) if side), key=_which)
    if [where for where, _ in sides] != [0, 1]:
        return None
    return Bilinear(sides[0][1], sides[1][1], loop.extent, distance, tuple(chain), smallest)


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


def _which(side: tuple[int, Side]) -> int:
    return side[0]


def _side(program: Program, n: int, loop: Loop) -> tuple[int, Side] | None:
    """Of a component of a vector: 0 for rows or 1 for columns, and where the vector is."""
    if program.code[n].prim is not Prim.LOAD:
        return None
    slot, place = program.code[n].imm
    symbols = program.scopes[n] & {I, J}
    if place.terms != ((loop, 1),) or len(symbols) != 1:
        return None
    return int(J in symbols), Side(slot, place.base)
