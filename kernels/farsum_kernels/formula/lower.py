"""From a formula to the scalar IR.

Vectors are *pulled*: a consumer asks an operand for its component k, so a chain of elementwise
operations ends in the reduction that consumes it and no D-sized temporary exists. Dimensions up to
`unroll` become straight-line code; longer ones become loops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

from farsum_kernels.errors import FormulaTooLarge
from farsum_kernels.formula.expr import CONST, Expr, I, J, variables, walk
from farsum_kernels.scalar import ir
from farsum_kernels.scalar.check import check
from farsum_kernels.scalar.indices import Affine, Loop
from farsum_kernels.scalar.ir import Block, Instr, Prim, Scope, Val

Index = int | Loop | Affine

# Operations whose operands mean something only inside them: they are lowered by the rule of the operation.
_CLOSED = frozenset({"BasisSum"})


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
    """The state of one lowering: the block, the vectors already made, the basis vectors at hand."""

    def __init__(self, block: Block, slots: dict[int, int], unroll: int) -> None:
        self.block = block
        self._slots = slots
        self.unroll = unroll
        self._vectors: dict[Expr, Vector] = {}
        self._bound: dict[int, Vector] = {}
        self._outer: Lowering | None = None
        self._depth = 0  # of the loops over basis vectors around this lowering
        self._own: set[Expr] = set()
        self._inner: dict[tuple[int, Affine], Lowering] = {}

    def vector(self, root: Expr) -> Vector:
        """The value of a formula. Operands are made first, so rules that come back here do not nest deeply."""
        if root in self._vectors:
            return self._vectors[root]
        for expr in walk(root, closed=_CLOSED):
            if expr not in self._vectors:
                self._vectors[expr] = made = self._made(expr)
                if expr.dim == 1:
                    made.at(0)
        return self._vectors[root]

    def _made(self, expr: Expr) -> Vector:
        if self._outer and expr not in self._own:
            return self._outer.vector(expr)
        if expr.op.lower:
            return expr.op.lower(self, expr)
        assert expr.op.expand, f"{expr.op} has no meaning"
        if self._outer:
            # What an expansion is made of depends on the basis vector wherever the whole does.
            inner = expr.op.expand(*expr.args, *expr.params)
            self._own |= _depending(inner, self._own)
            return self.vector(inner)
        return self.vector(expr.op.expand(*expr.args, *expr.params))

    def bound(self, index: int, dim: int, place: Affine, depending: set[Expr]) -> Lowering:
        """The same lowering with fictitious variable `index` standing for basis vector number `place`."""
        if (index, place) not in self._inner:
            inner = Lowering(self.block, self._slots, self.unroll)
            inner._outer = self
            inner._depth = max(place.depth, self._depth)
            inner._bound = self._bound | {index: Vector(dim, lambda k: self._delta(k, place))}
            self._inner[index, place] = inner
        # Two sums may use one fictitious variable: what depends on it is then asked for twice.
        self._inner[index, place]._own |= depending
        return self._inner[index, place]

    def _delta(self, k: Affine, place: Affine) -> Val:
        """1 where two indices are equal, else a structural zero."""
        distance = k - place
        low, high = distance.bounds
        if low == high:
            return self.block.constant(1.0) if low == 0 else self.block.zero()
        if low > 0 or high < 0:
            return self.block.zero()
        return ir.select(ir.equal(self.block.place(k), self.block.place(place)), 1.0, self.block.zero())

    def leaf(self, leaf: Expr) -> Vector:
        if leaf.op is CONST:
            value = self.block.constant(leaf.params[0])
            return Vector(1, lambda _: value)
        index = leaf.params[0]
        if index < 0:
            return self._bound[index]
        slot = self._slots[index]
        return Vector(leaf.dim, lambda k: self.block.load(slot, k))

    def sum(self, term: Callable[[Affine], Val], extent: int, inside: Affine = Affine(0)) -> Val:
        """The sum of term(0 … extent-1): straight-line when short, a loop when long."""
        if extent <= self.unroll:
            return reduce(lambda a, b: a + b, (term(Affine(k)) for k in range(extent)))
        loop = self._loop(extent, inside)
        return self.block.fold("sum", loop, term(Affine.of(loop)))

    def _loop(self, extent: int, inside: Affine) -> Loop:
        return Loop(extent, max(inside.depth, self._depth))

    def extremum(
        self, how: str, term: Callable[[Affine], Val], extent: int, inside: Affine = Affine(0)
    ) -> Val:
        """The "min", "max", "argmin" or "argmax" of term(0 … extent-1), by a scan from the first."""
        if extent > self.unroll:
            loop = self._loop(extent, inside)
            return self.block.fold(how, loop, term(Affine.of(loop)))
        best, place = term(Affine(0)), self.block.constant(0.0)
        for k in range(1, extent):
            x = term(Affine(k))
            take = x < best if how.endswith("min") else x > best
            best, place = ir.select(take, x, best), ir.select(take, float(k), place)
        return place if how.startswith("arg") else best

    def components(self, root: Expr) -> tuple[Val, ...] | Loop:
        """All components of a root, or the loop over them when they are too many to write out."""
        vector = self.vector(root)
        if root.dim > max(1, self.unroll):
            return Loop(root.dim)
        return tuple(vector.at(k) for k in range(root.dim))


def _depending(root: Expr, known: set[Expr]) -> set[Expr]:
    """The nodes below root that depend on a node of `known`."""
    found = set(known)
    for n in walk(root):
        if any(a in found for a in n.args):
            found.add(n)
    return found


@dataclass(frozen=True)
class Want:
    """What a reduction wants of each pair: F, its weight, and whether it adds the terms up."""

    formula: Expr
    weight: Expr | None = None
    additive: bool = False


@dataclass(frozen=True)
class Terms:
    """Where the terms of one reduction are in the code.

    value    the components of F
    factor   for each, what was taken out of the sum because it does not depend on the column
    weight   the components of the weight, if the reduction has one
    loop     set when F is too long to write out: `value` then has one entry that depends on it
    along    the same for the weight: `weight` then has one entry that depends on it
    """

    value: tuple[int, ...]
    factor: tuple[int | None, ...]
    weight: tuple[int, ...]
    loop: Loop | None
    dim: int
    along: Loop | None = None

    @property
    def long(self) -> bool:
        """Are components of F or of the weight left to a loop?"""
        return bool(self.loop or self.along)

    @property
    def places(self) -> list[int]:
        return [*self.value, *(f for f in self.factor if f is not None), *self.weight]


@dataclass(frozen=True)
class Program:
    """Lowered formulas: the input variables in slot order, one scalar code, the terms of each reduction."""

    slots: tuple[Expr, ...]
    code: tuple[Instr, ...]
    scopes: tuple[Scope, ...]
    terms: tuple[Terms, ...]

    @cached_property
    def stages(self) -> list[int]:
        """How many folds deep each value is: folds of one stage do not need each other."""
        stages: list[int] = []
        for instr in self.code:
            own = 1 if instr.prim is Prim.FOLD else 0
            stages.append(own + max((stages[a] for a in instr.args), default=0))
        return stages

    def shared(self, terms: Terms) -> list[int]:
        """What the components of long terms have in common: numbers of a pair that do not change along the loop."""
        found: set[int] = set()
        seen: set[int] = set()
        stack = [*terms.weight, *(terms.value if terms.loop else ())]
        while stack:
            n = stack.pop()
            if n in seen:
                continue
            seen.add(n)
            whole = not any(isinstance(s, Loop) for s in self.scopes[n])
            if whole and self.code[n].prim not in ir.MASKS:
                if {ir.I, ir.J} <= self.scopes[n]:
                    found.add(n)
                continue
            stack.extend(self.code[n].args)
        return sorted(found)

    def each_component(self, terms: Terms) -> list[Prim]:
        """What is computed for each component of long terms, at each pair."""
        ends = [*terms.weight, *(terms.value if terms.loop else ())]
        shared, seen, stack = set(self.shared(terms)), set(), [*ends]
        while stack:
            n = stack.pop()
            pairwise = {ir.I, ir.J} <= self.scopes[n]
            if n not in seen and n not in shared and (pairwise or self.code[n].prim is Prim.FOLD):
                seen.add(n)
                stack.extend(self.code[n].args)
        return [self.code[n].prim for n in sorted(seen)]

    def flops_per_pair(self) -> float:
        """Arithmetic that is done for each pair, loops counted by their extent."""
        total = 0.0
        for instr, scope in zip(self.code, self.scopes, strict=True):
            if {ir.I, ir.J} <= scope and instr.prim not in ir.LEAVES:
                cost = _COST.get(instr.prim, 1.0)
                for symbol in scope | ({instr.imm.loop} if instr.prim is Prim.FOLD else set()):
                    cost *= symbol.extent if isinstance(symbol, Loop) else 1
                total += cost
        return max(total, 1.0) + sum(t.dim + (t.along.extent if t.along else 0) for t in self.terms)


# In units of one fused multiply-add.
_COST = {
    Prim.EXP: 9.0,
    Prim.EXP2: 7.0,
    Prim.LOG: 12.0,
    Prim.SIN: 14.0,
    Prim.COS: 14.0,
    Prim.POW: 60.0,
    Prim.ASIN: 20.0,
    Prim.ACOS: 20.0,
    Prim.ATAN: 20.0,
    Prim.ATAN2: 22.0,
    Prim.SQRT: 5.0,
    Prim.DIV: 5.0,
}
_SYMBOL = {I: ir.I, J: ir.J}


def lower(
    wants: Sequence[Want], unroll: int, spoken: Sequence[Prim] | None = None, long_weights: bool = False
) -> Program:
    """Lower the formulas of a job into one program; what they share is computed once.

    With `long_weights`, weights wider than `unroll` are loops too. Raises FormulaTooLarge when the program
    takes too many instructions.
    """
    slots = variables(*(root for w in wants for root in (w.formula, w.weight) if root))
    block = Block([_SYMBOL.get(v.params[2]) for v in slots.values()], spoken)
    lowering = Lowering(block, {index: slot for slot, index in enumerate(slots)}, unroll)
    try:
        found = [_terms_of(lowering, want, long_weights) for want in wants]
    except RecursionError:
        raise FormulaTooLarge("the formula is nested too deeply") from None
    code, scopes, place = _live(block, [n for t in found for n in t.places])
    check(code, len(slots))
    terms = tuple(
        Terms(
            tuple(place[n] for n in t.value),
            tuple(None if n is None else place[n] for n in t.factor),
            tuple(place[n] for n in t.weight),
            t.loop,
            t.dim,
            t.along,
        )
        for t in found
    )
    return Program(tuple(slots.values()), code, scopes, terms)


def _terms_of(lowering: Lowering, want: Want, long_weights: bool) -> Terms:
    value = lowering.components(want.formula)
    loop = value if isinstance(value, Loop) else None
    if isinstance(value, Loop):
        value = (lowering.vector(want.formula).at(value),)
    weights: list[Val] = []
    along = None
    if want.weight is not None:
        vector = lowering.vector(want.weight)
        along = Loop(want.weight.dim) if long_weights and want.weight.dim > max(1, lowering.unroll) else None
        weights = [vector.at(k) for k in ([along] if along else range(want.weight.dim))]
    factors: list[Val | None] = [None] * len(value)
    if want.additive:
        split = [_split(v) for v in value]
        one = lowering.block.constant(1.0)
        factors, value = [f for f, _ in split], tuple(_grouped(rest or one) for _, rest in split)
    return Terms(
        tuple(v.index for v in value),
        tuple(f.index if f else None for f in factors),
        tuple(w.index for w in weights),
        loop,
        want.formula.dim,
        along,
    )


def _split(v: Val) -> tuple[Val | None, Val | None]:
    """v as (what does not depend on the column) × (what does); None stands for 1."""
    block = v.block
    instr = block.code_at(v.index)
    if block.scopes[v.index] <= {ir.I} and instr.prim is not Prim.CONST:
        return v, None
    if instr.prim is Prim.NEG:
        factor, rest = _split(Val(block, instr.args[0]))
        return (-factor, rest) if factor else (None, v)
    if instr.prim is not Prim.MUL:
        return None, v
    (f, a), (g, b) = (_split(Val(block, arg)) for arg in instr.args)
    if not f and not g:
        return None, v
    return (f * g if f and g else f or g), (a * b if a and b else a or b)


def _grouped(v: Val) -> Val:
    """A product in which what depends on the column alone is multiplied once for each column, not for each pair."""
    block = v.block
    found: list[Val] = []

    def flatten(n: int) -> None:
        instr = block.code_at(n)
        if instr.prim is Prim.MUL and {ir.I, ir.J} <= block.scopes[n]:
            for a in instr.args:
                flatten(a)
        else:
            found.append(Val(block, n))

    flatten(v.index)
    columns = [x for x in found if block.scopes[x.index] == {ir.J}]
    if len(columns) < 2:
        return v
    # Powers first: what follows them may be a component of many.
    others = [x for x in found if block.scopes[x.index] != {ir.J}]
    others.sort(key=lambda x: block.code_at(x.index).prim is not Prim.EXP2)
    product = (
        others[0] * reduce(lambda a, b: a * b, columns) if others else reduce(lambda a, b: a * b, columns)
    )
    return reduce(lambda a, b: a * b, others[1:], product)


def _live(block: Block, results: list[int]) -> tuple[tuple[Instr, ...], tuple[Scope, ...], dict[int, int]]:
    """The code that the results need, and the new place of each instruction."""
    code = block.code
    needed = set(results)
    for n in range(len(code) - 1, -1, -1):
        if n in needed:
            needed.update(code[n].args)
    place = {n: p for p, n in enumerate(sorted(needed))}
    kept = tuple(Instr(code[n].prim, tuple(place[a] for a in code[n].args), code[n].imm) for n in place)
    return kept, tuple(block.scopes[n] for n in place), place
