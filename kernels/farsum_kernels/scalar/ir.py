"""The scalar IR: what a machine must be able to do, and nothing about any machine.

A `Block` is a flat DAG of instructions in SSA form. Each value has a *scope*, the set of index
symbols that it depends on: `I` (a row of x), `J` (a row of y), and the `Loop`s over vector
dimensions that are not unrolled. The scope is the placement: a backend computes a value once per
launch, per row, per column, per loop step or per pair, whatever its scope says, and nowhere deeper.

Emitting an instruction twice returns the first one, so common subexpressions cost nothing and equal
formulas give equal code: no name comes from outside the block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from farsum_kernels.errors import FormulaTooLarge
from farsum_kernels.scalar.indices import Affine, Loop

I = "i"
J = "j"


MAX_INSTRUCTIONS = 32_000


class Prim(Enum):
    """The primitives. A backend's table has a row for each, or `EXPAND` has a rule."""

    # leaves
    LOAD = auto()  # imm = (slot, Affine): one component of an input row
    ROW = auto()  # imm = I or J: the number of the row, as a number
    INDEX = auto()  # imm = Affine: a place in a vector, as a number
    ARG = auto()  # imm = n: a value that the caller of the block hands in
    CONST = auto()  # imm = a number, "zero", or "lowest", "highest" (of the finite values of the dtype)
    # number -> number
    NEG = auto()
    ABS = auto()
    SQRT = auto()
    RSQRT = auto()
    EXP = auto()
    EXP2 = auto()
    LOG = auto()
    SIN = auto()
    COS = auto()
    ASIN = auto()
    ACOS = auto()
    ATAN = auto()
    FLOOR = auto()
    ROUND = auto()  # halves away from zero
    ADD = auto()
    SUB = auto()
    MUL = auto()
    DIV = auto()
    POW = auto()
    ATAN2 = auto()
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
    # imm = Fold: the argument folded over a loop
    FOLD = auto()


MASKS = {Prim.LT, Prim.LE, Prim.EQ, Prim.OR, Prim.AND}
LEAVES = {Prim.LOAD, Prim.ROW, Prim.INDEX, Prim.ARG, Prim.CONST}
_BINARY = {Prim.ADD, Prim.SUB, Prim.MUL, Prim.DIV, Prim.POW, Prim.ATAN2, Prim.MIN, Prim.MAX}
ARITY = (
    dict.fromkeys(Prim, 1)
    | dict.fromkeys(LEAVES, 0)
    | dict.fromkeys(_BINARY | MASKS, 2)
    | {Prim.SELECT: 3}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fold:
    """How a value is folded over a loop: "sum", "min", "max", or the place of the first "argmin", "argmax".

    Extrema scan from the first element with a strict comparison: a NaN in it sticks, others are skipped.
    """

    loop: Loop
    how: str = "sum"


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


LOG2_E = math.log2(math.e)


def _unary(prim: Prim) -> Callable[[Val], Val]:
    return lambda x: x.block.emit(prim, x)


log, sin, cos = map(_unary, (Prim.LOG, Prim.SIN, Prim.COS))
asin, acos, atan = map(_unary, (Prim.ASIN, Prim.ACOS, Prim.ATAN))
exp2 = _unary(Prim.EXP2)
sqrt, absolute, floor, nearest = map(_unary, (Prim.SQRT, Prim.ABS, Prim.FLOOR, Prim.ROUND))


def equal(a: Val, b: Val | float) -> Val:
    return a.block.emit(Prim.EQ, a, b)


def minimum(a: Val, b: Val) -> Val:
    return a.block.emit(Prim.MIN, a, b)


def maximum(a: Val, b: Val) -> Val:
    return a.block.emit(Prim.MAX, a, b)


def quotient(a: Val, b: Val) -> Val:
    """a / b. If only b stays the same along an axis, its reciprocal is taken once, outside the pair loop.

    That is one more rounding at most, and a divisor below the normal numbers counts as 0.
    """
    pair = {I, J}
    scopes = a.block.scopes
    if pair <= scopes[a.index] | scopes[b.index] and not pair <= scopes[b.index]:
        return a * (1.0 / b)
    return a / b


def exp(a: Val) -> Val:
    """e^a. In e^(k·v) with only v of the pair, k takes log2(e) along outside the pair loop: 2^((k·log2 e)·v).

    That is one more rounding of k, of the size of those that v has behind it. e^(-v) is the case k = -1.
    """
    block, pair = a.block, {I, J}
    product = block.code_at(a.index)
    if product.prim is Prim.NEG and pair <= block.scopes[product.args[0]]:
        return exp2(Val(block, product.args[0]) * -LOG2_E)
    if product.prim is Prim.MUL:
        for k, v in (product.args, product.args[::-1]):
            if pair <= block.scopes[v] and not pair <= block.scopes[k]:
                return exp2(Val(block, k) * LOG2_E * Val(block, v))
    return block.emit(Prim.EXP, a)


def atan2(a: Val, b: Val) -> Val:
    return a.block.emit(Prim.ATAN2, a, b)


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
        self._instructions: list[Instr] = []
        self.scopes: list[Scope] = []

    @property
    def code(self) -> tuple[Instr, ...]:
        return tuple(self._instructions)

    def code_at(self, index: int) -> Instr:
        return self._instructions[index]

    def emit(self, prim: Prim, *args: Val | float, imm: Any = None) -> Val:
        lifted = tuple(a if isinstance(a, Val) else self.constant(a) for a in args)
        if (found := self._trivial(prim, lifted)) is not None:
            return found
        if (found := self._signed(prim, lifted)) is not None:
            return found
        if self._spoken is not None and prim not in self._spoken and prim in EXPAND:
            return EXPAND[prim](*lifted)
        scope: Scope = frozenset().union(*(self.scopes[a.index] for a in lifted))
        if prim is Prim.FOLD:
            scope -= {imm.loop}
        return self._add(Instr(prim, tuple(a.index for a in lifted), imm), scope)

    def _trivial(self, prim: Prim, args: tuple[Val, ...]) -> Val | None:
        """Arithmetic with a structural zero or with one. A computed 0.0 is not structural: 0·NaN stays NaN."""
        code = self._instructions
        zero = [code[a.index].imm == "zero" and code[a.index].prim is Prim.CONST for a in args]
        one = [code[a.index].imm == "1.0" and code[a.index].prim is Prim.CONST for a in args]
        match prim:
            case Prim.MUL if any(zero):
                return args[zero.index(True)]
            case Prim.MUL if any(one):
                return args[1 - one.index(True)]
            case Prim.DIV if zero[0] or one[1]:
                return args[0]
            case Prim.ADD if any(zero):
                return args[1 - zero.index(True)]
            case Prim.SUB if zero[1]:
                return args[0]
            case Prim.SUB if zero[0]:
                return -args[1]
            case Prim.NEG | Prim.FOLD if zero[0]:
                return args[0]
            case Prim.SELECT if args[1].index == args[2].index:
                return args[1]
        return None

    def _signed(self, prim: Prim, args: tuple[Val, ...]) -> Val | None:
        """A sign goes to the factor that is computed less often: -v·k and -(v·k) are v·(-k), exactly."""
        if prim is Prim.NEG and (product := self.code_at(args[0].index)).prim is Prim.MUL:
            for v, k in (product.args, product.args[::-1]):
                if self.scopes[k] < self.scopes[v]:
                    return Val(self, v) * -Val(self, k)
        if prim is Prim.MUL:
            for value, factor in (args, args[::-1]):
                negated = self.code_at(value.index)
                if negated.prim is Prim.NEG and self.scopes[factor.index] < self.scopes[value.index]:
                    return Val(self, negated.args[0]) * -factor
        return None

    def load(self, slot: int, k: Affine) -> Val:
        row = self._categories[slot]
        return self._add(Instr(Prim.LOAD, (), (slot, k)), frozenset(k.loops) | ({row} if row else set()))

    def row(self, symbol: str) -> Val:
        return self._add(Instr(Prim.ROW, (), symbol), frozenset({symbol}))

    def place(self, k: Affine) -> Val:
        """An index as a number."""
        if not k.terms:
            return self.constant(float(k.base))
        return self._add(Instr(Prim.INDEX, (), k), frozenset(k.loops))

    def constant(self, value: float | str) -> Val:
        # -0.0 == 0.0 and 1 == 1.0 would merge in a dict: the text tells them apart.
        imm = value if isinstance(value, str) else repr(float(value))
        return self._add(Instr(Prim.CONST, (), imm), frozenset())

    def zero(self) -> Val:
        """A zero that is known to be one: what is multiplied by it need not be computed."""
        return self.constant("zero")

    def arg(self, n: int) -> Val:
        return self._add(Instr(Prim.ARG, (), n), frozenset())

    def fold(self, how: str, loop: Loop, term: Val) -> Val:
        if loop not in self.scopes[term.index]:  # the term does not change along the loop
            return {"sum": lambda: term * float(loop.extent), "min": lambda: term, "max": lambda: term}.get(
                how, lambda: self.constant(0.0)
            )()
        return self.emit(Prim.FOLD, term, imm=Fold(loop, how))

    def _add(self, instr: Instr, scope: Scope) -> Val:
        index = self._index.setdefault(instr, len(self._index))
        if index > MAX_INSTRUCTIONS:
            raise FormulaTooLarge(f"the formula lowers to more than {MAX_INSTRUCTIONS} scalar instructions")
        if index == len(self.scopes):
            self._instructions.append(instr)
            self.scopes.append(scope)
        return Val(self, index)


def number(imm: str, highest: float) -> float:
    """The value of a CONST in a dtype whose largest finite value is `highest`."""
    match imm:
        case "zero":
            return 0.0
        case "highest":
            return highest
        case "lowest":
            return -highest
    return float(imm)


def fold(code: Sequence[Instr], table: dict[Prim, Any], leaf: Callable[[Instr], Any]) -> list[Any]:
    """Run straight-line code through a table of functions. This is the whole of instruction selection."""
    values: list[Any] = []
    for instr in code:
        if instr.prim in LEAVES:
            values.append(leaf(instr))
        else:
            values.append(table[instr.prim](*(values[a] for a in instr.args)))
    return values
