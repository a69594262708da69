"""From a formula to the scalar IR.

Vectors are *pulled*: a consumer asks an operand for its component k, so a chain of elementwise
operations ends in the reduction that consumes it and no D-sized temporary exists. Dimensions up to
`unroll` become straight-line code; longer ones become loops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from farsum_kernels.formula.expr import CONST, Expr, I, J, variables, walk
from farsum_kernels.scalar import ir
from farsum_kernels.scalar.check import check
from farsum_kernels.scalar.ir import Affine, Block, Instr, Loop, Prim, Scope, Val

Index = int | Loop | Affine


class Vector:
    """The value of a formula: `dim` components, each computed when it is asked for."""

    def __init__(self, dim: int, component: Callable[[Affine], Val]) -> None:
        self.dim = dim
        self._component = component
        self._known: dict[Affine, Val] = {}

    def at(self, k: Index) -> Val:
        """Component k; a scalar is broadcast."""
        place = Affine(0) if self.dim == 1 else Affine.of(k)
        if place not in self._known:
            self._known[place] = self._component(place)
        return self._known[place]


class Lowering:
    """The state of one lowering: the block, and the vectors already made."""

    def __init__(self, block: Block, slots: dict[int, int], unroll: int) -> None:
        self.block = block
        self._slots = slots
        self._unroll = unroll
        self._vectors: dict[Expr, Vector] = {}

    def vector(self, root: Expr) -> Vector:
        # Rules recurse through here; the walk makes operands first, so the recursion is shallow.
        for expr in walk(root):
            if expr not in self._vectors:
                op = expr.op
                if op.expand:
                    made = self.vector(op.expand(*expr.args, *expr.params))
                else:
                    assert op.lower, f"{op} has no meaning"
                    made = op.lower(self, expr)
                self._vectors[expr] = made
        return self._vectors[root]

    def leaf(self, leaf: Expr) -> Vector:
        if leaf.op is CONST:
            value = self.block.constant(leaf.params[0])
            return Vector(1, lambda _: value)
        slot = self._slots[leaf.params[0]]
        return Vector(leaf.dim, lambda k: self.block.load(slot, k))

    def sum(self, vector: Vector, extent: int, inside: Affine = Affine(0)) -> Val:
        """The sum of vector.at(0 … extent-1): straight-line when short, a loop when long."""
        if extent <= self._unroll:
            total = vector.at(0)
            for k in range(1, extent):
                total = total + vector.at(k)
            return total
        loop = Loop(extent, inside.depth)
        return self.block.sum(loop, vector.at(loop))

    def components(self, root: Expr) -> tuple[Val, ...] | Loop:
        """All components of a root, or the loop over them when they are too many to write out."""
        vector = self.vector(root)
        if root.dim > max(1, self._unroll):
            return Loop(root.dim)
        return tuple(vector.at(k) for k in range(root.dim))


@dataclass(frozen=True)
class Program:
    """A lowered formula: scalar code and where its results are.

    slots    the input variables in slot order
    value    the components of F, as indices into the code
    weight   the components of the weight, if the reduction has one
    loop     set when F is too long to write out: `value` then has one entry that depends on it
    """

    slots: tuple[Expr, ...]
    code: tuple[Instr, ...]
    scopes: tuple[Scope, ...]
    value: tuple[int, ...]
    weight: tuple[int, ...]
    loop: Loop | None
    dim: int

    def flops_per_pair(self) -> float:
        """Arithmetic that is done for each pair, loops counted by their extent."""
        total = 0.0
        for instr, scope in zip(self.code, self.scopes, strict=True):
            if {ir.I, ir.J} <= scope and instr.prim not in ir.LEAVES:
                cost = _COST.get(instr.prim, 1.0)
                for symbol in scope | ({instr.imm} if instr.prim is Prim.SUM else set()):
                    cost *= symbol.extent if isinstance(symbol, Loop) else 1
                total += cost
        return max(total, 1.0) + self.dim


# In units of one fused multiply-add.
_COST = {
    Prim.EXP: 9.0,
    Prim.LOG: 12.0,
    Prim.SIN: 14.0,
    Prim.COS: 14.0,
    Prim.POW: 60.0,
    Prim.SQRT: 5.0,
    Prim.DIV: 5.0,
}
_SYMBOL = {I: ir.I, J: ir.J}


def lower(formula: Expr, weight: Expr | None, unroll: int, spoken: Sequence[Prim] | None = None) -> Program:
    """Lower a formula, and the weight of its reduction, into one program."""
    roots = (formula,) if weight is None else (formula, weight)
    slots = variables(*roots)
    categories = [_SYMBOL.get(v.params[2]) for v in slots.values()]
    block = Block(categories, spoken)
    lowering = Lowering(block, {index: slot for slot, index in enumerate(slots)}, unroll)
    value = lowering.components(formula)
    loop = value if isinstance(value, Loop) else None
    if isinstance(value, Loop):
        value = (lowering.vector(formula).at(value),)
    weights: tuple[Val, ...] = ()
    if weight is not None:
        vector = lowering.vector(weight)
        weights = tuple(vector.at(k) for k in range(weight.dim))
    check(block.code, len(slots))
    return Program(
        tuple(slots.values()),
        block.code,
        tuple(block.scopes),
        tuple(v.index for v in value),
        tuple(v.index for v in weights),
        loop,
        formula.dim,
    )
