"""The state of sums of exp(x)·g, held as multiples of exp(m), when m rises only where it must.

The sums of a strip of columns are made beside the m at hand, whatever its terms are: no maximum in the pair loop. They
are as exact beside any m, so long as nothing overflows. Where a sum comes near that, or is no number, m becomes
the maximum so far, the sums before are rescaled, and the strip is summed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING

from farsum_kernels.backends.cpu.emit import run_rule
from farsum_kernels.backends.cpu.states import State
from farsum_kernels.backends.cpu.vector import Value, Vec
from farsum_kernels.formula.lower import Terms
from farsum_kernels.formula.reductions import Reduction
from farsum_kernels.scalar.ir import Val

if TYPE_CHECKING:
    from farsum_kernels.backends.cpu.skeleton import _Main

# Sums of a tile below this are added up in the data dtype, and below 2^900 in float64, without overflow.
ROOM = {"float": 2.0**100, "double": 2.0**900}


class ShiftedState(State):
    """One reduction of the shifted family, with a weight that is written out."""

    def __init__(self, kernel: _Main, rule: Reduction, k: int, terms: Terms, first: int) -> None:
        super().__init__(kernel, rule, k, terms, first)
        self.two_level = kernel.layout.slab > kernel.layout.tile
        self._peak = ""  # m of each vector of rows, in scratch memory
        self._partial: list[tuple[str, str]] = []

    def reserve(self) -> None:
        super().reserve()
        self._peak = self.kernel.region(self.rows, self.kernel.vector_bytes)

    def begin_task(self) -> None:
        super().begin_task()
        for u in range(self.rows):
            self._write(self._peak, "0", u, self.shape.f, self._identity(self.vec)[0].name)

    def begin_tile(self) -> None:
        f = self.shape.f
        zeros = [(f, "zeroinitializer")] * (len(self.kinds) - 1)
        self._partial = []
        for u in range(self.rows):
            self._partial += [(f, self._read(self._peak, "0", u, f)), *zeros]

    def fresh(self) -> list[tuple[str, str]]:
        """For each vector of rows, the m so far and sums of nothing."""
        return self._partial

    def begin_slab(self) -> None:
        zeros = [Value("zeroinitializer", "f")] * len(self.kinds)
        self._fill(self._slabs, self.vec, zeros)

    def accumulate(self, state: Sequence[str], width: int) -> list[str]:
        """The sums of a block of columns beside the m at hand."""
        count, new = len(self.kinds), []
        for u in range(self.rows):
            args = [Value(s, "f") for s in state[u * count : (u + 1) * count]]
            args += [v for t in self._ready[u] for v in t]
            new += [v.name for v in run_rule(self.vec, args, self._beside(width))]
        return new

    def _beside(self, width: int) -> Callable[[list[Val]], Sequence[Val]]:
        calm, states = self.rule.calm, len(self.kinds)
        assert calm

        def rule(args: list[Val]) -> Sequence[Val]:
            rest = args[states:]
            each = len(rest) // width
            return calm(tuple(args[:states]), [tuple(rest[q * each : (q + 1) * each]) for q in range(width)])

        return rule

    # ── the end of a strip ────────────────────────────────────────────────────────────────────────

    def end_strip(self, first: str, end: str, before: Sequence[str], after: Sequence[str]) -> Sequence[str]:
        """Sum the strip again beside a new maximum if it needs that."""
        typed = [(self.shape.f, name) for name in after]
        return self.fn.when(self._too_large(after), typed, lambda: self._again(first, end, before))

    def _too_large(self, state: Sequence[str]) -> str:
        """Is a sum of any row large, infinite or NaN?"""
        vec, count = self.vec, len(self.kinds)
        room = self.shape.number(ROOM[self.shape.scalar])
        sums = [s for n, s in enumerate(state) if n % count]
        masks = [vec.compare("ugt", vec.intrinsic("fabs", s), room) for s in sums]
        return vec.any(reduce(vec.either, masks))

    def _again(self, first: str, end: str, before: Sequence[str]) -> Sequence[str]:
        kernel, f, count = self.kernel, self.shape.f, len(self.kinds)
        old = before[::count]

        def higher(column: str, width: int, peaks: list[str]) -> list[str]:
            with kernel.block_of(column, width):
                self.prepare(width)
                return [
                    self._ruled(
                        self.vec, [peaks[u], *(t[0].name for t in self._ready[u])], lambda a: self._peak_of(a)
                    )
                    for u in range(self.rows)
                ]

        columns = kernel.layout.columns
        new = kernel.blocks(first, end, columns, [(f, m) for m in old], higher)
        start: list[tuple[str, str]] = []
        for u in range(self.rows):
            scale = self._ruled(self.vec, [old[u], new[u]], self._share_of)
            self._raise(u, new[u], scale)
            sums = before[u * count + 1 : (u + 1) * count]
            start += [(f, new[u]), *((f, self.vec.binary("fmul", s, scale)) for s in sums)]

        def summed(column: str, width: int, carried: list[str]) -> list[str]:
            with kernel.block_of(column, width):
                self.prepare(width)
                return self.accumulate(carried, width)

        return kernel.blocks(first, end, columns, start, summed)

    def _raise(self, u: int, new: str, scale: str) -> None:
        """Hold everything in memory as multiples of exp(new): what it was times `scale`.

        That is rounded to the data dtype, but what it scales hardly counts any more, or the weights are near overflow.
        """
        f, wide = self.shape.f, self.wide
        self._write(self._peak, "0", u, f, new)
        wider = self._widened(scale)
        for region in self._totals[1:]:
            total = wide.binary("fmul", self._read(region, "0", u, wide.f), wider)
            self._write(region, "0", u, wide.f, total)
        for region in self._slabs[1:]:
            total = self.vec.binary("fmul", self._read(region, "0", u, f), scale)
            self._write(region, "0", u, f, total)

    def _ruled(self, vec: Vec, names: Sequence[str], rule: Callable[[list[Val]], Val]) -> str:
        (value,) = run_rule(vec, [Value(name, "f") for name in names], lambda a: [rule(a)])
        return value.name

    def _peak_of(self, args: list[Val]) -> Val:
        assert self.rule.peak
        return self.rule.peak(args[0], args[1:])

    def _share_of(self, args: list[Val]) -> Val:
        assert self.rule.share
        return self.rule.share(*args)

    # ── the end of a tile, the end of a task ──────────────────────────────────────────────────────

    def flush(self, state: Sequence[str]) -> None:
        """Add the sums of a tile to those of its slab, or to the totals: all are multiples of the same exp(m)."""
        if not self.two_level:
            self._into_totals(state)
            return
        count = len(self.kinds)
        for u in range(self.rows):
            for c in range(1, count):
                total = self._read(self._slabs[c], "0", u, self.shape.f)
                total = self.vec.binary("fadd", total, state[u * count + c])
                self._write(self._slabs[c], "0", u, self.shape.f, total)

    def _merge_total(self, place: str, u: int, tile: Sequence[str]) -> None:
        for region, part in zip(self._totals[1:], tile[1:], strict=True):
            total = self._read(region, place, u, self.wide.f)
            self._write(region, place, u, self.wide.f, self.wide.binary("fadd", total, self._widened(part)))

    def _finished(self, state: Sequence[str], place: str, c: int, u: int) -> str:
        if c == 0:
            return self._read(self._peak, place, u, self.shape.f)
        return self._read(self._totals[c], place, u, self.wide.f)
