"""Kernels on threads: bind arrays, run slices, gather states. The GIL is free while machine code runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from ctypes import c_int64
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.backends.cpu.addresses import address, table_of
from farsum_kernels.backends.cpu.skeleton import Stored
from farsum_kernels.backends.cpu.threads import POOL, scratch
from farsum_kernels.backends.reference import finish_state, merge_lists, merge_states
from farsum_kernels.backends.tables import reduced_over_j
from farsum_kernels.job import RANGES, Extent, Part
from farsum_kernels.plan import Layout, Plan

if TYPE_CHECKING:
    from farsum_kernels.backends.cpu.kernel import Kernel

Array = NDArray[Any]

SPARE_BYTES, MAX_SPARE = 1 << 16, 4


class Ground:
    """What a job needs besides its arrays: its plan and its tables. The same for all jobs of equal shapes.

    offsets   (batch, slot): the first element of each batch member in each input
    places    of block-sparse jobs: the place of each row in the states, -1 where no block covers it
    """

    def __init__(
        self, plan: Plan[Layout], offsets: Array, tasks: Array, spans: Array, places: Array | None = None
    ) -> None:
        self.plan = plan
        self.places = places
        # Alive as long as their addresses.
        self.offsets, self.tasks, self.spans = offsets, tasks, spans
        self.addresses = tuple(map(address, (offsets, tasks, spans)))
        self.batches = len(offsets)
        self.words = plan.describe()
        # Buffers of small states, to be used again: a list is safe to share between threads.
        self.spare: list[tuple[list[Array], Any]] = []

    def states(self, stored: Sequence[Stored]) -> tuple[list[Array], Any]:
        """Memory for the states of all rows, and the table of its addresses."""
        if self.spare:
            with suppress(IndexError):  # another thread was faster
                return self.spare.pop()
        rows = self.plan.tasks * self.plan.layout.task_rows
        out = [np.empty((state.repeat, rows), state.dtype) for state in stored]
        return out, table_of(out)


class Launch:
    """One job: its arrays, its slices, its states."""

    def __init__(self, kernel: Kernel, arrays: Mapping[int, Array], extent: Extent) -> None:
        self._kernel = kernel
        self.indices = kernel.indices
        self.owner: object = None  # of arrays that are known by their addresses alone
        # Kept alive here: the tables hold bare addresses.
        self._arrays = kernel.inputs(arrays)
        self._extent = reduced_over_j(kernel.spec, extent)
        self._ground = kernel.ground(tuple([a.shape for a in self._arrays]), extent)
        if RANGES[0] in arrays:
            blocks = [arrays[place] for place in (RANGES[:3] if kernel.spec.axis == 1 else RANGES[3:])]
            self._ground = kernel.sparse_ground(self._ground, self._extent, blocks)
        self.plan = plan = self._ground.plan
        self._out, self._out_table = self._ground.states(kernel.text.states)
        self._done = 0
        if self._extent.n == 0:
            # Without columns nothing is computed, whatever the rows hold.
            for a, stored in zip(self._out, kernel.text.states, strict=True):
                a[...] = stored.identity
            self._done = plan.slices
            return
        self._packed = self._room_to_pack() if kernel.text.packed else []
        self._table = table_of([*self._arrays, *self._packed])
        self._pack()

    def again(self, addresses: Sequence[int], owner: object) -> None:
        """Start over, on arrays of the same shapes at these addresses, by slot, which the owner keeps alive."""
        self.owner = owner
        self._table[: len(addresses)] = addresses
        self._done = 0
        self._pack()

    def forget_arrays(self) -> None:
        """It is computed on others from now on."""
        self._arrays = []

    def _room_to_pack(self) -> list[Array]:
        """Memory for what depends on a column alone."""
        kernel, batches = self._kernel, self._ground.batches
        self._pack_ground = kernel.pack_ground(self._extent, self._ground)
        rows = len(self._pack_ground.tasks) // batches * kernel.layout.lanes
        return [np.empty((batches, rows), kernel.dtype) for _ in range(kernel.text.packed)]

    def _pack(self) -> None:
        """Compute what depends on a column alone, once for all rows."""
        if self._packed:
            kernel, ground = self._kernel, self._pack_ground
            threads = min(self.plan.threads, kernel.pack_threads(self._extent))
            out = table_of(self._packed)
            self._call(kernel.code.pack, ground, self._table, out, 0, len(ground.tasks), threads)

    def _call(
        self, function: Any, ground: Ground, table: Any, out: Any, first: int, end: int, threads: int
    ) -> None:
        counter = (c_int64 * 1)(first)
        offsets, tasks, spans = ground.addresses
        size, count = self._kernel.text.scratch, len(ground.tasks)
        if threads == 1:
            function(table, offsets, tasks, spans, out, counter, end, count, scratch(size))
            return

        def work(owner: Launch = self) -> None:
            # The owner lives as long as the work: an interrupt may end the waiting before the last thread ends.
            function(table, offsets, tasks, spans, out, counter, end, count, scratch(size))

        POOL.run(work, threads)

    @property
    def words(self) -> Mapping[str, str]:
        """The plan in words."""
        return {**self._ground.words, **self._kernel.words}

    @property
    def share(self) -> float:
        """The finished share of the job, 0 to 1."""
        return self._done / self.plan.slices

    def step(self) -> float:
        """Run the next slice; gives the finished share."""
        plan = self.plan
        if self._done < plan.slices:
            first, end = plan.tasks * self._done // plan.slices, plan.tasks * (self._done + 1) // plan.slices
            if end > first:
                self._call(
                    self._kernel.code.main,
                    self._ground,
                    self._table,
                    self._out_table,
                    first,
                    end,
                    plan.threads,
                )
            self._done += 1
        return self._done / plan.slices

    def results(self, into: Sequence[Array] | None = None) -> tuple[Array, ...]:
        """Merge the splits and finish the states of a job that is done, reduction by reduction."""
        results = self.so_far(into)
        self._give_back()
        return results

    def so_far(self, into: Sequence[Array] | None = None) -> tuple[Array, ...]:
        """The same of a job that is to start over."""
        extent = self._extent
        batches = prod(extent.batch)
        if self._kernel.picks and self.plan.splits == 1 and self._ground.places is None:
            groups = self._picked(batches)
        else:
            groups = self._finished(batches)
        results = []
        for n, ((part, group), (held, tail)) in enumerate(zip(groups, self._kernel.outputs, strict=True)):
            out = np.empty((*extent.batch, extent.m, *tail), held) if into is None else into[n]
            if held == "uint16":
                group = [_rounded_to_bfloat16(g) for g in group]
            if tail == (1,):
                out.reshape(batches, extent.m)[...] = group[0][0]
            else:
                _assemble(out.reshape(batches, extent.m, *tail), group, part.k)
            results.append(out)
        return tuple(results)

    def moves(self, into: Sequence[Array]) -> list[tuple[Array, Array]] | None:
        """Where each result goes, and where it lies among the states, if finishing is no more than moving it."""
        outputs, extent = self._kernel.outputs, self._extent
        if not self._kernel.picks or self.plan.splits > 1 or self._ground.places is not None:
            return None
        if any(held == "uint16" for held, _ in outputs):
            return None
        batches, moves = prod(extent.batch), []
        for (_, group), (_, tail), out in zip(self._picked(batches), outputs, into, strict=True):
            rows, at = out.reshape(batches, extent.m, *tail), 0
            for component in group:  # (dims, batch, rows)
                moves.append((rows[..., at : at + len(component)], np.moveaxis(component, 0, -1)))
                at += len(component)
        return moves

    def worst(self) -> Array:
        """The value of each row that a better one must beat, task by task; for extrema and lists of them."""
        worst: Array = self._out[0][-1]
        return worst

    def _give_back(self) -> None:
        """Leave the memory of the states to the next job; nothing can be asked of this one any more."""
        out, self._out = self._out, []
        if out[0].nbytes <= SPARE_BYTES and len(self._ground.spare) < MAX_SPARE:
            self._ground.spare.append((out, self._out_table))

    def _picked(self, batches: int) -> list[tuple[Part, list[Array]]]:
        """The components of each output as (repeat, batch, rows), where finishing only chooses among the states."""
        m = self._extent.m
        rows = [
            a.reshape(len(a), batches, -1)[..., :m] if a.size else np.empty((len(a), batches, m), a.dtype)
            for a in self._out
        ]
        return [(part, [rows[place] for place in places]) for part, places in self._kernel.picks or ()]

    def _finished(self, batches: int) -> list[tuple[Part, list[Array]]]:
        """The components of each output as (repeat, batch, rows)."""
        kernel = self._kernel
        states = self._by_row(batches)
        groups: list[tuple[Part, list[Array]]] = []
        for part, count in kernel.counts:
            own, states = states[:count], states[count:]
            merged = self._merged_lists(part, own) if part.rule.listed else self._merged(part, own)
            groups += [(part, group) for group in finish_state(part.rule, merged, kernel.dtype)]
        return groups

    def _by_row(self, batches: int) -> list[Array]:
        """The states as (repeat, splits, batch, rows)."""
        plan, m = self.plan, self._extent.m
        places = self._ground.places
        if places is None:
            per_batch = plan.tasks // max(1, plan.splits * batches) * plan.layout.task_rows
            return [a.reshape(len(a), plan.splits, batches, per_batch)[..., :m] for a in self._out]
        # Rows that no block covers keep the identity.
        covered = places >= 0
        states = []
        for a, stored in zip(self._out, self._kernel.text.states, strict=True):
            row = np.full((len(a), m), stored.identity, a.dtype)
            row[:, covered] = a[:, places[covered]]
            states.append(row[:, None, None, :])
        return states

    def _merged(self, part: Part, states: list[Array]) -> list[Array]:
        """(repeat, splits, batch, rows) -> (repeat, batch, rows), splits merged in order."""
        total = [s[:, 0] for s in states]
        for split in range(1, self.plan.splits):
            wide = [np.asarray(s, np.float64) if s.dtype == np.float32 else s for s in total]
            total = merge_states(part.rule, wide, [s[:, split] for s in states], self._kernel.dtype)
        return total

    def _merged_lists(self, part: Part, states: list[Array]) -> list[Array]:
        rule, k = part.rule, part.k
        half = len(states) // 2
        values, places = [], []
        for v, p in zip(states[:half], states[half:], strict=True):
            lists, splits = v.shape[0] // k, v.shape[1]
            # All candidates of a list along one axis, in rising order of column, so that ties stay in order.
            v, p = (np.moveaxis(a.reshape(lists, k, *a.shape[1:]), 2, 0).swapaxes(1, 2) for a in (v, p))
            v, p = (a.reshape(splits * k, *a.shape[2:]) for a in (v, p))
            best, where = merge_lists(rule, v, p, k) if splits > 1 else (v, p)
            values.append(best)
            places.append(where)
        return values + places


class Repeated:
    """A job of one slice that is computed again and again on other numbers; its results always go to one place."""

    def __init__(self, launch: Launch, into: Sequence[Array]) -> None:
        self._launch, self._into = launch, into
        self._moves = launch.moves(into)
        launch.forget_arrays()
        self.indices: Sequence[int] = launch.indices
        self.words = launch.words

    address = staticmethod(address)

    def run(self, addresses: Sequence[int], owner: object = None) -> None:
        """Compute on arrays of the same shapes at these addresses, by slot, which the owner keeps alive.

        They are C-ordered, in the dtype of the arithmetic.
        """
        self._launch.again(addresses, owner)
        self._launch.step()
        self._launch.owner = None
        if self._moves is None:
            self._launch.so_far(self._into)
            return
        for to, result in self._moves:
            to[...] = result


def _assemble(out: Array, group: Sequence[Array], k: int) -> None:
    """Components (repeat, batch, rows) into an output (batch, rows, dim) or (batch, rows, k[, dim])."""
    if not k:
        if len(group) == 1 and len(group[0]) > 1:
            out[...] = np.moveaxis(group[0], 0, -1)
            return
        at = 0
        for component in group:
            if len(component) == 1:
                out[..., at] = component[0]
            else:
                out[..., at : at + len(component)] = np.moveaxis(component, 0, -1)
            at += len(component)
        return
    out = out.reshape(*out.shape[:2], k, out.shape[3] if out.ndim == 4 else 1)
    for d, lists in enumerate(group):  # (k, dims, batch, rows)
        dims = lists.shape[1]
        out[..., d * dims : (d + 1) * dims] = np.transpose(lists, (2, 3, 0, 1))


def _rounded_to_bfloat16(values: Array) -> Array:
    """float32 to the nearest bfloat16, ties to even, as uint16; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
