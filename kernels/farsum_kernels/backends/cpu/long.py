"""The state of a reduction with many components: a long F, or a long weight of sums of exp(x)·g.

The pair loop only computes what the components have in common, for a strip of columns, and leaves it in scratch
memory. Then the components come, a few at a time: their sums over the strip are held in registers, vectors of
rows × components, as in a product of matrices. All states are in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from farsum_kernels.backends.cpu.emit import run_rule
from farsum_kernels.backends.cpu.states import State
from farsum_kernels.backends.cpu.vector import Value, Vec
from farsum_kernels.formula.lower import Terms
from farsum_kernels.formula.reductions import Reduction

if TYPE_CHECKING:
    from farsum_kernels.backends.cpu.skeleton import _Main

PEAK_COLUMNS = 8  # terms that are compared with a maximum before it is looked at again


class LongState(State):
    """One reduction whose components are a loop."""

    def __init__(self, kernel: _Main, rule: Reduction, k: int, terms: Terms, first: int) -> None:
        super().__init__(kernel, rule, k, terms, first)
        loop = terms.loop or terms.along
        assert loop
        self._loop = loop
        self.in_memory, self.two_level = True, False
        if terms.along:
            # The maximum and the sum of the shares themselves are there once for all components of the weight.
            self.repeats = [1] * (len(self.kinds) - 1) + [loop.extent]
        else:
            self.repeats = [loop.extent * repeat for repeat in self.repeats]
        self._staged: dict[
            int, str
        ] = {}  # a number of the pair -> where it is, column by column of the strip
        self._shares = ""  # the same for the terms of an exponential, and then for their shares
        self._strip = ""

    def reserve(self) -> None:
        super().reserve()
        vectors = self.kernel.layout.strip * self.rows
        for n in self.kernel.program.shared(self.terms):
            self._staged[n] = self.kernel.region(vectors, self.kernel.vector_bytes)
        if self.terms.along:
            self._shares = self.kernel.region(vectors, self.kernel.vector_bytes)

    def begin_strip(self, first: str) -> None:
        self._strip = first

    def prepare(self, width: int) -> None:
        """Leave the numbers of the block of columns at hand in memory."""
        fn, f = self.fn, self.shape.f
        kept = list(self._staged.items())
        if self.terms.along:
            kept.append((self.terms.value[0], self._shares))
        place = fn.let(f"sub i64 {self.kernel.column}, {self._strip}")
        for q in range(width):
            at = fn.let(f"add i64 {place}, {q}")
            for n, region in kept:
                for u in range(self.rows):
                    self._write(region, at, u, f, self.kernel.get(n, u, q).name)

    def accumulate(self, state: Sequence[str], width: int) -> list[str]:
        return []

    def end_strip(self, first: str, end: str, before: Sequence[str], after: Sequence[str]) -> Sequence[str]:
        """Meet the components with all columns of the strip."""
        scales = self._rise(self.fn.let(f"sub i64 {end}, {first}")) if self.terms.along else []
        extent = self._loop.extent
        chunk = min(self.kernel.layout.chunk, extent)
        whole = extent // chunk * chunk

        def each(k: str, _: list[str]) -> list[str]:
            self._chunk(k, chunk, first, end, scales)
            return []

        self.fn.loop("0", str(whole), chunk, [], each)
        if extent > whole:
            self._chunk(str(whole), extent - whole, first, end, scales)
        return []

    # ── sums of exp(x)·g ──────────────────────────────────────────────────────────────────────────

    def _rise(self, count: str) -> list[str]:
        """From terms to shares, beside the maximum so far; gives what the sums so far are rescaled by."""
        fn, f, rows = self.fn, self.shape.f, range(self.rows)
        peak, share = self.rule.peak, self.rule.share
        assert peak and share
        old = [self._read(self._memory[0], "0", u, f) for u in rows]

        def peaks(at: str, tops: list[str], width: int) -> list[str]:
            new = []
            for u in rows:
                places = [at if q == 0 else fn.let(f"add i64 {at}, {q}") for q in range(width)]
                xs = [self._read(self._shares, place, u, f) for place in places]
                new += self._rule([tops[u], *xs], lambda a: [peak(a[0], a[1:])])
            return new

        even = fn.let(f"and i64 {count}, {-PEAK_COLUMNS}")
        tops = fn.loop(
            "0", even, PEAK_COLUMNS, [(f, x) for x in old], lambda at, names: peaks(at, names, PEAK_COLUMNS)
        )
        tops = fn.loop(even, count, 1, [(f, x) for x in tops], lambda at, names: peaks(at, names, 1))

        def shares(at: str, sums: list[str]) -> list[str]:
            new = []
            for u in rows:
                x = self._read(self._shares, at, u, f)
                (part,) = self._rule([x, tops[u]], lambda a: [share(*a)])
                self._write(self._shares, at, u, f, part)
                new.append(self.vec.binary("fadd", sums[u], part))
            return new

        sums = fn.loop("0", count, 1, [(f, "zeroinitializer")] * self.rows, shares)
        scales = []
        for u in rows:
            scales += self._rule([old[u], tops[u]], lambda a: [share(*a)])
            self._write(self._memory[0], "0", u, f, tops[u])
            for region in self._memory[1:-1]:
                total = self.vec.fma(self._read(region, "0", u, f), scales[u], sums[u])
                self._write(region, "0", u, f, total)
        return scales

    def _rule(self, names: Sequence[str], rule: object, vec: Vec | None = None) -> list[str]:
        values = run_rule(vec or self.vec, [Value(name, "f") for name in names], rule)  # type: ignore[arg-type]
        return [v.name for v in values]

    # ── the components ────────────────────────────────────────────────────────────────────────────

    def _chunk(self, k: str, count: int, first: str, end: str, scales: Sequence[str]) -> None:
        """Components k … k + count - 1, over the strip of columns."""
        fn, kernel = self.fn, self.kernel
        counters = [k if c == 0 else fn.let(f"add i64 {k}, {c}") for c in range(count)]
        if self.listed:
            fresh = []
        elif self.terms.along:
            fresh = [(self.shape.f, "zeroinitializer")] * self.rows
        else:
            one = zip(self.kinds, self._identity(self.vec), strict=True)
            fresh = [(self._type(kind), value.name) for kind, value in one] * self.rows

        def block(column: str, width: int, carried: list[str]) -> list[str]:
            new: list[str] = []
            with kernel.block_of(column, width):
                shares = self._recalled(width)
                for n in (*self.terms.weight, *(self.terms.value if self.terms.loop else ())):
                    kernel.hoist(n)
                for c, counter in enumerate(counters):
                    own = carried[c * len(fresh) : (c + 1) * len(fresh)]
                    with kernel.frame(self._loop, counter):
                        new += self._component(counter, own, shares, width)
            return new

        # One column at a time, unless each component is so much work that it has the registers for itself.
        width = kernel.layout.columns if kernel.layout.chunk == 1 else 1
        values = kernel.blocks(first, end, width, fresh * count, block)
        for c, counter in enumerate(counters):
            own = values[c * len(fresh) : (c + 1) * len(fresh)]
            for u in range(self.rows if fresh else 0):
                self._remember(counter, u, own, scales)

    def _recalled(self, width: int) -> list[list[str]]:
        """Find what the pair loop left behind; gives the shares by vector of rows and column."""
        f = self.shape.f
        place = self.fn.let(f"sub i64 {self.kernel.column}, {self._strip}")
        places = [place if q == 0 else self.fn.let(f"add i64 {place}, {q}") for q in range(width)]
        for n, region in self._staged.items():
            for q, at in enumerate(places):
                for u in range(self.rows):
                    self.kernel.know(n, u, q, Value(self._read(region, at, u, f), "f"))
        if not self.terms.along:
            return []
        return [[self._read(self._shares, at, u, f) for at in places] for u in range(self.rows)]

    def _component(self, k: str, state: Sequence[str], shares: list[list[str]], width: int) -> list[str]:
        """The state of component k of all rows after a block of columns."""
        new: list[str] = []
        for u in range(self.rows):
            if self.terms.along:
                total = state[u]
                for q in range(width):
                    total = self.vec.fma(
                        shares[u][q], self.kernel.get(self.terms.weight[0], u, q).name, total
                    )
                new.append(total)
                continue
            terms = [self._term(u, q) for q in range(width)]
            if self.listed:
                self._push(u, self.fn.let(f"mul i64 {k}, {self.listed}"), 0, terms)
                continue
            count = len(self.kinds)
            new += self._updated(state[u * count : (u + 1) * count], terms)
        return new

    def _remember(self, k: str, u: int, new: Sequence[str], scales: Sequence[str]) -> None:
        """Merge what a strip gave for component k into the state in memory."""
        if self.terms.along:
            region, f = self._memory[-1], self.shape.f
            self._write(region, k, u, f, self.vec.fma(self._read(region, k, u, f), scales[u], new[u]))
            return
        count = len(self.kinds)
        types = [self._type(kind) for kind in self.kinds]
        old = [self._read(region, k, u, t) for region, t in zip(self._memory, types, strict=True)]
        names = [*old, *new[u * count : (u + 1) * count]]
        args = [self._value(name, kind) for name, kind in zip(names, self.kinds * 2, strict=True)]
        merged = run_rule(self.vec, args, lambda a: self.rule.merge(tuple(a[:count]), tuple(a[count:])))
        for region, t, value in zip(self._memory, types, merged, strict=True):
            self._write(region, k, u, t, value.name)

    # ── the end of a tile ─────────────────────────────────────────────────────────────────────────

    def flush(self, state: Sequence[str]) -> None:
        """Merge the states of a tile into the totals."""
        if self.terms.along:
            for u in range(self.rows):
                self._merge_shifted(u)
            return

        def each(place: str, _: list[str]) -> list[str]:
            for u in range(self.rows):
                self._merge_total(place, u, [self._read(m, place, u, self.shape.f) for m in self._memory])
            return []

        self.fn.loop("0", str(self.repeats[0]), 1, [], each)

    def _merge_shifted(self, u: int) -> None:
        """The same for sums beside a maximum: the rescaling is computed once for all components."""
        wide, peak, share = self.wide, self.rule.peak, self.rule.share
        assert peak and share
        m = self._read(self._totals[0], "0", u, wide.f)
        n = self._widened(self._read(self._memory[0], "0", u, self.shape.f))
        (top,) = self._rule([m, n], lambda a: [peak(a[0], a[1:])], wide)
        left, right = self._rule([m, n, top], lambda a: [share(a[0], a[2]), share(a[1], a[2])], wide)
        self._write(self._totals[0], "0", u, wide.f, top)
        for total, part, repeat in zip(self._totals[1:], self._memory[1:], self.repeats[1:], strict=True):

            def each(place: str, _: list[str], total: str = total, part: str = part) -> list[str]:
                new = wide.binary("fmul", self._widened(self._read(part, place, u, self.shape.f)), right)
                new = wide.fma(self._read(total, place, u, wide.f), left, new)
                self._write(total, place, u, wide.f, new)
                return []

            self.fn.loop("0", str(repeat), 1, [], each)
