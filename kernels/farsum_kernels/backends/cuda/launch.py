"""One job on a device: launch slices, merge states, bring results back. Speaks to a driver, never to CUDA."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.backends.cuda.graphs import Call
from farsum_kernels.backends.cuda.variant import AHEAD, Variant
from farsum_kernels.backends.tables import reduced_over_j
from farsum_kernels.errors import DeviceFull
from farsum_kernels.job import Extent, Spec, output_dtypes, output_shapes

if TYPE_CHECKING:
    from farsum_kernels.backends.cuda.kernel import Kernel

Array = NDArray[Any]


class Launch:
    """One job that fits on the device: its arrays, its slices, its states.

    digests              of the inputs by slot, those that the device may keep
    held, made, blocks   as in `Pieces`
    """

    def __init__(
        self,
        kernel: Kernel,
        variant: Variant,
        held: Sequence[Array],
        digests: Sequence[bytes | None],
        extent: Extent,
        made: Sequence[tuple[tuple[int, ...], str]],
        blocks: Sequence[Array] | None,
    ) -> None:
        kernel.check_indices(extent)
        self._kernel, self.extent, self._made = kernel, extent, made
        self._over_j = over_j = reduced_over_j(kernel.spec, extent)
        self._variant = variant
        shapes = tuple(a.shape for a in held)
        if blocks is None:
            self._ground = variant.ground(shapes, over_j)
        else:
            self._ground = variant.sparse_ground(shapes, over_j, blocks)
        self.plan = self._ground.plan
        driver = kernel.driver
        self._leases = [kernel.resident.lease(a, digest) for a, digest in zip(held, digests, strict=True)]
        self.inputs = [lease.buffer for lease in self._leases]
        found = sum(lease.found for lease in self._leases)
        self._found = {"resident": f"{found} of {len(held)} arrays"} if found else {}
        self._states = variant.states(self._ground)
        # All that a job takes it takes here, so that none fails for want of memory once it is under way.
        self._outputs = [driver.empty(prod(shape), dtype) for shape, dtype in self._made]
        self.more: list[Any] = []  # arguments of kernels that take more than others
        self.before: list[Call] = []  # what is launched before the first slice
        self._rows = prod(extent.batch) * over_j.m
        self._done = 0
        self._ahead: deque[tuple[int, Any]] = deque()
        self._finished = 0

    @property
    def words(self) -> Mapping[str, str]:
        """The plan in words."""
        return {**self._ground.words, **self._found, **self._kernel.words}

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

    def try_out(self) -> float:
        """Run a slice for nothing but the time it takes: seconds for each pair."""
        ground = self._ground
        end = max(1, ground.tasks // self.plan.slices)
        args = ground, ground.tables, self.inputs, self._states, 0, end
        driver = self._kernel.driver
        seconds = driver.timed(lambda: driver.run(self._variant.reduce(*args)))
        return seconds * ground.tasks / end / max(1, self.plan.pairs)

    def _queue_slice(self) -> None:
        slices, ground = self.plan.slices, self._ground
        first, end = ground.tasks * self._done // slices, ground.tasks * (self._done + 1) // slices
        self._done += 1
        args = ground, ground.tables, self.inputs, self._states, first, end, self.more
        calls = [*self.before, *self._variant.reduce(*args)]
        if slices == 1:
            # All of a short job in one series, which may come again.
            calls += self._combine()
        self.before = []
        self._kernel.driver.run(calls)
        self._ahead.append((self._done, self._kernel.driver.mark()))

    def results(self, into: Sequence[Array] | None = None) -> tuple[Array, ...]:
        """Merge and finish the states of a job that is done; results in new arrays, or in those given."""
        out = list(into) if into else [np.empty(shape, dtype) for shape, dtype in self._made]
        if self._rows:
            if self.plan.slices > 1:
                self._kernel.driver.run(self._combine())
            for buffer, array in zip(self._outputs, out, strict=True):
                self._kernel.driver.download(buffer, array)
        self._states = self.inputs = self._outputs = []
        self._leases = []
        return tuple(out)

    def _combine(self) -> list[Call]:
        if not self._rows:
            return []
        about = self._ground, self._states, self._outputs, self._rows, self._over_j.m
        return self._variant.combine(*about)

    def worst(self) -> Array:
        """The value of each row that a better one must beat, task by task; for extrema and lists of them."""
        state, parts = self._variant.text.states[0], self.plan.layout.threads_j
        values = np.empty((state.repeat, parts, self._ground.all_rows), state.dtype)
        self._kernel.driver.download(self._states[0], values)
        # Each part of a row has a list of its own: the best of their last values is reached by all of them together.
        worst: Array = values[-1].min(axis=0)
        return worst


def whole(*attempt: Any) -> Launch | None:
    """A launch; None if it does not fit, and then all that the attempt had taken is free again."""
    try:
        return Launch(*attempt)
    except DeviceFull:
        return None


def made_by(spec: Spec, extent: Extent) -> list[tuple[tuple[int, ...], str]]:
    """Shape and dtype of each result, as it is held."""
    held = ["uint16" if dtype == "bfloat16" else dtype for dtype in output_dtypes(spec)]
    return list(zip(output_shapes(spec, extent), held, strict=True))
