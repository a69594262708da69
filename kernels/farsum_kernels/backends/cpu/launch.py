"""Kernels on threads: bind arrays, run slices, gather states. The GIL is free while machine code runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int64, c_void_p
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.backends.cpu import native
from farsum_kernels.backends.cpu.skeleton import Text, kernel_text
from farsum_kernels.backends.cpu.vector import LLVM
from farsum_kernels.backends.reference import finish_state, merge_lists, merge_states
from farsum_kernels.errors import FormulaTooLarge
from farsum_kernels.formula.lower import Program, Want, lower
from farsum_kernels.formula.reductions import Kind
from farsum_kernels.formula.rewrite import simplified
from farsum_kernels.job import COMPUTED_IN, RANGES, Extent, Part, Spec, output_dtypes
from farsum_kernels.plan import UNROLL, Layout, Machine, Plan, layout_for, plan_for, plan_for_ranges
from farsum_kernels.scalar.ir import Prim

Array = NDArray[Any]

MAX_TEXT_BYTES = 8 << 20
# How far the indices that ride in float32 lanes count, as int32, and as numbers of a formula.
MAX_INT32, MAX_FLOAT32 = (1 << 31) - 1, 1 << 24
_POINTERS = (c_void_p,) * 6


class Kernel:
    """A compiled reduction. Holds no data; any number of launches may use it at once."""

    def __init__(self, spec: Spec, machine: Machine) -> None:
        parts = spec.over_j()
        self.spec = spec
        self.machine = machine
        self.dtype = np.dtype(COMPUTED_IN[spec.dtype])
        wants = [
            Want(simplified(part.formula), part.weight and simplified(part.weight), part.rule.additive)
            for part in parts
        ]
        self.program: Program = lower(wants, UNROLL, list(LLVM))
        itemsize = self.dtype.itemsize
        self.layout: Layout = layout_for(self.program, [part.rule for part in parts], itemsize, machine)
        self.text: Text = kernel_text(self.program, parts, self.dtype.name, self.layout, native.has_scalef())
        if len(self.text.ir) > MAX_TEXT_BYTES:
            raise FormulaTooLarge(
                f"the formula compiles to {len(self.text.ir)} bytes of code; at most {MAX_TEXT_BYTES} are allowed"
            )
        self._library = native.load(self.text.ir)
        signature = (*_POINTERS, c_int64, c_int64, c_void_p)
        self.main = self._library.function("main", *signature)
        self.pack = self._library.function("pack", *signature) if self.text.packed else None
        self.work_per_pair = self.program.flops_per_pair()
        self._kinds = {kind for part in parts for kind in part.rule.state(1, 1)}
        self._numbers_rows = any(instr.prim is Prim.ROW for instr in self.program.code)

    def check_indices(self, extent: Extent) -> None:
        """Raise FormulaTooLarge when rows cannot be counted in the dtype of the arithmetic."""
        if self.dtype == np.float64:
            return
        if Kind.INDEX in self._kinds and extent.n > MAX_INT32:
            raise FormulaTooLarge(
                f"indices of {extent.n} columns need float64 arrays; float32 counts to {MAX_INT32}"
            )
        if self._numbers_rows and max(extent.m, extent.n) > MAX_FLOAT32:
            raise FormulaTooLarge(
                f"row numbers up to {max(extent.m, extent.n)} in a formula need float64 arrays; "
                f"float32 is exact to {MAX_FLOAT32}"
            )

    def plan(self, extent: Extent) -> Plan:
        """How a job of these sizes would be cut up."""
        return _plan(self.layout, _reduced_over_j(self.spec, extent), self.work_per_pair, self.machine)

    def launch(self, arrays: Mapping[int, Array], extent: Extent) -> Launch:
        """Bind arrays of the right shapes and dtype."""
        return Launch(self, arrays, extent)


@lru_cache(maxsize=1024)
def _plan(layout: Layout, extent: Extent, work_per_pair: float, machine: Machine) -> Plan:
    return plan_for(layout, extent, work_per_pair, machine)


def _reduced_over_j(spec: Spec, extent: Extent) -> Extent:
    return extent if spec.axis == 1 else Extent(extent.n, extent.m, extent.batch)


class Launch:
    """One job: its tables, its slices, its states."""

    def __init__(self, kernel: Kernel, arrays: Mapping[int, Array], extent: Extent) -> None:
        self._kernel = kernel
        self._extent = _reduced_over_j(kernel.spec, extent)
        kernel.check_indices(self._extent)
        plan = kernel.plan(extent)
        batches = prod(extent.batch)
        slots = kernel.program.slots
        # Kept alive here: the tables hold bare addresses.
        self._arrays = [_numbers(arrays[v.params[0]], kernel.spec.dtype, kernel.dtype) for v in slots]
        offsets = np.empty((batches, len(slots) + kernel.text.packed), np.int64)
        for s, (v, array) in enumerate(zip(slots, self._arrays, strict=True)):
            offsets[:, s] = _batch_offsets(array.shape, extent.batch, 1 if v.params[2] == 2 else 2)
        self._offsets = offsets
        self._places: Array | None = None
        if RANGES[0] in arrays:
            blocks = [arrays[place] for place in (RANGES[:3] if kernel.spec.axis == 1 else RANGES[3:])]
            self._tasks, self._spans, self._places = _sparse_tables(plan.layout, self._extent.m, *blocks)
            pairs = _pairs_in(self._tasks, self._spans)
            plan = plan_for_ranges(plan, len(self._tasks), pairs, kernel.work_per_pair, kernel.machine)
        else:
            self._tasks, self._spans = _dense_tables(plan.layout, self._extent, plan.splits)
        self.plan = plan
        rows = plan.tasks * plan.layout.task_rows
        self._out = [np.empty((state.repeat, rows), state.dtype) for state in kernel.text.states]
        self._counter = np.zeros(1, np.int64)
        self._done = 0
        if self._extent.n == 0:
            # Without columns nothing is computed, whatever the rows hold.
            for a, stored in zip(self._out, kernel.text.states, strict=True):
                a[...] = stored.identity
            self._done = plan.slices
            return
        if kernel.pack:
            self._pack(batches)
        self._table = _addresses(self._arrays)
        self._out_table = _addresses(self._out)

    def _pack(self, batches: int) -> None:
        """Compute what depends on a column alone, once for all rows."""
        kernel, n = self._kernel, self._extent.n
        layout = Layout(kernel.layout.lanes, 1, 1, 0, 0)
        flipped = Extent(n, 0, self._extent.batch)
        tasks, spans = _dense_tables(layout, flipped, 1)
        padded = -(-n // layout.lanes) * layout.lanes
        packed = [np.empty((batches, padded), kernel.dtype) for _ in range(kernel.text.packed)]
        first = len(kernel.program.slots)
        self._offsets[:, first:] = (np.arange(batches) * padded)[:, None]
        table, out = _addresses([*self._arrays, *packed]), _addresses(packed)
        assert kernel.pack
        self._call(kernel.pack, table, tasks, spans, out, 0, len(tasks), 1)
        self._arrays += packed

    def _call(
        self,
        function: Any,
        table: Array,
        tasks: Array,
        spans: Array,
        out: Array,
        first: int,
        end: int,
        threads: int,
    ) -> None:
        self._counter[0] = first
        arguments = (
            _address(table), _address(self._offsets), _address(tasks), _address(spans),
            _address(out), _address(self._counter), end, len(tasks),
        )  # fmt: skip
        scratch = self._kernel.text.scratch

        def work() -> None:
            function(*arguments, _scratch(scratch))

        if threads == 1:
            work()
        else:
            POOL.run(work, threads)

    @property
    def share(self) -> float:
        """The finished share of the job, 0 to 1."""
        return self._done / self.plan.slices

    def step(self) -> float:
        """Run the next slice; gives the finished share."""
        plan = self.plan
        if self._done < plan.slices:
            first, end = (plan.tasks * part // plan.slices for part in (self._done, self._done + 1))
            if end > first:
                self._call(
                    self._kernel.main,
                    self._table,
                    self._tasks,
                    self._spans,
                    self._out_table,
                    first,
                    end,
                    plan.threads,
                )
            self._done += 1
        return self.share

    def results(self, into: Sequence[Array] | None = None) -> tuple[Array, ...]:
        """Merge the splits and finish the states of a job that is done, reduction by reduction."""
        spec, extent, batches = self._kernel.spec, self._extent, prod(self._extent.batch)
        states = self._by_row(batches)
        groups: list[tuple[Part, list[Array]]] = []
        for part, terms in zip(spec.parts, self._kernel.program.terms, strict=True):
            count = len(part.rule.state(1 if terms.loop else terms.dim, len(terms.weight)))
            own, states = states[:count], states[count:]
            merged = self._merged_lists(part, own) if part.rule.listed else self._merged(part, own)
            groups += [(part, group) for group in finish_state(part.rule, merged, self._kernel.dtype)]
        results = []
        for n, ((part, group), dtype) in enumerate(zip(groups, output_dtypes(spec), strict=True)):
            tail = part.output_tail()
            held = "uint16" if dtype == "bfloat16" else dtype
            out = into[n] if into is not None else np.empty((*extent.batch, extent.m, *tail), held)
            if dtype == "bfloat16":
                group = [_rounded_to_bfloat16(g) for g in group]
            _assemble(out.reshape(batches, extent.m, *tail), group, part.k)
            results.append(out)
        return tuple(results)

    def _by_row(self, batches: int) -> list[Array]:
        """The states as (repeat, splits, batch, rows)."""
        plan, m = self.plan, self._extent.m
        if self._places is None:
            per_batch = plan.tasks // max(1, plan.splits * batches) * plan.layout.task_rows
            return [a.reshape(len(a), plan.splits, batches, per_batch)[..., :m] for a in self._out]
        # Rows that no block covers keep the identity.
        covered = self._places >= 0
        states = []
        for a, stored in zip(self._out, self._kernel.text.states, strict=True):
            row = np.full((len(a), m), stored.identity, a.dtype)
            row[:, covered] = a[:, self._places[covered]]
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


def _assemble(out: Array, group: Sequence[Array], k: int) -> None:
    """Components (repeat, batch, rows) into an output (batch, rows, dim) or (batch, rows, k[, dim])."""
    if not k:
        if len(group) == 1 and len(group[0]) > 1:
            out[...] = np.moveaxis(group[0], 0, -1)
            return
        for d, component in enumerate(group):
            out[..., d] = component[0]
        return
    out = out.reshape(*out.shape[:2], k, out.shape[3] if out.ndim == 4 else 1)
    for d, lists in enumerate(group):  # (k, dims, batch, rows)
        dims = lists.shape[1]
        out[..., d * dims : (d + 1) * dims] = np.transpose(lists, (2, 3, 0, 1))


def _address(array: Array) -> int:
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def _addresses(arrays: Sequence[Array]) -> Array:
    return np.array([_address(a) for a in arrays], np.uint64)


@lru_cache(maxsize=256)
def _batch_offsets(shape: tuple[int, ...], batch: tuple[int, ...], own: int) -> Array | int:
    """The first element of each batch member in an array whose batch axes broadcast."""
    axes = shape[: len(shape) - own]
    if not batch:
        return 0
    size = prod(shape[len(shape) - own :])
    starts = (np.arange(prod(axes), dtype=np.int64) * size).reshape(axes)
    return np.broadcast_to(starts, batch).reshape(-1)


@lru_cache(maxsize=64)
def _dense_tables(layout: Layout, extent: Extent, splits: int) -> tuple[Array, Array]:
    """Tasks and spans of a job without ranges: every row meets every column."""
    edges = np.arange(splits + 1, dtype=np.int64) * extent.n // splits
    spans = np.stack([edges[:-1], edges[1:]], axis=1)
    batches, tiles = prod(extent.batch), -(-extent.m // layout.task_rows)
    tasks = np.empty((splits, batches, tiles, 5), np.int64)
    first = np.arange(tiles) * layout.task_rows
    tasks[..., 0] = np.arange(batches)[None, :, None]
    tasks[..., 1] = first
    tasks[..., 2] = np.minimum(first + layout.task_rows, extent.m)
    tasks[..., 3] = np.arange(splits)[:, None, None]
    tasks[..., 4] = tasks[..., 3] + 1
    return np.ascontiguousarray(tasks.reshape(-1, 5)), np.ascontiguousarray(spans)


def _sparse_tables(
    layout: Layout, m: int, blocks: Array, slices: Array, intervals: Array
) -> tuple[Array, Array, Array]:
    """Tasks and spans of a block-sparse job, and for each row its place in the states, -1 if none covers it."""
    lengths = blocks[:, 1] - blocks[:, 0]
    tiles = -(-lengths // layout.task_rows)
    of_block = np.repeat(np.arange(len(blocks)), tiles)
    first_tile = np.cumsum(tiles) - tiles
    within = np.arange(len(of_block)) - first_tile[of_block]
    tasks = np.zeros((len(of_block), 5), np.int64)
    tasks[:, 1] = blocks[of_block, 0] + within * layout.task_rows
    tasks[:, 2] = np.minimum(tasks[:, 1] + layout.task_rows, blocks[of_block, 1])
    starts = np.concatenate([np.zeros(1, np.int64), slices[:-1]]) if len(slices) else slices
    tasks[:, 3], tasks[:, 4] = starts[of_block], slices[of_block]
    places = np.full(m, -1, np.int64)
    for (start, end), tile in zip(blocks.tolist(), first_tile.tolist(), strict=True):
        # A later block that covers the same rows replaces the earlier one.
        places[start:end] = tile * layout.task_rows + np.arange(end - start)
    return tasks, np.ascontiguousarray(intervals), places


def _pairs_in(tasks: Array, spans: Array) -> int:
    upto = np.concatenate([np.zeros(1, np.int64), np.cumsum(spans[:, 1] - spans[:, 0])])
    return int(((tasks[:, 2] - tasks[:, 1]) * (upto[tasks[:, 4]] - upto[tasks[:, 3]])).sum())


def _numbers(array: Array, dtype: str, computed: np.dtype[Any]) -> Array:
    """An input in the dtype of the arithmetic, C-ordered."""
    if dtype == "bfloat16":
        return (np.ascontiguousarray(array).astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(array, computed)


def _rounded_to_bfloat16(values: Array) -> Array:
    """float32 to the nearest bfloat16, ties to even, as uint16; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


# ── threads ───────────────────────────────────────────────────────────────────────────────────────

_local = threading.local()


def _scratch(size: int) -> int:
    """This thread's scratch memory, aligned to 64 bytes."""
    held = getattr(_local, "scratch", None)
    if held is None or held.nbytes < size + 64:
        held = _local.scratch = np.empty(size + 64, np.uint8)
    return -(-_address(held) // 64) * 64


class Pool:
    """Threads that wait for native work. A forked child starts with none and makes its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._size = 0
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._executor, self._size = None, 0

    def run(self, work: Any, threads: int) -> None:
        """Run `work` on this thread and on threads - 1 others, and wait for all."""
        with self._lock:
            if self._executor is None or self._size < threads - 1:
                self._size = threads - 1
                self._executor = ThreadPoolExecutor(self._size, thread_name_prefix="farsum-cpu")
            executor = self._executor
        others = [executor.submit(work) for _ in range(threads - 1)]
        work()
        for other in others:
            other.result()


POOL = Pool()
