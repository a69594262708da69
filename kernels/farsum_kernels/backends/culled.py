"""A job of which most pairs are left out: it runs as block-sparse jobs of its backend on sorted points.

What is left out is decided in culling.py; what runs the pairs is the backend's own launch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.backends import culling
from farsum_kernels.backends.rows import on_rows
from farsum_kernels.backends.tables import reduced_over_j
from farsum_kernels.formula.reductions import Kind
from farsum_kernels.job import RANGES, Extent
from farsum_kernels.plan import Plan

Array = NDArray[Any]


class Run(Protocol):
    """A launch of a backend."""

    plan: Plan[Any]

    @property
    def words(self) -> Mapping[str, str]: ...

    @property
    def share(self) -> float: ...

    def step(self) -> float: ...

    def results(self) -> tuple[Array, ...]: ...


class CulledRun(Run, Protocol):
    """A launch of a job of which little is left."""

    def worst(self) -> Array:
        """The value of each row that a better one must beat, task by task."""
        ...


class Kernel(culling.Subject, Protocol):
    """A kernel of a backend that culls."""

    points: tuple[int, int] | None

    def inputs(self, arrays: Mapping[int, Array]) -> list[Array]:
        """The inputs by slot, in the dtype of the arithmetic."""
        ...

    def bind(self, arrays: Mapping[int, Array], extent: Extent) -> Run:
        """A job with every pair that its arrays ask for."""
        ...

    def bind_culled(self, arrays: Mapping[int, Array], extent: Extent) -> CulledRun:
        """The same, where the blocks of the job have `culled_rows` rows."""
        ...


def culled_launch(kernel: Kernel, arrays: Mapping[int, Array], extent: Extent) -> CulledLaunch | None:
    """The job without what adds nothing to it; None where all of it is to be computed."""
    over_j = reduced_over_j(kernel.spec, extent)
    if (
        kernel.points is None
        or RANGES[0] in arrays
        or extent.batch
        or not culling.large_enough(kernel, over_j)
    ):
        return None
    seed = partial(_seeds, kernel, arrays, extent)
    found = culling.find(kernel, kernel.points, kernel.inputs(arrays), over_j, seed)
    return CulledLaunch(kernel, arrays, extent, found) if found else None


class CulledLaunch:
    """A job of which most pairs are left out; see culling.py. A launch like any other."""

    def __init__(
        self, kernel: Kernel, arrays: Mapping[int, Array], extent: Extent, found: culling.Culling
    ) -> None:
        self._kernel, self._all, self._extent, self._found = kernel, arrays, extent, found
        own = found.blocks, found.slices, found.intervals
        self._orders = [found.order_j]
        self._runs: list[Run] = [
            kernel.bind_culled(_in_order(kernel, arrays, found.order_i, found.order_j, own), extent)
        ]
        if Kind.INDEX in kernel.spec.parts[0].rule.outputs:
            # The same columns from the last to the first: another index where values are equal.
            self._orders.append(found.order_j[::-1])
            own = culling.reversed_ranges(*own, len(found.order_j))
            self._runs.append(
                kernel.bind_culled(_in_order(kernel, arrays, found.order_i, self._orders[1], own), extent)
            )
        self._values: list[Array] | None = None
        self._equal = np.zeros(0, np.int64)
        self._settling: Run | None = None  # the rows with equal values, without culling
        self.plan = self._runs[0].plan

    @property
    def words(self) -> Mapping[str, str]:
        """The plan in words."""
        return {**self._runs[0].words, "culled": f"{1 - self._found.share:.2%}"}

    def step(self) -> float:
        """Run the next slice; gives the finished share."""
        run = next((run for run in self._runs if run.share < 1.0), None)
        if run:
            run.step()
        elif self._settling and self._settling.share < 1.0:
            self._settling.step()
        if self._values is None and all(run.share == 1.0 for run in self._runs):
            self._compare()
        stages = [*self._runs, *([self._settling] if self._settling else [])]
        share = sum(run.share for run in stages) / len(stages)
        return share if self._values is not None else min(share, 0.99)

    def _compare(self) -> None:
        """Take the values, and see which rows name different columns from the two ends: they have equal values."""
        found, kinds = self._found, self._kernel.spec.parts[0].rule.outputs
        sets = [
            [_unsorted(v, kind, found.order_i, order) for v, kind in zip(run.results(), kinds, strict=True)]
            for run, order in zip(self._runs, self._orders, strict=True)
        ]
        self._values = sets[0]
        if len(sets) == 1:
            return
        place = kinds.index(Kind.INDEX)
        differ = (sets[0][place] != sets[1][place]).reshape(len(found.order_i), -1).any(axis=1)
        self._equal = np.flatnonzero(differ)
        if len(self._equal):
            # Against every column, in the user's order.
            self._settling = on_rows(self._kernel, self._all, self._extent, self._equal)

    def results(self, into: Sequence[Array] | None = None) -> tuple[Array, ...]:
        """The results in the user's order, indices as the user counts."""
        assert self._values is not None, "the job is not done"
        values = self._values
        if self._settling:
            for value, settled in zip(values, self._settling.results(), strict=True):
                value[self._equal] = settled
        if into is None:
            return tuple(values)
        for out, value in zip(into, values, strict=True):
            out[...] = value
        return tuple(into)


def _in_order(
    kernel: Kernel,
    arrays: Mapping[int, Array],
    order_i: Array,
    order_j: Array,
    own: tuple[Array, Array, Array],
) -> dict[int, Array]:
    """The arrays of a block-sparse job on sorted rows and columns."""
    orders = {0: order_i, 1: order_j}
    chosen = {
        v.params[0]: arrays[v.params[0]][orders[v.params[2]]]
        if v.params[2] in orders
        else arrays[v.params[0]]
        for v in kernel.program.slots
    }
    nothing = np.zeros((0, 2), np.int64), np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
    ranges = (*own, *nothing) if kernel.spec.axis == 1 else (*nothing, *own)
    return chosen | dict(zip(RANGES, ranges, strict=True))


def _seeds(
    kernel: Kernel, arrays: Mapping[int, Array], extent: Extent, order_i: Array, order_j: Array, *own: Array
) -> Array:
    """The worst value that each row keeps of a block-sparse job, task by task."""
    run = kernel.bind_culled(_in_order(kernel, arrays, order_i, order_j, own), extent)  # type: ignore[arg-type]
    while run.step() < 1.0:
        pass
    return run.worst()


def _unsorted(values: Array, kind: Kind, order_i: Array, order_j: Array) -> Array:
    """Values by row in the user's order; indices of columns in the user's numbers."""
    out = np.empty_like(values)
    out[order_i] = order_j[values] if kind is Kind.INDEX else values
    return out
