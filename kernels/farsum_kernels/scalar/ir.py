"""The scalar IR: what a machine must be able to do, and nothing about any machine.

A `Block` is a flat DAG of instructions in SSA form. Each value has a *scope*, the set of index
symbols that it depends on: `I` (a row of x), `J` (a row of y), and the `Loop`s over vector
dimensions that are not unrolled. The scope is the placement: a backend computes a value once per
launch, per row, per column, per loop step or per pair, whatever its scope says, and nowhere deeper.

Emitting an instruction twice returns the first one, so common subexpressions cost nothing and equal
formulas give equal code: no name comes from outside the block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

I = "i"
J = "j"


class Prim(Enum):
    """The primitives. A backend's table has a row for each, or `EXPAND` has a rule."""

    # leaves
    LOAD = auto()  # imm = (slot, Affine): one component of an input row
    ARG = auto()  # imm = n: a value that the caller of the block hands in
    CONST = auto()  # imm = a number, "lowest" or "highest" (of the finite values of the dtype)
    # number -> number
    NEG = auto()
    ABS = auto()
    SQRT = auto()
    RSQRT = auto()
    EXP = auto()
    LOG = auto()
    SIN = auto()
    COS = auto()
    ADD = auto()
    SUB = auto()
    MUL = auto()
    DIV = auto()
    POW = auto()
    MIN = auto()  # a if a < b else b, so a NaN in a is dropped and one in b stays
    MAX = auto()  # a if a > b else b
    # number -> mask
    LT = auto()
    LE = auto()
    EQ = auto()
    OR = auto()  # mask, mask -> mask
    AND = auto()
    # mask, a, b -> a where the mask holds, else b; both sides are evaluated
    SELECT = auto()
    # imm = Loop: the sum of the argument over the loop
    SUM = auto()


MASKS = {Prim.LT, Prim.LE, Prim.EQ, Prim.OR, Prim.AND}
LEAVES = {Prim.LOAD, Prim.ARG, Prim.CONST}
ARITY = {
    **dict.fromkeys(LEAVES, 0),
    **dict.fromkeys(
        [Prim.NEG, Prim.ABS, Prim.SQRT, Prim.RSQRT, Prim.EXP, Prim.LOG, Prim.SIN, Prim.COS, Prim.SUM], 1
    ),
    **dict.fromkeys([Prim.ADD, Prim.SUB, Prim.MUL, Prim.DIV, Prim.POW, Prim.MIN, Prim.MAX], 2),
    **dict.fromkeys(MASKS, 2),
    Prim.SELECT: 3,
}


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop over a vector dimension. Two sums of one extent at one depth share it."""

    extent: int
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Affine:
    """An index into a row: base + the sum of coefficient × loop counter."""

    base: int
    terms: tuple[tuple[Loop, int], ...] = ()

    @staticmethod
    def of(k: int | Loop | Affine) -> Affine:
        match k:
            case int():
                return Affine(k)
            case Loop():
                return Affine(0, ((k, 1),))
            case Affine():
                return k

    def __add__(self, other: int | Loop | Affine) -> Affine:
        other = Affine.of(other)
        total = dict(self.terms)
        for loop, step in other.terms:
            total[loop] = total.get(loop, 0) + step
        ordered = sorted(total.items(), key=lambda item: (item[0].depth, item[0].extent))
        return Affine(self.base + other.base, tuple(ordered))

    def __mul__(self, factor: int) -> Affine:
        return Affine(self.base * factor, tuple((loop, step * factor) for loop, step in self.terms))

    @property
    def loops(self) -> tuple[Loop, ...]:
        return tuple(loop for loop, _ in self.terms)

    @property
    def depth(self) -> int:
        """The depth of a loop opened inside this index."""
        return 1 + max((loop.depth for loop in self.loops), default=-1)


Symbol = str | Loop
Scope = frozenset[Symbol]


@dataclass(frozen=True, slots=True)
class Instr:
    prim: Prim
    args: tuple[int, ...] = ()
    imm: Any = None


class Val:
    """A value of a block, with the arithmetic that emits into it."""

    __slots__ = ("block", "index")

    def __init__(self, block: Block, index: int) -> None:
        self.block = block
        self.index = index

    def _emit(self, prim: Prim, *args: Val | float) -> Val:
        return self.block.emit(prim, *args)

    def __add__(self, other: Val | float) -> Val:
        return self._emit(Prim.ADD, self, other)

    def __radd__(self, other: float) -> Val:
        return self._emit(Prim.ADD, other, self)

    def __sub__(self, other: Val | float) -> Val:
        return self._emit(Prim.SUB, self, other)

    def __rsub__(self, other: float) -> Val:
        return self._emit(Prim.SUB, other, self)

    def __mul__(self, other: Val | float) -> Val:
        return self._emit(Prim.MUL, self, other)

    def __rmul__(self, other: float) -> Val:
        return self._emit(Prim.MUL, other, self)

    def __truediv__(self, other: Val | float) -> Val:
        return self._emit(Prim.DIV, self, other)

    def __rtruediv__(self, other: float) -> Val:
        return self._emit(Prim.DIV, other, self)

    def __neg__(self) -> Val:
        return self._emit(Prim.NEG, self)

    def __lt__(self, other: Val | float) -> Val:
        return self._emit(Prim.LT, self, other)

    def __le__(self, other: Val | float) -> Val:
        return self._emit(Prim.LE, self, other)

    def __gt__(self, other: Val | float) -> Val:
        return self._emit(Prim.LT, other, self)

    def __and__(self, other: Val) -> Val:
        return self._emit(Prim.AND, self, other)

    def __or__(self, other: Val) -> Val:
        return self._emit(Prim.OR, self, other)


def _unary(prim: Prim) -> Callable[[Val], Val]:
    return lambda x: x.block.emit(prim, x)


exp, log, sin, cos = map(_unary, (Prim.EXP, Prim.LOG, Prim.SIN, Prim.COS))
sqrt, absolute = map(_unary, (Prim.SQRT, Prim.ABS))


def equal(a: Val, b: Val | float) -> Val:
    return a.block.emit(Prim.EQ, a, b)


def minimum(a: Val, b: Val) -> Val:
    return a.block.emit(Prim.MIN, a, b)


def maximum(a: Val, b: Val) -> Val:
    return a.block.emit(Prim.MAX, a, b)


def power(a: Val, b: Val | float) -> Val:
    return a.block.emit(Prim.POW, a, b)


def select(mask: Val, a: Val | float, b: Val | float) -> Val:
    return mask.block.emit(Prim.SELECT, mask, a, b)


EXPAND: dict[Prim, Callable[..., Val]] = {
    Prim.RSQRT: lambda x: 1.0 / sqrt(x),
}
"""What a backend whose table lacks a primitive is given instead."""


class Block:
    """Straight-line SSA code.

    `categories[slot]` is the symbol of the rows of an input: `I`, `J`, or None for a parameter.
    `spoken` is the set of primitives that the target's table has; all others are expanded.
    """

    def __init__(self, categories: Sequence[str | None] = (), spoken: Iterable[Prim] | None = None) -> None:
        self._categories = tuple(categories)
        self._spoken = None if spoken is None else set(spoken)
        self._index: dict[Instr, int] = {}
        self.scopes: list[Scope] = []

    @property
    def code(self) -> tuple[Instr, ...]:
        return tuple(self._index)

    def emit(self, prim: Prim, *args: Val | float, imm: Any = None) -> Val:
        lifted = tuple(a if isinstance(a, Val) else self.constant(a) for a in args)
        if self._spoken is not None and prim not in self._spoken and prim in EXPAND:
            return EXPAND[prim](*lifted)
        scope: Scope = frozenset().union(*(self.scopes[a.index] for a in lifted))
        if prim is Prim.SUM:
            scope -= {imm}
        return self._add(Instr(prim, tuple(a.index for a in lifted), imm), scope)

    def load(self, slot: int, k: Affine) -> Val:
        row = self._categories[slot]
        return self._add(Instr(Prim.LOAD, (), (slot, k)), frozenset(k.loops) | ({row} if row else set()))

    def constant(self, value: float | str) -> Val:
        # -0.0 == 0.0 and 1 == 1.0 would merge in a dict: the text tells them apart.
        return self._add(
            Instr(Prim.CONST, (), value if isinstance(value, str) else repr(float(value))), frozenset()
        )

    def arg(self, n: int) -> Val:
        return self._add(Instr(Prim.ARG, (), n), frozenset())

    def sum(self, loop: Loop, term: Val) -> Val:
        if loop not in self.scopes[term.index]:  # the term does not change along the loop
            return term * float(loop.extent)
        return self.emit(Prim.SUM, term, imm=loop)

    def _add(self, instr: Instr, scope: Scope) -> Val:
        index = self._index.setdefault(instr, len(self._index))
        if index == len(self.scopes):
            self.scopes.append(scope)
        return Val(self, index)


def number(imm: str, lowest: float, highest: float) -> float:
    """The value of a CONST in a dtype whose finite values end at lowest and highest."""
    return {"lowest": lowest, "highest": highest}.get(imm) if imm in ("lowest", "highest") else float(imm)  # type: ignore[return-value]


def fold(code: Sequence[Instr], table: dict[Prim, Any], leaf: Callable[[Instr], Any]) -> list[Any]:
    """Run straight-line code through a table of functions. This is the whole of instruction selection."""
    values: list[Any] = []
    for instr in code:
        if instr.prim in LEAVES:
            values.append(leaf(instr))
        else:
            values.append(table[instr.prim](*(values[a] for a in instr.args)))
    return values
