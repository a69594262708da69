"""A kernel for one layout: what it needs on the device besides arrays, and how it is launched. Waits for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.backends.cuda.device import Driver, Module
from farsum_kernels.backends.cuda.fold import fold_text
from farsum_kernels.backends.cuda.graphs import Call
from farsum_kernels.backends.cuda.layout import TENSOR, Layout, plan_for
from farsum_kernels.backends.cuda.sources import Text
from farsum_kernels.backends.tables import batch_offsets, dense_tables, pairs_in, sparse_tables
from farsum_kernels.formula.lower import Program
from farsum_kernels.job import Extent
from farsum_kernels.plan import SLICE_S, Plan

if TYPE_CHECKING:
    from farsum_kernels.backends.cuda.kernel import Kernel

Array = NDArray[Any]

AHEAD = 2  # slices that are queued on the device before the first of them is waited for
COMBINE_THREADS = 128
MAX_GROUNDS = 64


class Variant:
    """A kernel for one layout: its text, its compiled module, the tables of the shapes that it met."""

    def __init__(self, kernel: Kernel, place: int, text: Text) -> None:
        self.kernel, self.layout, self.text = kernel, kernel.layouts[place], text
        self._grounds: dict[Any, Ground] = {}

    @cached_property
    def module(self) -> Module:
        return self.kernel.driver.load(self.text.source)

    @property
    def state_bytes(self) -> int:
        """Bytes of all states of one row."""
        return sum(np.dtype(s.dtype).itemsize * s.repeat for s in self.text.states)

    @cached_property
    def folding(self) -> Module:
        """The module of the kernel "fold"; most jobs never need it."""
        kernel = self.kernel
        return kernel.driver.load(
            fold_text(kernel.program, kernel.parts, kernel.spec.dtype, kernel.computed, self.layout)
        )

    def plan(self, over_j: Extent, memory: int | None = None) -> Plan[Layout]:
        """How a job would be cut up; its states may take so many bytes, by default a share of the device."""
        gpu = self.kernel.driver.gpu
        return plan_for(
            self.layout,
            over_j,
            self.kernel.work_per_pair,
            gpu if memory is None else replace(gpu, memory=memory),
            listed=any(part.rule.listed for part in self.kernel.parts),
            state_bytes=self.state_bytes,
            chunks=self.text.chunks,
        )

    def ground(self, shapes: tuple[tuple[int, ...], ...], over_j: Extent) -> Ground:
        """The plan and the tables of a dense job, made once for a run of equal shapes."""
        key = shapes, over_j
        if (known := self._grounds.get(key)) is None:
            if len(self._grounds) >= MAX_GROUNDS:
                self._grounds.clear()
            plan = self.plan(over_j)
            # What is packed for tensor cores is packed in whole tiles.
            step = self.layout.tile if self.layout.path == TENSOR else 1
            tables = dense_tables(self.layout, over_j, plan.splits, step)
            offsets = _offsets(self.kernel.program, shapes, over_j)
            known = self._grounds[key] = Ground(self.kernel.driver, plan, over_j, offsets, *tables)
        return known

    def sparse_ground(
        self, shapes: tuple[tuple[int, ...], ...], over_j: Extent, blocks: Sequence[Array]
    ) -> Ground:
        """The plan and the tables of a job with ranges."""
        tasks, spans, places = sparse_tables(self.layout, over_j.m, *blocks)
        offsets = _offsets(self.kernel.program, shapes, over_j)
        plan = self.sparse_plan(tasks, spans)
        return Ground(self.kernel.driver, plan, over_j, offsets, tasks, spans, places)

    def sparse_plan(self, tasks: Array, spans: Array) -> Plan[Layout]:
        """The plan of a job whose tasks are given."""
        pairs = pairs_in(tasks, spans)
        work = pairs * self.kernel.work_per_pair * self.text.chunks
        slices = max(1, min(len(tasks), ceil(work / self.kernel.driver.gpu.rate / SLICE_S)))
        return Plan(self.layout, 1, self.layout.threads, slices, len(tasks), pairs, work)

    def forget(self) -> None:
        """Free the tables that were kept for shapes that may come again."""
        self._grounds.clear()

    # ── launching ─────────────────────────────────────────────────────────────────────────────────

    def states(self, ground: Ground) -> list[Any]:
        """Memory for the states of all rows and parts."""
        rows = ground.parts * ground.all_rows
        return [self.kernel.driver.empty(rows * s.repeat, s.dtype) for s in self.text.states]

    def reduce(
        self,
        ground: Ground,
        tables: Sequence[Any],
        inputs: Sequence[Any],
        states: Sequence[Any],
        first: int,
        end: int,
        more: Sequence[Any] = (),
    ) -> list[Call]:
        """The tasks from `first` to before `end`; `more` are arguments of kernels that take more than others."""
        if end <= first:
            return []
        args = [*inputs, *tables, *states, np.int64(first), np.int64(ground.tasks), *more]
        grid = end - first, self.text.chunks
        return [Call(self.module, "reduce", grid, (self.layout.threads, 1), 0, args)]

    def combine(
        self, ground: Ground, states: Sequence[Any], outputs: Sequence[Any], rows: int, m: int
    ) -> list[Call]:
        """The merging of the states of all parts, row by row, and what finishes them."""
        kernel = self.kernel
        listed = any(part.rule.listed for part in kernel.parts)
        lanes = 1 if listed or ground.parts < 8 else min(32, ground.parts // 4)
        columns = COMBINE_THREADS // 32 if lanes > 4 else COMBINE_THREADS
        components = (
            len(p.rule.state(t.dim if not t.loop else 1, len(t.weight)))
            for p, t in zip(kernel.parts, kernel.program.terms, strict=True)
        )
        shared = max(components, default=1) * 8 * columns * lanes
        args = [
            *states, *outputs, ground.places, np.int64(rows), np.int64(m),
            np.int64(ground.per_batch), np.int64(ground.all_rows), np.int32(ground.parts),
        ]  # fmt: skip
        grid = ceil(rows / columns), self.text.repeats
        return [Call(self.module, "combine", grid, (columns, lanes), shared if lanes > 1 else 0, args)]


def _offsets(program: Program, shapes: Sequence[tuple[int, ...]], over_j: Extent) -> Array:
    """The first element of each batch member in each input."""
    offsets = np.zeros((prod(over_j.batch), max(1, len(shapes))), np.int64)
    for s, (v, shape) in enumerate(zip(program.slots, shapes, strict=True)):
        offsets[:, s] = batch_offsets(shape, over_j.batch, 1 if v.params[2] == 2 else 2)
    return offsets


class Ground:
    """What a job needs on the device besides its arrays. The same for all jobs of equal shapes."""

    def __init__(
        self,
        driver: Driver,
        plan: Plan[Layout],
        over_j: Extent,
        offsets: Array,
        tasks: Array,
        spans: Array,
        places: Array | None = None,
    ) -> None:
        self.plan, self.words = plan, plan.describe()
        batches = prod(over_j.batch)
        if over_j.n == 0:
            # Without columns nothing is computed, whatever the rows hold.
            places = np.full(batches * over_j.m, -1, np.int64)
        self.tasks = len(tasks) if over_j.n else 0
        self.parts = plan.layout.threads_j * plan.splits
        # Rows of the states of one split, and of one batch member in it.
        self.all_rows = len(tasks) // plan.splits * plan.layout.task_rows
        self.per_batch = self.all_rows // max(1, batches)
        self.tables = [driver.upload(t) for t in (offsets, tasks, spans)] if self.tasks else []
        self.places = None if places is None else driver.upload(places)
