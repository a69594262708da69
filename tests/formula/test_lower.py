"""Lowering: pulled components, loops past the threshold, placement by scope, limits."""

from __future__ import annotations

import pytest

from farsum_kernels.errors import FormulaTooLarge
from farsum_kernels.formula.expr import I, J, P, node, variable
from farsum_kernels.formula.lower import Want, lower
from farsum_kernels.scalar.check import check
from farsum_kernels.scalar.indices import Affine, Loop
from farsum_kernels.scalar.ir import MAX_INSTRUCTIONS, Block, Fold, Instr, Prim

x, y, p = variable(0, 3, I), variable(1, 3, J), variable(2, 1, P)


def test_short_sums_are_written_out_and_long_ones_are_loops() -> None:
    short = lower([Want(node("SqDist", x, y))], unroll=6)
    assert all(i.prim is not Prim.FOLD for i in short.code)
    long = lower([Want(node("SqDist", variable(0, 1000, I), variable(1, 1000, J)))], unroll=6)
    assert [i.imm for i in long.code if i.prim is Prim.FOLD] == [Fold(Loop(1000))]
    assert len(long.code) < 10  # no text that grows with D


def test_values_are_placed_where_their_inputs_live() -> None:
    f = node("Mult", node("Exp", node("SqNorm2", y)), node("Add", node("Log", p), node("Scalprod", x, y)))
    program = lower([Want(f)], unroll=6)
    scope = {i.prim: s for i, s in zip(program.code, program.scopes, strict=True)}
    assert scope[Prim.EXP] == {"j"}
    assert scope[Prim.LOG] == frozenset()
    assert program.scopes[program.terms[0].value[0]] == {"i", "j"}


def test_a_factor_of_an_exponent_takes_the_logarithm_of_e_along() -> None:
    d = node("SqDist", x, y)
    for f in (node("Mult", p, d), node("Minus", node("Mult", d, p)), node("Divide", d, p)):
        program = lower([Want(node("Exp", f))], unroll=6)
        prims = [i.prim for i in program.code]
        assert Prim.EXP2 in prims and Prim.EXP not in prims
        per_pair = [i.prim for i, s in zip(program.code, program.scopes, strict=True) if s == {"i", "j"}]
        assert per_pair[-2:] == [Prim.MUL, Prim.EXP2]  # log2(e) and the sign are in the factor
    # The product of a row and a column is exact in neither, so nothing is gained by one more rounding.
    plain = lower([Want(node("Exp", node("Scalprod", variable(0, 1, I), variable(1, 1, J))))], unroll=6)
    assert Prim.EXP2 not in [i.prim for i in plain.code]


def test_common_subexpressions_are_computed_once() -> None:
    d = node("SqDist", x, y)
    once = lower([Want(node("Exp", d))], unroll=6)
    twice = lower([Want(node("Add", node("Exp", d), node("Exp", node("SqDist", x, y))))], unroll=6)
    assert len(twice.code) == len(once.code) + 1


def test_code_does_not_depend_on_history() -> None:
    first = lower([Want(node("SqDist", x, y))], unroll=6).code
    lower([Want(node("Exp", node("Add", x, y)))], unroll=6)
    assert lower([Want(node("SqDist", x, y))], unroll=6).code == first


def test_code_size_is_limited() -> None:
    block = Block()
    with pytest.raises(FormulaTooLarge, match="scalar instructions"):
        for n in range(MAX_INSTRUCTIONS + 2):
            block.constant(float(n))


@pytest.mark.parametrize(
    "code",
    [
        [Instr(Prim.NEG, (0,))],
        [Instr(Prim.CONST, (), "1.0"), Instr(Prim.ADD, (0,))],
        [Instr(Prim.CONST, (), "1.0"), Instr(Prim.LT, (0, 0)), Instr(Prim.ADD, (0, 1))],
        [Instr(Prim.CONST, (), "1.0"), Instr(Prim.SELECT, (0, 0, 0))],
        [Instr(Prim.LOAD, (), (3, Affine(0)))],
    ],
)
def test_the_verifier_finds_broken_code(code: list[Instr]) -> None:
    with pytest.raises(AssertionError):
        check(code, 1)
