"""A compiled reduction, and how its jobs are laid out and bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from ctypes import c_int64, c_void_p
from functools import cached_property, lru_cache, partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.backends import culling
from farsum_kernels.backends.certified import certified, in_pieces, large_enough_to_ask
from farsum_kernels.backends.cpu import native
from farsum_kernels.backends.cpu.filtered import FilteredLaunch, filtered
from farsum_kernels.backends.cpu.launch import Ground, Launch, Repeated
from farsum_kernels.backends.cpu.skeleton import Text, kernel_text
from farsum_kernels.backends.cpu.vector import LLVM
from farsum_kernels.backends.culled import CulledLaunch, culled_launch
from farsum_kernels.backends.reference import picked_states
from farsum_kernels.backends.tables import (
    as_numbers,
    batch_offsets,
    dense_tables,
    pairs_in,
    reduced_over_j,
    sparse_tables,
)
from farsum_kernels.errors import FormulaTooLarge
from farsum_kernels.formula.expr import J
from farsum_kernels.formula.lower import Program, Want, lower
from farsum_kernels.formula.reductions import Kind
from farsum_kernels.formula.rewrite import simplified
from farsum_kernels.job import COMPUTED_IN, RANGES, Extent, Part, Spec, output_dtypes
from farsum_kernels.plan import (
    UNROLL,
    Layout,
    Machine,
    Plan,
    layout_for,
    plan_for,
    plan_for_ranges,
    threads_for,
)
from farsum_kernels.scalar.ir import Prim

Array = NDArray[Any]

MAX_TEXT_BYTES = 16 << 20
# How far the indices that ride in float32 lanes count, as int32, and as numbers of a formula.
MAX_INT32, MAX_FLOAT32 = (1 << 31) - 1, 1 << 24
_POINTERS = (c_void_p,) * 6
MAX_GROUNDS = 64
# What a repeated job may keep of its columns between two times.
REPEATED_BYTES = 1 << 20


class Code(NamedTuple):
    """Machine code as long as it is held: the function of the pairs, and that of what a column alone decides."""

    library: native.Library
    main: Callable[..., None]
    pack: Callable[..., None] | None


class Kernel:
    """A compiled reduction. Holds no data; any number of launches may use it at once."""

    def __init__(self, spec: Spec, machine: Machine, by_products: bool = False) -> None:
        parts = spec.over_j()
        self.spec = spec
        self.machine = machine
        self.dtype = np.dtype(COMPUTED_IN[spec.dtype])
        wants = [
            Want(simplified(part.formula), part.weight and simplified(part.weight), part.rule.additive)
            for part in parts
        ]
        self.program: Program = lower(wants, UNROLL, list(LLVM), long_weights=True)
        itemsize = self.dtype.itemsize
        self.layout: Layout = layout_for(self.program, [part.rule for part in parts], itemsize, machine)
        self.text: Text = kernel_text(
            self.program, parts, self.dtype.name, self.layout, native.has_scalef(), native.flushes()
        )
        if len(self.text.ir) > MAX_TEXT_BYTES:
            raise FormulaTooLarge(
                f"the formula compiles to {len(self.text.ir)} bytes of code; at most {MAX_TEXT_BYTES} are allowed"
            )
        self.work_per_pair = self.program.flops_per_pair()
        self._kinds = {kind for part in parts for kind in part.rule.state(1, 1)}
        self._numbers_rows = any(instr.prim is Prim.ROW for instr in self.program.code)
        self.indices = [v.params[0] for v in self.program.slots]
        # The dtype that each output is held in, and its trailing shape.
        tails = [part.output_tail() for part in spec.parts for _ in part.rule.outputs]
        held = ["uint16" if dtype == "bfloat16" else dtype for dtype in output_dtypes(spec)]
        self.outputs = list(zip(held, tails, strict=True))
        # How many states each reduction has, and which of them its outputs are, if finishing is no more than that.
        self.counts = [
            (part, len(part.rule.state(1 if terms.loop else terms.dim, len(terms.weight))))
            for part, terms in zip(spec.parts, self.program.terms, strict=True)
        ]
        self.picks = _picks(self.counts)
        self.points = culling.cullable(self.program, parts)
        # Of formulas by differences: the same by scalar products, for points that are fit for it.
        self.words = {"distances": "by norms and scalar products"} if by_products else {}
        compiled = partial(Kernel, machine=machine, by_products=True)
        self._certified = None if by_products else certified(spec, compiled, in_pieces)
        self._filter = None if by_products else filtered(spec, compiled)
        self._grounds: dict[Any, Ground] = {}
        if self._certified is None:  # else it may never be needed
            _ = self.code

    @cached_property
    def code(self) -> Code:
        """The machine code."""
        library = native.load(self.text.ir)
        signature = (*_POINTERS, c_int64, c_int64, c_void_p)
        pack = library.function("pack", *signature) if self.text.packed else None
        return Code(library, library.function("main", *signature), pack)

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

    def plan(self, extent: Extent) -> Plan[Layout]:
        """How a job of these sizes would be cut up."""
        return _plan(self.layout, reduced_over_j(self.spec, extent), self.work_per_pair, self.machine)

    def inputs(self, arrays: Mapping[int, Array]) -> list[Array]:
        """The inputs by slot, in the dtype of the arithmetic, C-ordered."""
        return [as_numbers(arrays[index], self.spec.dtype, self.dtype) for index in self.indices]

    def ground(self, shapes: tuple[tuple[int, ...], ...], extent: Extent) -> Ground:
        """The plan and tables of a dense job, made once for a run of equal shapes."""
        key = shapes, extent
        if (known := self._grounds.get(key)) is None:
            if len(self._grounds) >= MAX_GROUNDS:
                self._grounds.clear()
            known = self._grounds[key] = self._new_ground(shapes, extent)
        return known

    def _new_ground(self, shapes: tuple[tuple[int, ...], ...], extent: Extent) -> Ground:
        over_j = reduced_over_j(self.spec, extent)
        self.check_indices(over_j)
        plan, batches, slots = self.plan(extent), prod(extent.batch), self.program.slots
        offsets = np.empty((batches, len(slots) + self.text.packed), np.int64)
        for s, (v, shape) in enumerate(zip(slots, shapes, strict=True)):
            offsets[:, s] = batch_offsets(shape, extent.batch, 1 if v.params[2] == 2 else 2)
        padded = -(-over_j.n // self.layout.lanes) * self.layout.lanes
        offsets[:, len(slots) :] = (np.arange(batches) * padded)[:, None]
        return Ground(plan, offsets, *dense_tables(plan.layout, over_j, plan.splits))

    def sparse_ground(self, dense: Ground, over_j: Extent, blocks: Sequence[Array]) -> Ground:
        """The plan and tables of a job with ranges."""
        tasks, spans, places = sparse_tables(dense.plan.layout, over_j.m, *blocks)
        pairs = pairs_in(tasks, spans)
        plan = plan_for_ranges(dense.plan, len(tasks), pairs, self.work_per_pair, self.machine)
        return Ground(plan, dense.offsets, tasks, spans, places)

    def pack_ground(self, over_j: Extent, dense: Ground) -> Ground:
        """The tables for what depends on a column alone: its rows are the columns of the job."""
        layout = Layout(self.layout.lanes, 1, 1, 0, 0, 0)
        tables = dense_tables(layout, Extent(over_j.n, 0, over_j.batch), 1)
        return Ground(dense.plan, dense.offsets, *tables)

    def pack_threads(self, over_j: Extent) -> int:
        """How many threads compute what depends on a column alone: most of it is copying, number by number."""
        lanes, columns = self.layout.lanes, over_j.n * prod(over_j.batch)
        copied = sum(v.dim for v in self.program.slots if v.params[2] == J)
        return threads_for(columns * copied * lanes, lanes, self.machine)

    def launch(
        self, arrays: Mapping[int, Array], extent: Extent, digests: Mapping[int, bytes] | None = None
    ) -> Launch | CulledLaunch | FilteredLaunch:
        """Bind arrays of the right shapes and dtype. Copies nothing by digest."""
        if self._certified and (fit := self._certified.arrays(arrays, extent)):
            return self._certified.kernel.launch(fit, extent)
        if self._filter and (sifted := self._filter.launch(self, arrays, extent)):
            return sifted
        return culled_launch(self, arrays, extent) or self.bind(arrays, extent)

    def bind(self, arrays: Mapping[int, Array], extent: Extent) -> Launch:
        """The same, with every pair that the arrays ask for."""
        return Launch(self, arrays, extent)

    bind_culled = bind

    def repeated(
        self, shapes: Mapping[int, tuple[int, ...]], extent: Extent, into: Sequence[Array]
    ) -> Repeated | None:
        """A job to be computed again and again; None where it depends on the numbers how it is computed best."""
        over_j = reduced_over_j(self.spec, extent)
        asks = (self._certified or self._filter) and large_enough_to_ask(extent)
        culls = self.points is not None and culling.large_enough(self, over_j)
        packed = self.text.packed * (over_j.n + self.layout.lanes) * prod(extent.batch) * self.dtype.itemsize
        if over_j.pairs == 0 or RANGES[0] in shapes or asks or culls or self.dtype.name != self.spec.dtype:
            return None
        if packed > REPEATED_BYTES:
            return None
        launch = self.bind({n: np.zeros(shape, self.dtype) for n, shape in shapes.items()}, extent)
        return Repeated(launch, into) if launch.plan.slices == 1 else None

    def seconds(self, over_j: Extent) -> float:
        """About how long every pair of a dense job takes."""
        machine = self.machine
        return over_j.pairs * self.work_per_pair / (machine.rate * self.layout.lanes * machine.threads)

    @property
    def culled_rows(self) -> int:
        """The rows of one task of a culled job."""
        return self.layout.task_rows


def _picks(counts: Sequence[tuple[Part, int]]) -> list[tuple[Part, list[int]]] | None:
    """The places among all states of the components of each output, if finishing only chooses."""
    picks, first = [], 0
    for part, count in counts:
        places = None if part.rule.listed else picked_states(part.rule, count)
        if places is None:
            return None
        picks += [(part, [first + p for p in group]) for group in places]
        first += count
    return picks


@lru_cache(maxsize=1024)
def _plan(layout: Layout, extent: Extent, work_per_pair: float, machine: Machine) -> Plan[Layout]:
    return plan_for(layout, extent, work_per_pair, machine)
