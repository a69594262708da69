"""Which formulas are a monotone function of one distance or product of long vectors: what the filter can be used for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from farsum_kernels.backends.cuda.layout import paneled
from farsum_kernels.formula.lower import Program
from farsum_kernels.formula.reductions import Kind
from farsum_kernels.job import Part
from farsum_kernels.scalar.ir import I, J, Loop, Prim


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
