"""A job that does not fit on the device at once: batches and rows in pieces, columns from pinned memory, a stretch at a time.

While the device computes one stretch the next one is copied beside it. States are carried from stretch to stretch in
rising order. A device that turns out to be fuller than it said gets smaller pieces; what is done stays done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.backends.cuda.fold import FOLD_THREADS
from farsum_kernels.backends.cuda.layout import MAX_LIST_SPLITS, Layout
from farsum_kernels.backends.cuda.room import Appetite, edges
from farsum_kernels.backends.cuda.variant import AHEAD, Ground
from farsum_kernels.backends.tables import dense_tables, reduced_over_j, sparse_tables
from farsum_kernels.errors import DeviceFull
from farsum_kernels.formula.expr import J, P
from farsum_kernels.job import Extent
from farsum_kernels.plan import Plan

if TYPE_CHECKING:
    from farsum_kernels.backends.cuda.kernel import Kernel

Array = NDArray[Any]


class Pieces:
    """A launch like any other.

    held     the inputs by slot, C-ordered, on the host
    made     shape and dtype of each result
    blocks   of a block-sparse job: blocks of rows, their slices, intervals of columns
    budget   bytes of the device that it may take
    """

    def __init__(
        self,
        kernel: Kernel,
        held: Sequence[Array],
        extent: Extent,
        made: Sequence[tuple[tuple[int, ...], str]],
        blocks: Sequence[Array] | None,
        budget: int,
    ) -> None:
        kernel.check_indices(extent)
        self._kernel, self._held, self._blocks, self._budget = kernel, held, blocks, budget
        self._over_j = over_j = reduced_over_j(kernel.spec, extent)
        self._batches = prod(over_j.batch)
        self._out = [np.empty(shape, dtype) for shape, dtype in made]
        self._choose()
        self.plan = replace(self._variant.plan(over_j), slices=max(1, self._count()))
        self._units = deque(self._split((0, self._batches, 0, over_j.m)))
        self._rows = 0  # that are done, of all members
        self._work = self._perform()
        self.share = 0.0

    @property
    def words(self) -> Mapping[str, str]:
        """The plan in words."""
        cut, n = self._cut, self._over_j.n
        words = f"at most {cut.batches} × {cut.rows} rows at once"
        if cut.columns < n:
            words += f", columns streamed {cut.columns} at a time"
        return {**self.plan.describe(), "pieces": words}

    def step(self) -> float:
        """Queue the next slices and wait for one; gives the finished share.

        Raises DeviceFull when the smallest piece does not fit.
        """
        self.share = next(self._work, 1.0)
        return self.share

    def results(self, into: Sequence[Array] | None = None) -> tuple[Array, ...]:
        """The results of a job that is done, in new arrays or in those given."""
        if into is None:
            return tuple(self._out)
        for out, value in zip(into, self._out, strict=True):
            out[...] = value
        return tuple(into)

    # ── cutting ───────────────────────────────────────────────────────────────────────────────────

    def _choose(self) -> None:
        """Variant and cut for the budget. The rows of a piece decide on the layout, and the layout on the rows."""
        kernel, over_j = self._kernel, self._over_j
        fixed = sum(b.nbytes for b in self._blocks or ())
        outputs = sum(a.nbytes for a in self._out) // max(1, self._batches * over_j.m)
        rows = over_j.m
        for _ in range(2):
            self._variant = variant = kernel.variant_for(Extent(rows, over_j.n, ()))
            self._appetite = Appetite.of(kernel.program, self._held, outputs, variant.state_bytes, fixed)
            self._cut = self._appetite.cut(over_j, variant.layout, self._budget)
            rows = self._cut.rows
        self._feeds: list[_Feed] = []
        self._resident: dict[int, Any] = {}
        self._resident_of: tuple[int, ...] = ()

    def _count(self) -> int:
        cut = self._cut
        return (
            ceil(self._batches / cut.batches)
            * ceil(self._over_j.m / cut.rows)
            * len(edges(self._over_j.n, cut.columns))
        )

    def _split(self, unit: tuple[int, int, int, int]) -> Iterator[tuple[int, int, int, int]]:
        """Batch members and rows, in pieces of the cut."""
        b0, b1, r0, r1 = unit
        for first, last in edges(b1 - b0, self._cut.batches):
            for start, end in edges(r1 - r0, self._cut.rows):
                yield b0 + first, b0 + last, r0 + start, r0 + end

    def _perform(self) -> Iterator[float]:
        whole = max(1, self._batches * self._over_j.m)
        while self._units:
            b0, b1, r0, r1 = unit = self._units.popleft()
            full = False
            try:
                for share in self._unit(unit):
                    yield min(0.999, (self._rows + share * (b1 - b0) * (r1 - r0)) / whole)
            except DeviceFull:
                full = True  # what the piece had taken is free only outside
            if not full:
                self._rows += (b1 - b0) * (r1 - r0)
                continue
            self._smaller()
            self._units = deque(part for left in (unit, *self._units) for part in self._split(left))

    def _smaller(self) -> None:
        """After a refusal: pieces for half the memory. Raises DeviceFull where there are none."""
        cut, budget = self._cut, self._budget
        self._feeds, self._resident = [], {}
        self._kernel.driver.release()
        # Below what a piece takes at least, it has no more splits either.
        least = self._appetite.of_piece(cut, self._over_j.n, self._variant.layout)
        self._budget //= 2
        self._choose()
        if self._cut == cut and budget < least:
            raise DeviceFull(
                f"not even {cut.rows} rows and {cut.columns} columns of the job fit on the device beside what else is "
                "there: end what uses it (nvidia-smi shows that), or compute on another device"
            )

    # ── one piece ─────────────────────────────────────────────────────────────────────────────────

    def _unit(self, unit: tuple[int, int, int, int]) -> Iterator[float]:
        b0, b1, r0, r1 = unit
        kernel, variant, driver = self._kernel, self._variant, self._kernel.driver
        extent = Extent(r1 - r0, self._over_j.n, (b1 - b0,))
        stretches = edges(extent.n, self._cut.columns)
        carried = len(stretches) > 1
        ground, tables = self._grounds(unit, stretches)
        outputs = [driver.empty(self._part(a, unit).size, a.dtype.name) for a in self._out]
        inputs = [
            (None if carried else self._columns(slot, unit))
            if v.params[2] == J
            else driver.upload(self._input(slot, unit, r0, r1))
            for slot, v in enumerate(kernel.program.slots)
        ]
        states = [variant.states(ground) for _ in range(2 if carried else 1)]
        if carried:
            self._feeds = self._feeds or [_Feed(self, extent) for _ in range(2)]
            # Nothing was seen so far.
            self._fold(ground, states[1], states[0], 0)
        marks: deque[Any] = deque()
        for k, (c0, c1) in enumerate(stretches):
            if carried:
                inputs = self._feeds[k % 2].fill(inputs, unit, c0, c1)
            first = ground.tasks // ground.plan.splits if carried else 0
            for s in range(ground.plan.slices):
                start, end = (first + (ground.tasks - first) * t // ground.plan.slices for t in (s, s + 1))
                driver.run(variant.reduce(ground, tables[k], inputs, states[0], start, end))
                marks.append(driver.mark())
                if len(marks) > AHEAD:
                    driver.wait(marks.popleft())
                    yield (k + s / ground.plan.slices) / len(stretches)
            if carried:
                self._feeds[k % 2].used = marks[-1]
                if k + 1 < len(stretches):
                    self._fold(ground, states[0], states[1], ground.parts)
                    states.reverse()
        while marks:
            driver.wait(marks.popleft())
            yield 1.0
        driver.run(variant.combine(ground, states[0], outputs, (b1 - b0) * (r1 - r0), r1 - r0))
        for buffer, array in zip(outputs, self._out, strict=True):
            driver.download(buffer, self._part(array, unit))

    def _columns(self, slot: int, unit: tuple[int, int, int, int]) -> Any:
        """All columns of the members of a piece. They stay for the next piece, which is of the same members or of others."""
        if self._resident_of != unit[:2]:
            self._resident, self._resident_of = {}, unit[:2]
        if slot not in self._resident:
            array = self._input(slot, unit, 0, self._over_j.n)
            self._resident[slot] = self._kernel.driver.upload(array)
        return self._resident[slot]

    def _part(self, array: Array, unit: tuple[int, int, int, int]) -> Array:
        """The results of a piece, within those of all: members with all their rows, or rows of one member."""
        b0, b1, r0, r1 = unit
        return array.reshape(self._batches, self._over_j.m, -1)[b0:b1, r0:r1].reshape(-1)

    def _input(self, slot: int, unit: tuple[int, int, int, int], r0: int, r1: int) -> Array:
        """What a piece needs of one input: of a batch its own members, of rows or columns those from r0 to r1."""
        side, array = self._kernel.program.slots[slot].params[2], self._held[slot]
        members = array.reshape(-1, *array.shape[-1 if side == P else -2 :])
        chosen = members if len(members) == 1 else members[self._members(slot, unit)]
        return np.ascontiguousarray(chosen if side == P else chosen[:, r0:r1])

    def _members(self, slot: int, unit: tuple[int, int, int, int]) -> Array:
        """The members of an input, whose batch axes may broadcast, that those of a piece read."""
        array, batch = self._held[slot], self._over_j.batch
        axes = array.shape[: -1 if self._kernel.program.slots[slot].params[2] == P else -2]
        numbers = np.arange(prod(axes)).reshape(axes)
        return np.broadcast_to(numbers, batch).reshape(-1)[unit[0] : unit[1]]

    def _offsets(self, unit: tuple[int, int, int, int], c0: int, c1: int) -> Array:
        """Where each member begins in each input, counted as if rows and columns before those at hand were there too."""
        b0, b1, r0, r1 = unit
        found = np.zeros((b1 - b0, max(1, len(self._held))), np.int64)
        for slot, (v, array) in enumerate(zip(self._kernel.program.slots, self._held, strict=True)):
            dim, side = v.params[1], v.params[2]
            start, end = (0, 1) if side == P else (c0, c1) if side == J else (r0, r1)
            shared = prod(array.shape[: -1 if side == P else -2]) == 1
            found[:, slot] = (0 if shared else np.arange(b1 - b0) * (end - start) * dim) - start * dim
        return found

    def _grounds(
        self, unit: tuple[int, int, int, int], stretches: Sequence[tuple[int, int]]
    ) -> tuple[Ground, list[list[Any]]]:
        """The ground of a piece, and for each stretch of columns its tables."""
        b0, b1, r0, r1 = unit
        variant, layout, driver = self._variant, self._variant.layout, self._kernel.driver
        carried, n = len(stretches) > 1, self._over_j.n
        longest = max(end - start for start, end in stretches)
        extent = Extent(r1 - r0, longest, (b1 - b0,))
        places, splits = None, 1
        plan: Plan[Layout]
        if self._blocks is None:
            plan = variant.plan(extent, self._budget // (8 if carried else 4))
            splits = plan.splits
            if carried and any(part.rule.listed for part in self._kernel.parts):
                splits = max(1, min(splits, MAX_LIST_SPLITS // layout.threads_j - 1))
            plan = replace(plan, splits=splits)
            tasks, _ = dense_tables(layout, extent, splits)
            spans = [start + np.arange(splits + 1) * (end - start) // splits for start, end in stretches]
            spans = [np.stack([e[:-1], e[1:]], axis=1) for e in spans]
        else:
            rows, slices, intervals = self._blocks
            tasks, whole, places = sparse_tables(
                layout, r1 - r0, np.clip(rows, r0, r1) - r0, slices, intervals
            )
            spans = [np.clip(whole, start, end) for start, end in stretches]
            plan = variant.sparse_plan(tasks, spans[0])
        tasks = tasks + np.array([0, r0, r0, 0, 0])
        if carried:
            # Split 0 is what has been; no task of it is ever run.
            tasks = np.concatenate([tasks[: len(tasks) // splits], tasks])
            plan = replace(plan, splits=splits + 1, tasks=len(tasks))
        offsets = [self._offsets(unit, start, end) for start, end in stretches]
        own = np.concatenate(offsets), tasks, np.concatenate(spans)
        made = Ground(driver, plan, Extent(r1 - r0, n, (b1 - b0,)), *own, places)
        if not made.tables:
            return made, [[] for _ in stretches]
        o, t, s = made.tables
        steps = offsets[0].size, spans[0].size
        return made, [
            [o[k * steps[0] : (k + 1) * steps[0]], t, s[k * steps[1] : (k + 1) * steps[1]]]
            for k in range(len(stretches))
        ]

    def _fold(self, ground: Ground, old: Sequence[Any], new: Sequence[Any], used: int) -> None:
        rows, variant = ground.all_rows, self._variant
        if rows:
            args = [
                *old, *new, np.int64(rows), np.int32(ground.parts), np.int32(used), np.int32(ground.plan.splits)
            ]  # fmt: skip
            grid = ceil(rows / FOLD_THREADS), variant.text.repeats
            variant.folding.launch("fold", grid, (FOLD_THREADS, 1), 0, args)


class _Feed:
    """One of two places for a stretch of columns, on the host and on the device."""

    def __init__(self, pieces: Pieces, extent: Extent) -> None:
        self._pieces, driver = pieces, pieces._kernel.driver
        # When the device has done with it: at first, with whatever had this memory before.
        self.used: Any = driver.mark()
        self._sent: list[Any] = []
        longest = max(end - start for start, end in edges(extent.n, pieces._cut.columns))
        self._slots = [s for s, v in enumerate(pieces._kernel.program.slots) if v.params[2] == J]
        sizes = [
            longest * pieces._held[s].shape[-1] * min(pieces._cut.batches, prod(pieces._held[s].shape[:-2]))
            for s in self._slots
        ]
        dtypes = [pieces._held[s].dtype.name for s in self._slots]
        self._device = [driver.empty(size, dtype) for size, dtype in zip(sizes, dtypes, strict=True)]
        self._host = [driver.pinned(size, dtype) for size, dtype in zip(sizes, dtypes, strict=True)]

    def fill(self, inputs: Sequence[Any], unit: tuple[int, int, int, int], c0: int, c1: int) -> list[Any]:
        """Send the columns from c0 to c1; gives the inputs with them."""
        driver = self._pieces._kernel.driver
        for mark in self._sent:
            driver.wait(mark)
        made, self._sent = list(inputs), []
        for slot, host, device in zip(self._slots, self._host, self._device, strict=True):
            values = self._pieces._input(slot, unit, c0, c1).reshape(-1)
            host[: values.size] = values
            self._sent.append(driver.send(host[: values.size], device, self.used))
            made[slot] = device
        return made
