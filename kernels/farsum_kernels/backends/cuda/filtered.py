"""A job done by way of the filter (filter.py): its points are packed for the tensor cores first.

Where the filter lets too much through, or the points are no numbers, the job is done in full instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.backends.cuda.graphs import Call
from farsum_kernels.backends.cuda.layout import FILTER_LAYOUT
from farsum_kernels.backends.tables import reduced_over_j
from farsum_kernels.errors import DeviceFull
from farsum_kernels.job import RANGES, Extent

if TYPE_CHECKING:
    from farsum_kernels.backends.cuda.kernel import Kernel
    from farsum_kernels.backends.cuda.launch import Launch
    from farsum_kernels.backends.cuda.pieces import Pieces

Array = NDArray[Any]

THREADS = 128
MAX_BLOCKS = 1024  # of the kernels that walk over all numbers in steps of their grid
STEP, TILE = 16, 64  # components of one product of the tensor cores, columns that are packed together


def filtered_launch(
    kernel: Kernel, arrays: Mapping[int, Array], extent: Extent, digests: Mapping[int, bytes] | None = None
) -> FilteredLaunch | None:
    """The job by way of the filter; None where that is impossible or not worth it."""
    if RANGES[0] in arrays or not kernel.filters(reduced_over_j(kernel.spec, extent)):
        return None
    try:
        return FilteredLaunch(kernel, arrays, extent, digests)
    except DeviceFull:  # the packed points are too much; without them it may fit
        return None


class FilteredLaunch:
    """A launch like any other."""

    def __init__(
        self,
        kernel: Kernel,
        arrays: Mapping[int, Array],
        extent: Extent,
        digests: Mapping[int, bytes] | None,
    ) -> None:
        self._kernel, self._arrays, self._extent, self._digests = kernel, arrays, extent, digests
        run = kernel.bind_whole(arrays, extent, kernel.filter, digests)
        self._run: Launch | Pieces = run
        self._gave_up = False
        self.plan = self._run.plan
        self._marks: Any = None
        self._pack(run, reduced_over_j(kernel.spec, extent))

    def _pack(self, run: Launch, over_j: Extent) -> None:
        """Have the points packed before the first slice, and hand what is made of them to the pair loop."""
        driver, found, module = self._kernel.driver, self._kernel.bilinear, self._kernel.filter.module
        assert found
        x, y = (run.inputs[side.slot] for side in (found.rows, found.columns))
        width = [self._kernel.program.slots[side.slot].params[1] for side in (found.rows, found.columns)]
        base = [found.rows.base, found.columns.base]
        m, n = over_j.m, over_j.n
        steps, tiles = -(-found.dim // STEP), -(-n // TILE)
        # Whole tiles: what is past the last row or column is packed as zeros.
        rows, columns = -(-m // FILTER_LAYOUT.task_rows) * FILTER_LAYOUT.task_rows, tiles * TILE
        center = driver.empty(found.dim, "float32")
        self._marks = marks = driver.empty(3, "int32")
        largest = driver.empty(3 * tiles, "int32")
        packed = [driver.empty(size * steps * STEP // 2, "uint32") for size in (rows, columns)]
        numbers = [driver.empty(4 * rows, "float32"), driver.empty(columns, "float32")]

        def queue(name: str, blocks: int, *args: Any) -> None:
            run.before.append(Call(module, name, (blocks, 1), (THREADS, 1), 0, args))

        def walk(size: int) -> int:
            return max(1, min(MAX_BLOCKS, -(-size // THREADS)))

        counts = np.int32(n), np.int32(tiles)
        queue("filter_begin", walk(max(found.dim, 3 * tiles)), y, center, marks, largest, *counts)
        for side, (points, size) in enumerate(((x, m), (y, n))):
            about = np.int32(size), np.int32(width[side]), np.int32(base[side]), np.int32(side)
            queue("filter_largest", walk(size * found.dim), points, center, marks, *about)
        for side, (points, size) in enumerate(((x, m), (y, n))):
            about = np.int32(size), np.int32(width[side]), np.int32(base[side]), np.int32(side)
            warps = (rows, columns)[side] * 32 // THREADS
            own = packed[side], numbers[side], largest
            queue("filter_pack", warps, points, center, marks, *own, *about)
        run.more = [packed[0], numbers[0], packed[1], numbers[1], largest, marks]

    @property
    def words(self) -> Mapping[str, str]:
        """The plan in words."""
        return {**self._run.words, **({"filter": "gave up"} if self._gave_up else {})}

    @property
    def share(self) -> float:
        """The finished share of the job, 0 to 1."""
        return self._run.share

    def step(self) -> float:
        """Run the next slice; gives the finished share."""
        share = self._run.step()
        if not self._gave_up and self._filter_failed():
            self._gave_up = True
            self._run = self._kernel.bind(self._arrays, self._extent, digests=self._digests)
            self.plan = self._run.plan
            return 0.0
        return share

    def _filter_failed(self) -> bool:
        marks = np.zeros(3, np.int32)
        self._kernel.driver.download(self._marks, marks)
        return bool(marks[2])

    def results(self, into: Sequence[Array] | None = None) -> tuple[Array, ...]:
        """The results of a job that is done."""
        return self._run.results(into)
