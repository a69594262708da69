"""Which sums of a program take a product along in one rounding. Chosen here, once, for every backend."""

from __future__ import annotations

from collections.abc import Container

from farsum_kernels.formula.lower import Program
from farsum_kernels.scalar.ir import Prim


def fused_products(program: Program, ready: Container[int] = ()) -> dict[int, int]:
    """The sums and differences that become a fused multiply-add, and which of their operands is the product.

    Of a·a + b·b a compiler would fuse either: equal pairs are to give equal bits in every block of columns.
    Values of `ready` are computed elsewhere and cannot be fused into anything.
    """
    uses: dict[int, int] = {}
    for n in [a for instr in program.code for a in instr.args] + [p for t in program.terms for p in t.places]:
        uses[n] = uses.get(n, 0) + 1
    found = {}
    for n, instr in enumerate(program.code):
        if instr.prim in (Prim.ADD, Prim.SUB):
            for place in (1, 0):
                arg = instr.args[place]
                alone = uses[arg] == 1 and program.scopes[arg] == program.scopes[n] and arg not in ready
                if program.code[arg].prim is Prim.MUL and alone:
                    found[n] = place
                    break
    return found
