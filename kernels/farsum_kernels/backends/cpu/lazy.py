"""The state of an extremum with its place, when the place is found last.

The pair loop keeps the best value alone: one operation a pair, no branch, no index. After each strip of columns the
rows whose value improved note where the strip begins. At the end of a task each row looks once through the columns
of its strip for the first that has its value.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from farsum_kernels.backends.cpu.emit import run_rule
from farsum_kernels.backends.cpu.states import State
from farsum_kernels.backends.cpu.vector import Value
from farsum_kernels.scalar.ir import Val, select


class LazyState(State):
    """One reduction to the best value and its place, of a scalar F."""

    def accumulate(self, state: Sequence[str], width: int) -> list[str]:
        pick = self.rule.pick
        assert pick
        new: list[str] = []
        for u in range(self.rows):
            best, place = state[2 * u : 2 * u + 2]
            terms = [Value(best, "f"), *(t[0] for t in self._ready[u])]
            (value,) = run_rule(self.vec, terms, lambda a: [reduce(lambda m, x: pick(x, m), a[1:], a[0])])
            new += [value.name, place]
        return new

    def end_strip(self, first: str, end: str, before: Sequence[str], after: Sequence[str]) -> list[str]:
        start = self._in_lanes(first)
        new: list[str] = []
        for u in range(self.rows):
            old, value, place = before[2 * u], after[2 * u], after[2 * u + 1]
            # Values only get better, and none is NaN.
            changed = self.vec.compare("one", old, value)
            new += [value, self.vec.choose(changed, start, place, "i")]
        return new

    def leave(self, state: Sequence[str]) -> None:
        """Find the places, then leave values and places."""
        last = self._last_column()
        found = self.fn.when(
            self.fn.let(f"icmp sge i64 {last}, 0"),
            [(self.shape.i, "zeroinitializer")] * self.rows,
            lambda: [self._place_of(state[2 * u], state[2 * u + 1], u, last) for u in range(self.rows)],
        )
        super().leave([s for u in range(self.rows) for s in (state[2 * u], found[u])])

    def _in_lanes(self, index: str) -> str:
        if self.shape.integer != "i64":
            index = self.fn.let(f"trunc i64 {index} to {self.shape.integer}")
        return self.vec.splat(index, self.shape.integer)

    def _last_column(self) -> str:
        """The last column of any span of the task, or -1: strips at the end of the columns are shorter."""
        kernel, fn = self.kernel, self.fn

        def later(span: str, known: list[str]) -> list[str]:
            end = kernel.span_end(span)
            more = fn.let(f"icmp sgt i64 {end}, {known[0]}")
            return [fn.let(f"select i1 {more}, i64 {end}, i64 {known[0]}")]

        (end,) = fn.loop(*kernel.spans, 1, [("i64", "0")], later)
        return fn.let(f"sub i64 {end}, 1")

    def _place_of(self, best: str, start: str, u: int, last: str) -> str:
        """The first column from `start` on whose term is as good as `best`, lane by lane; 0 for the identity."""
        fn, shape = self.fn, self.shape
        wide, better, worst = f"<{shape.lanes} x i64>", self.rule.better, self._identity(self.vec)[0]
        assert better
        begin = start if shape.integer == "i64" else fn.let(f"sext {shape.i} {start} to {wide}")
        limit = self.vec.splat(last, "i64")

        def look(q: str, known: list[str]) -> Sequence[str]:
            column = fn.let(f"add {wide} {begin}, {self.vec.splat(q, 'i64')}")
            inside = fn.let(f"icmp slt {wide} {column}, {limit}")
            column = fn.let(f"select {shape.m} {inside}, {wide} {column}, {wide} {limit}")
            with self.kernel.columns_in_lanes(column):
                (term,) = self._term(u, 0)
            place = column if shape.integer == "i64" else fn.let(f"trunc {wide} {column} to {shape.i}")

            def nearer(a: list[Val]) -> Sequence[Val]:
                value, index, x, j, limit = a
                # A better value than the best one is of a column past the end of a span.
                take = better(x, value)
                past = better(x, limit)
                return [
                    select(past, value, select(take, x, value)),
                    select(past, index, select(take, j, index)),
                ]

            args = [Value(known[0], "f"), Value(known[1], "i"), term, Value(place, "i"), Value(best, "f")]
            return [v.name for v in run_rule(self.vec, args, nearer)]

        carried = [(shape.f, worst.name), (shape.i, "zeroinitializer")]
        return fn.loop("0", str(self.kernel.layout.strip), 1, carried, look)[1]
