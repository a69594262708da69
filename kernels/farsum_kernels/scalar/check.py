"""The verifier of the scalar IR. It runs at each border: after lowering, before a backend."""

from __future__ import annotations

from collections.abc import Sequence

from farsum_kernels.scalar.indices import Affine
from farsum_kernels.scalar.ir import ARITY, MASKS, Fold, Instr, Prim


def check(code: Sequence[Instr], slots: int) -> None:
    """Raise AssertionError, with the offending instruction, if the code is not well formed: our own bug."""
    for n, instr in enumerate(code):
        assert len(instr.args) == ARITY[instr.prim], f"{n}: {instr} has the wrong number of operands"
        assert all(0 <= a < n for a in instr.args), f"{n}: {instr} uses a value that comes later"
        masks = [code[a].prim in MASKS for a in instr.args]
        match instr.prim:
            case Prim.AND | Prim.OR:
                assert all(masks), f"{n}: {instr} combines numbers as masks"
            case Prim.SELECT:
                assert masks == [True, False, False], f"{n}: {instr} needs a mask and two numbers"
            case Prim.LOAD:
                slot, k = instr.imm
                assert 0 <= slot < slots and isinstance(k, Affine), f"{n}: {instr} loads nothing known"
            case Prim.FOLD:
                assert isinstance(instr.imm, Fold) and not masks[0], f"{n}: {instr} is no fold over a loop"
            case _:
                assert not any(masks), f"{n}: {instr} computes with a mask"
