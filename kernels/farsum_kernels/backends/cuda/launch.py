"""Kernels on a device: bind arrays, launch slices, merge states, bring results back. Speaks to a driver, never to CUDA."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import ceil, prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.backends import culling
from farsum_kernels.backends.cuda.bilinear import bilinear
from farsum_kernels.backends.cuda.filtered import FilteredLaunch, filtered_launch
from farsum_kernels.backends.cuda.layout import (
    DIRECT,
    FILTER,
    FILTER_LAYOUT,
    UNROLL,
    Gpu,
    Layout,
    choose,
    filter_pays,
    layouts_for,
    plan_for,
)
from farsum_kernels.backends.cuda.sources import Text, kernel_text
from farsum_kernels.backends.cuda.tables import CUDA
from farsum_kernels.backends.culled import CulledLaunch, culled_launch
from farsum_kernels.backends.tables import (
    as_numbers,
    batch_offsets,
    dense_tables,
    pairs_in,
    reduced_over_j,
    sparse_tables,
)
from farsum_kernels.errors import FormulaTooLarge
from farsum_kernels.formula.lower import Program, Want, lower
from farsum_kernels.formula.rewrite import simplified
from farsum_kernels.job import COMPUTED_IN, RANGES, Extent, Spec, output_dtypes, output_shapes
from farsum_kernels.plan import SLICE_S, Plan
from farsum_kernels.scalar.ir import Prim

Array = NDArray[Any]

MAX_SOURCE_BYTES = 4 << 20
MAX_INT32, MAX_FLOAT32 = (1 << 31) - 1, 1 << 24
AHEAD = 2  # slices that are queued on the device before the first of them is waited for
COMBINE_THREADS = 128
MAX_GROUNDS = 64


class Module(Protocol):
    """Compiled kernels."""

    def launch(
        self, name: str, grid: tuple[int, int], block: tuple[int, int], shared: int, args: Sequence[Any]
    ) -> None:
        """Queue a kernel. Buffers and int64 or int32 NumPy scalars are its arguments."""
        ...


class Driver(Protocol):
    """A device with its memory. Buffers are the driver's own; None stands for no memory."""

    gpu: Gpu

    def load(self, source: str) -> Module:
        """Compile kernels, or find them compiled."""
        ...

    def upload(self, array: Array) -> Any:
        """A copy of a C-ordered array on the device."""
        ...

    def empty(self, count: int, dtype: str) -> Any:
        """Memory for so many numbers, which holds anything."""
        ...

    def download(self, buffer: Any, into: Array) -> None:
        """Wait for all that was queued and copy a buffer into a C-ordered array."""
        ...

    def mark(self) -> Any:
        """A point in the queue of the device."""
        ...

    def wait(self, mark: Any) -> None:
        """Until the device has come to a mark. Raises what went wrong before it."""
        ...


class Kernel:
    """A reduction, compiled for one device. Holds no data; any number of launches may use it.

    path   DIRECT or FILTER where there is a choice; None leaves it to the cost model
    """

    def __init__(self, spec: Spec, driver: Driver, path: str | None = None) -> None:
        self.spec, self.driver, self._path = spec, driver, path
        self.parts = spec.over_j()
        wants = [
            Want(simplified(part.formula), part.weight and simplified(part.weight), part.rule.additive)
            for part in self.parts
        ]
        self.program: Program = lower(wants, UNROLL, list(CUDA), long_weights=True)
        self.computed = COMPUTED_IN[spec.dtype]
        self.dtype = np.dtype(self.computed)
        self.layouts = layouts_for(self.program, self.parts, np.dtype(self.computed).itemsize)
        self.bilinear = bilinear(self.program, self.parts) if self.computed == "float32" else None
        if self.bilinear:
            self.layouts = (*self.layouts, FILTER_LAYOUT)
        self.work_per_pair = self.program.flops_per_pair()
        self.indices = [v.params[0] for v in self.program.slots]
        self.points = culling.cullable(self.program, self.parts)
        self._variants: dict[int, Variant] = {}
        self._numbers_rows = any(instr.prim is Prim.ROW for instr in self.program.code)
        self.variant(0)  # what is too large, or no kernel at all, is known before any array arrives

    def variant(self, place: int) -> Variant:
        """The kernel for one of the layouts, compiled now if it is new."""
        if place not in self._variants:
            text = kernel_text(
                self.program, self.parts, self.spec.dtype, self.computed, self.layouts[place], self.bilinear
            )
            if len(text.source) > MAX_SOURCE_BYTES:
                raise FormulaTooLarge(
                    f"the formula is {len(text.source)} bytes of CUDA C++; at most {MAX_SOURCE_BYTES} are allowed"
                )
            self._variants[place] = Variant(self, place, text)
        return self._variants[place]

    def check_indices(self, extent: Extent) -> None:
        """Raise FormulaTooLarge when rows cannot be counted in the integers or the dtype of the arithmetic."""
        if max(extent.m, extent.n) > MAX_INT32:
            raise FormulaTooLarge(
                f"{max(extent.m, extent.n)} rows along one axis; a device counts to {MAX_INT32}: cut the job in two"
            )
        if self.computed == "float32" and self._numbers_rows and max(extent.m, extent.n) > MAX_FLOAT32:
            raise FormulaTooLarge(
                f"row numbers up to {max(extent.m, extent.n)} in a formula need float64 arrays; "
                f"float32 is exact to {MAX_FLOAT32}"
            )

    def variant_for(self, over_j: Extent) -> Variant:
        """The kernel that computes every pair of a job of these sizes."""
        direct = [layout for layout in self.layouts if layout.path == DIRECT]
        return self.variant(choose(direct, over_j.m))

    def filters(self, over_j: Extent) -> bool:
        """Is a dense job of these sizes done by way of the filter?"""
        if self.bilinear is None or over_j.batch or not over_j.pairs or self._path == DIRECT:
            return False
        sizes = self.bilinear.dim, self.parts[0].k, over_j.m, over_j.n
        return self._path == FILTER or filter_pays(*sizes, self.driver.gpu)

    @property
    def filter(self) -> Variant:
        """The kernel with the filter; there is one only if `bilinear` is set."""
        return self.variant(len(self.layouts) - 1)

    def plan(self, extent: Extent) -> Plan[Layout]:
        """How a job of these sizes would be cut up."""
        over_j = reduced_over_j(self.spec, extent)
        return (self.filter if self.filters(over_j) else self.variant_for(over_j)).plan(over_j)

    def launch(self, arrays: Mapping[int, Array], extent: Extent) -> Launch | CulledLaunch | FilteredLaunch:
        """Bind arrays of the right shapes and dtype; what need not be computed is left out."""
        return (
            culled_launch(self, arrays, extent)
            or filtered_launch(self, arrays, extent)
            or self.bind(arrays, extent)
        )

    def bind(self, arrays: Mapping[int, Array], extent: Extent, variant: Variant | None = None) -> Launch:
        """The same, with every pair that the arrays ask for."""
        return Launch(self, variant or self.variant_for(reduced_over_j(self.spec, extent)), arrays, extent)

    def bind_culled(self, arrays: Mapping[int, Array], extent: Extent) -> Launch:
        """The same for blocks of few rows, which are what is left of a job."""
        return self.bind(arrays, extent, self.variant(self._culled))

    def inputs(self, arrays: Mapping[int, Array]) -> list[Array]:
        """The inputs by slot on the host, in the dtype of the arithmetic."""
        return [as_numbers(arrays[index], self.spec.dtype, self.dtype) for index in self.indices]

    def seconds(self, over_j: Extent) -> float:
        """About how long every pair of a dense job takes."""
        return over_j.pairs * self.work_per_pair / self.driver.gpu.rate

    @property
    def _culled(self) -> int:
        # Tasks of few rows have small boxes; those of the smallest layout keep too few threads busy.
        return min(1, sum(layout.path == DIRECT for layout in self.layouts) - 1)

    @property
    def culled_rows(self) -> int:
        """The rows of one task of a culled job."""
        return self.layouts[self._culled].task_rows


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

    def plan(self, over_j: Extent) -> Plan[Layout]:
        return plan_for(
            self.layout,
            over_j,
            self.kernel.work_per_pair,
            self.kernel.driver.gpu,
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
            tasks, spans = dense_tables(self.layout, over_j, plan.splits)
            known = self._grounds[key] = Ground(self.kernel, plan, shapes, over_j, tasks, spans)
        return known

    def sparse_ground(
        self, shapes: tuple[tuple[int, ...], ...], over_j: Extent, blocks: Sequence[Array]
    ) -> Ground:
        """The plan and the tables of a job with ranges."""
        tasks, spans, places = sparse_tables(self.layout, over_j.m, *blocks)
        pairs = pairs_in(tasks, spans)
        work = pairs * self.kernel.work_per_pair * self.text.chunks
        slices = max(1, min(len(tasks), ceil(work / self.kernel.driver.gpu.rate / SLICE_S)))
        plan = Plan(self.layout, 1, self.layout.threads, slices, len(tasks), pairs, work)
        return Ground(self.kernel, plan, shapes, over_j, tasks, spans, places)


class Ground:
    """What a job needs on the device besides its arrays. The same for all jobs of equal shapes."""

    def __init__(
        self,
        kernel: Kernel,
        plan: Plan[Layout],
        shapes: tuple[tuple[int, ...], ...],
        over_j: Extent,
        tasks: Array,
        spans: Array,
        places: Array | None = None,
    ) -> None:
        self.plan, self.words = plan, plan.describe()
        slots, batches = kernel.program.slots, prod(over_j.batch)
        offsets = np.zeros((batches, max(1, len(slots))), np.int64)
        for s, (v, shape) in enumerate(zip(slots, shapes, strict=True)):
            offsets[:, s] = batch_offsets(shape, over_j.batch, 1 if v.params[2] == 2 else 2)
        if over_j.n == 0:
            # Without columns nothing is computed, whatever the rows hold.
            places = np.full(batches * over_j.m, -1, np.int64)
        self.tasks = len(tasks) if over_j.n else 0
        self.parts = plan.layout.threads_j * plan.splits
        # Rows of the states of one split, and of one batch member in it.
        self.all_rows = len(tasks) // plan.splits * plan.layout.task_rows
        self.per_batch = self.all_rows // max(1, batches)
        upload = kernel.driver.upload
        self.tables = [upload(t) for t in (offsets, tasks, spans)] if self.tasks else []
        self.places = None if places is None else upload(places)


class Launch:
    """One job: its arrays, its slices, its states."""

    def __init__(self, kernel: Kernel, variant: Variant, arrays: Mapping[int, Array], extent: Extent) -> None:
        kernel.check_indices(extent)
        self._kernel, self._extent = kernel, extent
        self._over_j = over_j = reduced_over_j(kernel.spec, extent)
        self._variant = variant
        held = [np.ascontiguousarray(arrays[index]) for index in kernel.indices]
        shapes = tuple(a.shape for a in held)
        if RANGES[0] in arrays:
            blocks = [arrays[place] for place in (RANGES[:3] if kernel.spec.axis == 1 else RANGES[3:])]
            self._ground = variant.sparse_ground(shapes, over_j, blocks)
        else:
            self._ground = variant.ground(shapes, over_j)
        self.plan = self._ground.plan
        driver = kernel.driver
        self.inputs = [driver.upload(a) for a in held]
        rows = self._ground.parts * self._ground.all_rows
        self._states = [driver.empty(rows * s.repeat, s.dtype) for s in variant.text.states]
        self.more: list[Any] = []  # arguments of kernels that take more than others
        self._done = 0
        self._ahead: deque[tuple[int, Any]] = deque()
        self._finished = 0

    @property
    def words(self) -> Mapping[str, str]:
        """The plan in words."""
        return self._ground.words

    @property
    def share(self) -> float:
        """The finished share of the job, 0 to 1."""
        return self._finished / self.plan.slices

    def step(self) -> float:
        """Queue the next slices and wait for one; gives the finished share."""
        while len(self._ahead) < AHEAD and self._done < self.plan.slices:
            self._queue_slice()
        if self._ahead:
            number, mark = self._ahead.popleft()
            self._kernel.driver.wait(mark)
            self._finished = number
        return self.share

    def _queue_slice(self) -> None:
        plan, tasks, variant = self.plan, self._ground.tasks, self._variant
        first, end = tasks * self._done // plan.slices, tasks * (self._done + 1) // plan.slices
        self._done += 1
        if end > first:
            args = [*self.inputs, *self._ground.tables, *self._states, np.int64(first), np.int64(tasks)]
            args += self.more
            variant.module.launch(
                "reduce", (end - first, variant.text.chunks), (plan.layout.threads, 1), 0, args
            )
        self._ahead.append((self._done, self._kernel.driver.mark()))

    def results(self, into: Sequence[Array] | None = None) -> tuple[Array, ...]:
        """Merge and finish the states of a job that is done; results in new arrays, or in those given."""
        spec, driver = self._kernel.spec, self._kernel.driver
        held = ["uint16" if dtype == "bfloat16" else dtype for dtype in output_dtypes(spec)]
        shapes = output_shapes(spec, self._extent)
        out = list(into) if into else [np.empty(s, d) for s, d in zip(shapes, held, strict=True)]
        rows = prod(self._extent.batch) * self._over_j.m
        if rows:
            buffers = [driver.empty(a.size, a.dtype.name) for a in out]
            self._combine(rows, buffers)
            for buffer, array in zip(buffers, out, strict=True):
                driver.download(buffer, array)
        self._states = self.inputs = []
        return tuple(out)

    def worst(self) -> Array:
        """The value of each row that a better one must beat, task by task; for extrema and lists of them."""
        state, parts = self._variant.text.states[0], self.plan.layout.threads_j
        values = np.empty((state.repeat, parts, self._ground.all_rows), state.dtype)
        self._kernel.driver.download(self._states[0], values)
        # Each part of a row has a list of its own: the best of their last values is reached by all of them together.
        worst: Array = values[-1].min(axis=0)
        return worst

    def _combine(self, rows: int, outputs: list[Any]) -> None:
        ground, text = self._ground, self._variant.text
        listed = any(part.rule.listed for part in self._kernel.parts)
        lanes = 1 if listed or ground.parts < 8 else min(32, ground.parts // 4)
        columns = COMBINE_THREADS // 32 if lanes > 4 else COMBINE_THREADS
        shared = (
            max(
                (
                    len(p.rule.state(t.dim if not t.loop else 1, len(t.weight)))
                    for p, t in zip(self._kernel.parts, self._kernel.program.terms, strict=True)
                ),
                default=1,
            )
            * 8
            * columns
            * lanes
        )
        args = [
            *self._states, *outputs, ground.places, np.int64(rows), np.int64(self._over_j.m),
            np.int64(ground.per_batch), np.int64(ground.all_rows), np.int32(ground.parts),
        ]  # fmt: skip
        grid = ceil(rows / columns), text.repeats
        self._variant.module.launch("combine", grid, (columns, lanes), shared if lanes > 1 else 0, args)
