"""The state of one reduction inside the kernel: where it lives, how terms enter it, how it is left behind.

States are in registers, carried by the loops; ordered lists of K in scratch memory. Sums are kept twice: partial sums of a tile in the data dtype,
totals in float64, in scratch memory. Between the two, the sums of a few tiles (a slab) are added up in the
data dtype: nearly as exact, and a third of the work of a total. `first` is the place of this state's
components among all outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from farsum_kernels.backends.cpu.emit import run_rule
from farsum_kernels.backends.cpu.vector import LARGEST, Shape, Value, Vec
from farsum_kernels.formula.lower import Terms
from farsum_kernels.formula.reductions import Kind, Reduction
from farsum_kernels.scalar.ir import Val, number

if TYPE_CHECKING:
    from farsum_kernels.backends.cpu.skeleton import _Main


UNROLLED = 16  # places of an ordered list up to which an insertion is written out


class State:
    """One reduction in the pair loop of a kernel."""

    def __init__(self, kernel: _Main, rule: Reduction, k: int, terms: Terms, first: int) -> None:
        self.kernel, self.fn, self.vec, self.shape = kernel, kernel.fn, kernel.vec, kernel.shape
        self.rows = kernel.rows
        self.rule = rule
        self.terms = terms
        self.first = first
        self.listed = k if rule.listed else 0
        # With a loop over components, the rules see one at a time.
        self.dim = 1 if terms.loop else terms.dim
        self.kinds = rule.state(self.dim, len(terms.weight))
        self.repeats = [self.listed or 1] * len(self.kinds)  # vectors of each component, one after the other
        self.in_memory = rule.listed
        self.compensated = Kind.WIDE in self.kinds
        double = self.shape.scalar == "double"
        self.wide = Vec(self.fn, Shape(self.shape.lanes, "double", self.shape.scalef and double))
        # A float64 total of float64 sums is no wider than they are: a second word carries its error.
        self.carried = self.compensated and rule.additive and double
        integer = "int64" if double else "int32"
        stored = {Kind.VALUE: "float64" if double else "float32", Kind.WIDE: "float64", Kind.INDEX: integer}
        self.dtypes = tuple(stored[kind] for kind in self.kinds)
        imms = rule.identity(self.dim, len(terms.weight))
        self.identity = tuple(
            number(x if isinstance(x, str) else repr(x), LARGEST[self.shape.scalar]) for x in imms
        )
        self.two_level = kernel.layout.slab > kernel.layout.tile and rule.additive and not self.in_memory
        self._memory: list[str] = []  # states in scratch memory
        self._totals: list[str] = []  # compensated totals: one region per component, two if carried
        self._slabs: list[str] = []  # sums of the tiles of a slab
        self._ready: list[
            list[list[Value]]
        ] = []  # terms of the block at hand: [row vector][column][component]

    # ── the shape of a state ──────────────────────────────────────────────────────────────────────

    def _type(self, kind: Kind, vec: Vec | None = None) -> str:
        shape = (vec or self.vec).shape
        return shape.i if kind is Kind.INDEX else shape.f

    def _value(self, name: str, kind: Kind) -> Value:
        return Value(name, "i" if kind is Kind.INDEX else "f")

    def _identity(self, vec: Vec) -> list[Value]:
        return [
            Value("zeroinitializer", "i") if kind is Kind.INDEX else Value(vec.shape.number(x), "f")
            for x, kind in zip(self.identity, self.kinds, strict=True)
        ]

    def fresh(self) -> list[tuple[str, str]]:
        """The identity for each row vector, as carried (type, value) pairs; none if states are in memory."""
        if self.in_memory:
            return []
        one = [(self._type(k), v.name) for k, v in zip(self.kinds, self._identity(self.vec), strict=True)]
        return one * self.rows

    def _slot(self, region: str, place: str, u: int, kind: str) -> str:
        """The address of vector `place` of row vector u in a region."""
        at = self.fn.let(f"mul i64 {place}, {self.rows}")
        at = self.fn.let(f"add i64 {at}, {u}")
        return self.fn.let(f"getelementptr {kind}, ptr {region}, i64 {at}")

    def _read(self, region: str, place: str, u: int, kind: str) -> str:
        return self.fn.let(
            f"load {kind}, ptr {self._slot(region, place, u, kind)}, align {self.kernel.vector_bytes}"
        )

    def _write(self, region: str, place: str, u: int, kind: str, value: str, how: str = "") -> None:
        self.fn.do(
            f"store {how}{kind} {value}, ptr {self._slot(region, place, u, kind)}, align {self.kernel.vector_bytes}"
        )

    def _fill(self, regions: Sequence[str], vec: Vec, values: Sequence[Value]) -> None:
        """Set every vector of the regions to the identity."""
        for region, kind, value, repeat in zip(regions, self.kinds, values, self.repeats, strict=False):

            def each(
                place: str, _: list[str], region: str = region, kind: Kind = kind, value: Value = value
            ) -> list[str]:
                for u in range(self.rows):
                    self._write(region, place, u, self._type(kind, vec), value.name)
                return []

            self.fn.loop("0", str(repeat), 1, [], each)

    # ── the life of a state ───────────────────────────────────────────────────────────────────────

    def reserve(self) -> None:
        """Take scratch memory, once per kernel."""
        if self.in_memory:
            self._memory = [self.kernel.region(r * self.rows, self.kernel.vector_bytes) for r in self.repeats]
        if self.compensated:
            repeats = self.repeats * (2 if self.carried else 1)
            self._totals = [self.kernel.region(r * self.rows, self.shape.lanes * 8) for r in repeats]
        if self.two_level:
            self._slabs = [self.kernel.region(self.rows, self.kernel.vector_bytes) for _ in self.kinds]

    def begin_task(self) -> None:
        if self.compensated:
            self._fill(self._totals, self.wide, self._identity(self.wide))
            if self.carried:
                zeros = [Value("zeroinitializer", "f")] * len(self.kinds)
                self._fill(self._totals[len(self.kinds) :], self.wide, zeros)
        elif self.in_memory:
            self._fill(self._memory, self.vec, self._identity(self.vec))

    def begin_slab(self) -> None:
        self._fill(self._slabs, self.vec, self._identity(self.vec))

    def begin_tile(self) -> None:
        if self.in_memory:
            self._fill(self._memory, self.vec, self._identity(self.vec))

    def begin_strip(self, first: str) -> None:
        """A strip of columns begins: of long terms, the pairs come first and the components after."""

    def end_strip(self, first: str, end: str, before: Sequence[str], after: Sequence[str]) -> Sequence[str]:
        """The pairs of the strip are done; gives the values that are carried on, from those before and after it."""
        return after

    def prepare(self, width: int) -> None:
        """Compute the terms of the block of columns at hand."""
        # Column by column, so that the numbers of one column at a time are in registers.
        columns = [[self._term(u, q) for u in range(self.rows)] for q in range(width)]
        self._ready = [[column[u] for column in columns] for u in range(self.rows)]

    def accumulate(self, state: Sequence[str], width: int) -> list[str]:
        """The carried values after the block of columns at hand."""
        if self.listed:
            for u in range(self.rows):
                for c in range(self.dim):
                    self._push(u, "0", c, [[t[c]] for t in self._ready[u]])
            return []
        count = len(self.kinds)
        new: list[str] = []
        for u in range(self.rows):
            new += self._updated(state[u * count : (u + 1) * count], self._ready[u])
        return new

    def _term(self, u: int, q: int) -> list[Value]:
        return [self.kernel.get(n, u, q) for n in (*self.terms.value, *self.terms.weight)]

    # ── the rules ─────────────────────────────────────────────────────────────────────────────────

    def _places(self, count: int) -> list[Value]:
        """The columns at hand as index vectors."""
        made = []
        for q in range(count):
            at = self.kernel.column if q == 0 else self.fn.let(f"add i64 {self.kernel.column}, {q}")
            if self.shape.integer != "i64":
                at = self.fn.let(f"trunc i64 {at} to {self.shape.integer}")
            made.append(Value(self.vec.splat(at, self.shape.integer), "i"))
        return made

    def _updated(self, state: Sequence[str], terms: list[list[Value]]) -> list[str]:
        """The state after a block of terms; skipped where the rule's gate says that nothing can change."""
        values = [self._value(s, kind) for s, kind in zip(state, self.kinds, strict=True)]

        def update() -> list[str]:
            places = self._places(len(terms)) if Kind.INDEX in self.kinds else []
            args = values + [v for t in terms for v in t] + places
            return [v.name for v in run_rule(self.vec, args, self._accumulation(len(terms), len(terms[0])))]

        if not self.rule.gate:
            return update()
        typed = [(self._type(kind), s) for kind, s in zip(self.kinds, state, strict=True)]
        return self.fn.when(self._passes(values, terms), typed, update)

    def _accumulation(self, count: int, width: int) -> Callable[[list[Val]], Sequence[Val]]:
        """`accumulate` on one flat list: the state, the terms, the places."""
        states = len(self.kinds)

        def rule(args: list[Val]) -> Sequence[Val]:
            state, rest = tuple(args[:states]), args[states:]
            terms = [tuple(rest[q * width : (q + 1) * width]) for q in range(count)]
            places = rest[count * width :] or [rest[0]] * count  # unread by rules without an index
            return self.rule.accumulate(state, terms, places)

        return rule

    def _passes(self, state: Sequence[Value], terms: list[list[Value]]) -> str:
        """Can any lane of the state change by any of the terms?"""
        gate, states, width = self.rule.gate, len(state), len(terms[0])
        assert gate

        def rule(args: list[Val]) -> Sequence[Val]:
            rest = args[states:]
            return [
                gate(
                    tuple(args[:states]),
                    [tuple(rest[q * width : (q + 1) * width]) for q in range(len(terms))],
                )
            ]

        (mask,) = run_rule(self.vec, [*state, *(v for t in terms for v in t)], rule)
        return self.vec.any(mask.name)

    def _push(self, u: int, base: str, c: int, terms: list[list[Value]]) -> None:
        """Insert terms into the ordered lists of component c of row vector u, where they are good enough."""
        fn, step = self.fn, self.rule.step
        assert step
        f, i = self.shape.f, self.shape.i
        values, places = self._memory[c], self._memory[self.dim + c]
        end = fn.let(f"add i64 {base}, {self.listed - 1}")

        def worst() -> list[Value]:
            return [Value(self._read(values, end, u, f), "f"), Value(self._read(places, end, u, i), "i")]

        def insert(x: Value, j: Value) -> Sequence[str]:
            def each(slot: str, carry: list[str]) -> Sequence[str]:
                at = fn.let(f"add i64 {base}, {slot}")
                args = [
                    Value(self._read(values, at, u, f), "f"), Value(self._read(places, at, u, i), "i"),
                    Value(carry[0], "f"), Value(carry[1], "i"), Value(carry[2], "m"),
                ]  # fmt: skip
                kept, where, out, place, moved = run_rule(self.vec, args, lambda a: step(*a))
                # Volatile, or choice and store become one masked store, which the next load has to wait for.
                self._write(values, at, u, f, kept.name, "volatile ")
                self._write(places, at, u, i, where.name, "volatile ")
                return [out.name, place.name, moved.name]

            carry: Sequence[str] = [x.name, j.name, "zeroinitializer"]
            if self.listed <= UNROLLED:
                for slot in range(self.listed):
                    carry = each(str(slot), list(carry))
            else:
                types = (f, i, self.shape.m)
                fn.loop("0", str(self.listed), 1, list(zip(types, carry, strict=True)), each)
            return []

        def insert_all() -> Sequence[str]:
            for (x,), j in zip(terms, self._places(len(terms)), strict=True):
                fn.when(self._passes(worst(), [[x]]), [], lambda x=x, j=j: insert(x, j))  # type: ignore[misc]
            return []

        fn.when(self._passes(worst(), terms), [], insert_all)

    # ── the end of a tile, the end of a task ──────────────────────────────────────────────────────

    def flush(self, state: Sequence[str]) -> None:
        """Merge the partial states of a tile into the sums of its slab, or into the totals."""
        if not self.two_level:
            self._into_totals(state)
            return
        count = len(self.kinds)
        for u in range(self.rows):
            for c, region in enumerate(self._slabs):
                total = self._read(region, "0", u, self.shape.f)
                self._write(
                    region, "0", u, self.shape.f, self.vec.binary("fadd", total, state[u * count + c])
                )

    def end_slab(self) -> None:
        """Merge the sums of a slab into the totals."""
        self._into_totals(
            [self._read(r, "0", u, self.shape.f) for u in range(self.rows) for r in self._slabs]
        )

    def _into_totals(self, state: Sequence[str]) -> None:
        count = len(self.kinds)
        for u in range(self.rows):
            self._merge_total("0", u, state[u * count : (u + 1) * count])

    def _merge_total(self, place: str, u: int, tile: Sequence[str]) -> None:
        count = len(self.kinds)
        totals = [Value(self._read(t, place, u, self.wide.f), "f") for t in self._totals[:count]]
        parts = [Value(self._widened(name), "f") for name in tile]
        if self.carried:
            for c, (total, part) in enumerate(zip(totals, parts, strict=True)):
                self._two_sum(place, u, c, total.name, part.name)
            return
        merged = run_rule(
            self.wide, totals + parts, lambda a: self.rule.merge(tuple(a[:count]), tuple(a[count:]))
        )
        for region, value in zip(self._totals, merged, strict=True):
            self._write(region, place, u, self.wide.f, value.name)

    def _widened(self, name: str) -> str:
        if self.shape.scalar == "double":
            return name
        return self.fn.let(f"fpext {self.shape.f} {name} to {self.wide.f}")

    def _two_sum(self, place: str, u: int, c: int, total: str, part: str) -> None:
        # Knuth's two-sum: `error` is exactly what the rounded sum lost. No `contract` here.
        fn, f = self.fn, self.wide.f
        carry = self._totals[len(self.kinds) + c]
        high = fn.let(f"fadd {f} {total}, {part}")
        back = fn.let(f"fsub {f} {high}, {total}")
        lost = fn.let(f"fsub {f} {total}, {fn.let(f'fsub {f} {high}, {back}')}")
        error = fn.let(f"fadd {f} {lost}, {fn.let(f'fsub {f} {part}, {back}')}")
        # An infinite or NaN sum has no error to speak of.
        finite = fn.let(f"fcmp ord {f} {error}, zeroinitializer")
        error = fn.let(f"select <{self.wide.shape.lanes} x i1> {finite}, {f} {error}, {f} zeroinitializer")
        low = fn.let(f"fadd {f} {self._read(carry, place, u, f)}, {error}")
        self._write(self._totals[c], place, u, f, high)
        self._write(carry, place, u, f, low)

    def leave(self, state: Sequence[str]) -> None:
        """Write the states of the task out, one row of `out` per repeat."""
        for c, (kind, repeat) in enumerate(zip(self.kinds, self.repeats, strict=True)):
            vec = self.wide if kind is Kind.WIDE else self.vec

            def each(place: str, _: list[str], c: int = c, kind: Kind = kind, vec: Vec = vec) -> list[str]:
                for u in range(self.rows):
                    value = self._finished(state, place, c, u)
                    self.kernel.store(self.first + c, u, value, self._type(kind, vec), place)
                return []

            self.fn.loop("0", str(repeat), 1, [], each)

    def _finished(self, state: Sequence[str], place: str, c: int, u: int) -> str:
        kind, count = self.kinds[c], len(self.kinds)
        if not self.compensated:
            if self.in_memory:
                return self._read(self._memory[c], place, u, self._type(kind))
            return state[u * count + c]
        total = self._read(self._totals[c], place, u, self.wide.f)
        if self.carried:
            carry = self._read(self._totals[count + c], place, u, self.wide.f)
            total = self.fn.let(f"fadd {self.wide.f} {total}, {carry}")
        if self.rule.additive and (factor := self.terms.factor[c]) is not None:
            total = self.wide.binary("fmul", total, self._widened(self.kernel.get(factor, u).name))
        if kind is Kind.VALUE and self.shape.scalar == "float":
            return self.fn.let(f"fptrunc {self.wide.f} {total} to {self.shape.f}")
        return total
