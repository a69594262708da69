"""A reduction compiled for a device: its layouts, and which way a job of it goes. Speaks to a driver, never to CUDA."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.backends import culling
from farsum_kernels.backends.cuda.bilinear import Product, bilinear, scalar_product
from farsum_kernels.backends.cuda.device import Driver
from farsum_kernels.backends.cuda.filtered import FilteredLaunch, filtered_launch
from farsum_kernels.backends.cuda.launch import Launch, made_by, whole
from farsum_kernels.backends.cuda.layout import (
    DIRECT,
    FILTER,
    FILTER_LAYOUT,
    TENSOR,
    UNROLL,
    Layout,
    choose,
    filter_pays,
    layouts_for,
    registers,
)
from farsum_kernels.backends.cuda.pieces import Pieces
from farsum_kernels.backends.cuda.products import ByProducts
from farsum_kernels.backends.cuda.resident import Resident
from farsum_kernels.backends.cuda.sources import kernel_text
from farsum_kernels.backends.cuda.tables import CUDA
from farsum_kernels.backends.cuda.tensor_layout import lanes, tensor_layout
from farsum_kernels.backends.cuda.tune import Tuner
from farsum_kernels.backends.cuda.variant import Variant
from farsum_kernels.backends.culled import CulledLaunch, culled_launch
from farsum_kernels.backends.tables import as_numbers, reduced_over_j
from farsum_kernels.errors import DeviceFull, FormulaTooLarge
from farsum_kernels.formula.lower import Program, Want, lower
from farsum_kernels.formula.rewrite import simplified
from farsum_kernels.job import COMPUTED_IN, RANGES, Extent, Spec
from farsum_kernels.plan import Plan
from farsum_kernels.scalar.ir import Prim

Array = NDArray[Any]

MAX_SOURCE_BYTES = 4 << 20
MAX_INT32, MAX_FLOAT32 = (1 << 31) - 1, 1 << 24
WORTH_TUNING_S = 0.005  # shorter jobs are not worth trying
SMALL = 4  # a job below this part of what states may take is tried without asking for room


class Kernel:
    """A reduction, compiled for one device. Holds no data; any number of launches may use it.

    path       DIRECT, FILTER, PRODUCTS or TENSOR where there is a choice; None leaves it to the cost model
    resident   arrays that stay on that device, shared by all kernels there
    tuner      tries layouts instead of going by their sizes
    by         the distances of the formula are written by norms and scalar products, which its points are fit for;
               TENSOR, where it is for tensor cores
    """

    def __init__(
        self,
        spec: Spec,
        driver: Driver,
        path: str | None = None,
        resident: Resident | None = None,
        tuner: Tuner | None = None,
        by: str | None = None,
    ) -> None:
        self.spec, self.driver, self._path, self.tuner = spec, driver, path, tuner
        self.resident = resident or Resident(driver, 0)
        self.parts = spec.over_j()
        # For tensor cores a formula is written as it is to be computed.
        plain = (lambda formula: formula) if by == TENSOR else simplified
        wants = [
            Want(plain(part.formula), part.weight and plain(part.weight), part.rule.additive)
            for part in self.parts
        ]
        self.program: Program = lower(wants, UNROLL, list(CUDA), long_weights=True)
        self.computed = COMPUTED_IN[spec.dtype]
        self.dtype = np.dtype(self.computed)
        self.product = scalar_product(self.program) if by == TENSOR else None
        self.layouts = layouts_for(self.program, self.parts, np.dtype(self.computed).itemsize)
        self.bilinear = None
        if self.computed == "float32" and by != TENSOR:
            self.bilinear = bilinear(self.program, self.parts)
        if self.bilinear:
            self.layouts = (*self.layouts, FILTER_LAYOUT)
        self.work_per_pair = self.program.flops_per_pair()
        if self.product:
            self._for_tensor_cores(self.product)
        self.indices = [v.params[0] for v in self.program.slots]
        self.words = {"distances": "by norms and scalar products"} if by else {}
        compiled = partial(Kernel, driver=driver, resident=self.resident, tuner=tuner)
        self.by_products = None if by else ByProducts(self, compiled, path)
        self.points = culling.cullable(self.program, self.parts)
        self._variants: dict[int, Variant] = {}
        self.numbers_rows = any(instr.prim is Prim.ROW for instr in self.program.code)
        self.variant(0)  # what is too large, or no kernel at all, is known before any array arrives

    def _for_tensor_cores(self, product: Product) -> None:
        """Lay the job out for tensor cores; where registers do not suffice for that it has no product for them."""
        held = sum(
            registers(part.rule, part.k, terms)
            for part, terms in zip(self.parts, self.program.terms, strict=True)
        )
        # A share of the powers by polynomials where special functions are what a pair waits for.
        bounded = product.factor is not None and lanes(product.dim) <= 8
        layout = tensor_layout(product.dim, held + 2 * (product.factor is None), int(bounded))
        if layout is None:
            self.product = None
            return
        self.layouts, self.work_per_pair = (layout,), lanes(product.dim)

    def variant(self, place: int) -> Variant:
        """The kernel for one of the layouts, compiled now if it is new."""
        if place not in self._variants:
            about = self.program, self.parts, self.spec.dtype, self.computed, self.layouts[place]
            text = kernel_text(*about, self.product or self.bilinear)
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
        if self.computed == "float32" and self.numbers_rows and max(extent.m, extent.n) > MAX_FLOAT32:
            raise FormulaTooLarge(
                f"row numbers up to {max(extent.m, extent.n)} in a formula need float64 arrays; "
                f"float32 is exact to {MAX_FLOAT32}"
            )

    def variant_for(self, over_j: Extent) -> Variant:
        """The kernel that computes every pair of a job of these sizes."""
        return self.variant(choose(self.direct, over_j.m))

    @property
    def direct(self) -> list[Layout]:
        """The layouts that compute every pair; they come first."""
        return [layout for layout in self.layouts if layout.path != FILTER]

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

    def launch(
        self, arrays: Mapping[int, Array], extent: Extent, digests: Mapping[int, bytes] | None = None
    ) -> Launch | Pieces | CulledLaunch | FilteredLaunch:
        """Bind arrays of the right shapes and dtype; what need not be computed is left out."""
        if self.by_products and (fit := self.by_products.launch(arrays, extent, digests)):
            return fit
        try:
            culled = culled_launch(self, arrays, extent)
        except DeviceFull:
            culled = None  # in order it takes more than as it is
        return (
            culled
            or filtered_launch(self, arrays, extent, digests)
            or self.bind(arrays, extent, digests=digests)
        )

    def repeated(self, shapes: Mapping[int, tuple[int, ...]], extent: Extent, into: Sequence[Array]) -> None:
        """Arrays have to be brought here each time anyway; what is launched again is graphs.py's to say."""

    def bind_culled(self, arrays: Mapping[int, Array], extent: Extent) -> Launch:
        """The same for blocks of few rows, which are what is left of a job. Raises DeviceFull."""
        return self.bind_whole(arrays, extent, self.variant(self._culled))

    def bind_whole(
        self,
        arrays: Mapping[int, Array],
        extent: Extent,
        variant: Variant,
        digests: Mapping[int, bytes] | None = None,
    ) -> Launch:
        """The same with one of the kernels. Raises DeviceFull where the job as a whole does not fit on the device."""
        attempt = self, variant, *self._bound(arrays, extent, digests)
        launch = whole(*attempt)
        if launch is None and self.resident.evict():
            launch = whole(*attempt)
        if launch is None:
            raise DeviceFull("the job, with what is made for it beforehand, does not fit on the device")
        return launch

    def bind(
        self, arrays: Mapping[int, Array], extent: Extent, *, digests: Mapping[int, bytes] | None = None
    ) -> Launch | Pieces:
        """The same, with every pair that the arrays ask for; in pieces, where they do not fit on the device together."""
        over_j = reduced_over_j(self.spec, extent)
        variant, bound = self.variant_for(over_j), self._bound(arrays, extent, digests)
        held, _, _, made, blocks = bound
        if self._fits(variant, held, over_j, made):
            launch = whole(self, variant, *bound)
            if launch is None and self.resident.evict():
                launch = whole(self, variant, *bound)
            if launch and self.tuner and blocks is None and len(self.direct) > 1:
                launch = self._tuned(self.tuner, launch, bound)
            if launch:
                return launch
        self.resident.evict()
        for known in self._variants.values():
            known.forget()
        self.driver.release()
        return Pieces(self, held, extent, made, blocks, self.driver.room())

    def _bound(
        self, arrays: Mapping[int, Array], extent: Extent, digests: Mapping[int, bytes] | None
    ) -> tuple[
        list[Array], list[bytes | None], Extent, list[tuple[tuple[int, ...], str]], list[Array] | None
    ]:
        """The inputs by slot, their digests, the extent, the results, and the blocks of ranges."""
        held = [np.ascontiguousarray(arrays[index]) for index in self.indices]
        keys = [(digests or {}).get(index) for index in self.indices]
        blocks = None
        if RANGES[0] in arrays:
            blocks = [arrays[place] for place in (RANGES[:3] if self.spec.axis == 1 else RANGES[3:])]
        return held, keys, extent, made_by(self.spec, extent), blocks

    def _tuned(self, tuner: Tuner, launch: Launch, bound: tuple[Any, ...]) -> Launch:
        """The same job with the fastest layout, as far as layouts fit on the device."""
        over_j = reduced_over_j(self.spec, launch.extent)
        if self.seconds(over_j) < WORTH_TUNING_S:
            return launch

        untuned = choose(self.direct, over_j.m)

        def trial(place: int) -> Callable[[], float]:
            def run() -> float:
                own = launch if place == untuned else whole(self, self.variant(place), *bound)
                return own.try_out() if own else inf

            return run

        place = tuner.layout(self.spec, over_j, untuned, [trial(n) for n in range(len(self.direct))])
        if place == untuned:
            return launch
        return whole(self, self.variant(place), *bound) or launch

    def _fits(
        self,
        variant: Variant,
        held: Sequence[Array],
        over_j: Extent,
        made: Sequence[tuple[tuple[int, ...], str]],
    ) -> bool:
        """Is there room for the job as a whole? The device is not asked about small ones."""
        outputs = sum(prod(shape) * np.dtype(dtype).itemsize for shape, dtype in made)
        least = sum(a.nbytes for a in held) + outputs + prod(over_j.batch) * over_j.m * variant.state_bytes
        if least < self.driver.gpu.memory // SMALL:
            return True
        plan = variant.plan(over_j)
        states = plan.tasks * variant.layout.task_rows * variant.layout.threads_j * variant.state_bytes
        return (
            sum(a.nbytes for a in held) + outputs + states + 40 * plan.tasks
            <= self.driver.room() + self.resident.idle_bytes()
        )

    def inputs(self, arrays: Mapping[int, Array]) -> list[Array]:
        """The inputs by slot on the host, in the dtype of the arithmetic."""
        return [as_numbers(arrays[index], self.spec.dtype, self.dtype) for index in self.indices]

    def seconds(self, over_j: Extent) -> float:
        """About how long every pair of a dense job takes."""
        return over_j.pairs * self.work_per_pair / self.driver.gpu.rate

    @property
    def _culled(self) -> int:
        # Tasks of few rows have small boxes; those of the smallest layout keep too few threads busy.
        return min(1, len(self.direct) - 1)

    @property
    def culled_rows(self) -> int:
        """The rows of one task of a culled job."""
        return self.layouts[self._culled].task_rows
