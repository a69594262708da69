"""Nearest columns by a filter: a cheap form of the distance names candidates, and only clear answers of it count.

The filter finds the K + 1 least values of |x|² + |y|² − 2 x·y in each row. Where each is farther from the next than
rounding of both forms can reach, the first K are those of the direct form, in its order. The other rows are computed
directly. So the answer is that of the direct form, bit for bit, whatever the filter rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.backends.certified import at_centre, large_enough_to_ask, squares
from farsum_kernels.backends.cpu.emit import PIECE
from farsum_kernels.backends.cpu.launch import Launch
from farsum_kernels.backends.rows import on_rows
from farsum_kernels.formula.expanded import Expanded, expanded_distance
from farsum_kernels.formula.rewrite import simplified
from farsum_kernels.job import RANGES, Extent, Spec

if TYPE_CHECKING:
    from farsum_kernels.backends.cpu.kernel import Kernel

Array = NDArray[Any]

FILTERED = ("ArgMin", "ArgKMin")
MAX_K = 64  # the longer the list, the rarer that all of it is clear
PROBES, PROBED_ROWS = 64, 2048  # rows that are tried first in a job of at least so many
WORTH = 0.4  # a larger share of unclear rows, and the direct form alone is faster
LARGEST = 1e30  # squared norms past this could overflow


class Filter:
    """What a job of nearest columns needs to be filtered."""

    def __init__(self, spec: Spec, found: Expanded, compiled: Callable[[Spec], Kernel]) -> None:
        self._found, self._compiled = found, compiled
        self.k = max(1, spec.k)
        self._spec = Spec(found.roots[0], "KMin_ArgKMin", spec.axis, spec.dtype, k=self.k + 1)
        # Roundings on the way from coordinates to a distance: in products, in differences, and of moving the points.
        steps = min(found.x.dim, 2 * PIECE + found.x.dim // PIECE) + 1
        self._ulps = 1.01 * (4 * steps + 16) * float(np.finfo(spec.dtype).eps) / 2

    @cached_property
    def kernel(self) -> Kernel:
        return self._compiled(self._spec)

    def launch(self, direct: Kernel, arrays: Mapping[int, Array], extent: Extent) -> FilteredLaunch | None:
        """The job by this filter; None where it would say little."""
        rows = extent.m if direct.spec.axis == 1 else extent.n
        if extent.batch or RANGES[0] in arrays or not large_enough_to_ask(extent):
            return None
        points = at_centre(*(arrays[v.params[0]] for v in (self._found.x, self._found.y)))
        if points is None:
            return None
        x, y = points
        norms = squares(x), squares(y)
        own, other = norms if direct.spec.axis == 1 else norms[::-1]
        if not max(own.max(), other.max()) < LARGEST:
            return None
        slack = self._ulps * (own + other.max()) + float(np.finfo(x.dtype).tiny) * self._found.x.dim
        moved = {v.params[0]: a for v, a in zip(self._found.moved, (x, y), strict=True)}
        if rows >= PROBED_ROWS:
            some = np.linspace(0, rows - 1, PROBES).astype(np.int64)
            run = on_rows(self.kernel, moved, extent, some)
            while run.step() < 1.0:
                pass
            if clear(run.results()[0], slack[some]).mean() < 1 - WORTH:
                return None
        return FilteredLaunch(direct, arrays, extent, self.kernel.bind(moved, extent), slack, self.k)


def filtered(spec: Spec, compiled: Callable[[Spec], Kernel]) -> Filter | None:
    """How to filter this job, if its formula and reduction are fit for it."""
    if (
        spec.reduction not in FILTERED
        or spec.also
        or spec.k > MAX_K
        or spec.dtype not in ("float32", "float64")
    ):
        return None
    found = expanded_distance(simplified(spec.formula))
    return Filter(spec, found, compiled) if found else None


def clear(values: Array, slack: Array) -> Array:
    """Which rows of rising values have each value farther from the next than twice the slack of the row."""
    gaps = np.diff(values.reshape(len(values), -1).astype(np.float64), axis=1)
    return np.asarray((gaps > 2 * slack[:, None]).all(axis=1))


class FilteredLaunch:
    """A job of nearest columns: the filter, then the rows of which it is not sure."""

    def __init__(
        self, direct: Kernel, arrays: Mapping[int, Array], extent: Extent, run: Launch, slack: Array, k: int
    ) -> None:
        self._direct, self._arrays, self._extent = direct, arrays, extent
        self._run, self._slack, self._k = run, slack, k
        self._places: Array | None = None
        self._unclear = np.zeros(0, np.int64)
        self._settling: Launch | None = None
        self.plan = run.plan

    @property
    def words(self) -> Mapping[str, str]:
        """The plan in words."""
        return {**self._run.words, "distances": "filtered by norms and scalar products"}

    def step(self) -> float:
        """Run the next slice; gives the finished share."""
        if self._run.share < 1.0:
            self._run.step()
        elif self._settling and self._settling.share < 1.0:
            self._settling.step()
        if self._places is None and self._run.share == 1.0:
            self._compare()
        if self._places is None:
            return min(self._run.share, 0.99)
        return (1 + self._settling.share) / 2 if self._settling else 1.0

    def _compare(self) -> None:
        values, places = self._run.results()
        rows = len(places)
        self._places = np.ascontiguousarray(places.reshape(rows, -1)[:, : self._k])
        self._unclear = np.flatnonzero(~clear(values, self._slack))
        if len(self._unclear):
            self._settling = on_rows(self._direct, self._arrays, self._extent, self._unclear)

    def results(self, into: Sequence[Array] | None = None) -> tuple[Array, ...]:
        """The places of the least values of each row, as the direct form finds them."""
        assert self._places is not None, "the job is not done"
        if self._settling:
            (settled,) = self._settling.results()
            self._places[self._unclear] = settled.reshape(len(settled), -1)
        places = self._places.reshape(len(self._places), self._k)
        if into is None:
            return (places,)
        into[0].reshape(places.shape)[...] = places
        return tuple(into)
