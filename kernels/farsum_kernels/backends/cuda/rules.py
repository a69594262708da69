"""A rule of the scalar IR, a merge or a lift of a reduction, written into a kernel on values at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from farsum_kernels.backends.cuda.tables import RULES
from farsum_kernels.backends.cuda.text import LARGEST, Source, Value, literal
from farsum_kernels.scalar.ir import Block, Instr, Prim, Val, fold, number

# Indices ride beside float32 numbers as 32-bit integers, beside float64 as 64-bit ones.
TYPES = {
    "f": {"float": "float", "double": "double"},
    "i": {"float": "int", "double": "long long"},
    "m": {"float": "bool", "double": "bool"},
}


def run_rule(
    src: Source, scalar: str, args: Sequence[Value], rule: Callable[[list[Val]], Sequence[Val]]
) -> list[Value]:
    """Write a rule of the scalar IR on values at hand."""
    block = Block(spoken=RULES)
    outputs = rule([block.arg(n) for n in range(len(args))])

    def leaf(instr: Instr) -> Value:
        if instr.prim is Prim.ARG:
            place: int = instr.imm
            return args[place]
        return Value(literal(number(instr.imm, LARGEST[scalar]), scalar), "f")

    def named(prim: Prim) -> Callable[..., Value]:
        def say(*operands: Value) -> Value:
            made, name = RULES[prim](*operands), src.name("u")
            src.do(f"const {TYPES[made.kind].get(scalar)} {name} = {made.text};")
            return Value(name, made.kind)

        return say

    values = fold(block.code, {prim: named(prim) for prim in RULES}, leaf)
    return [values[v.index] for v in outputs]
