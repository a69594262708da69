"""Several GPUs that compute one job together: each takes a share of the rows, and all columns. Nothing is merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.backends.cuda.backend import CudaBackend
from farsum_kernels.backends.cuda.kernel import Kernel
from farsum_kernels.backends.cuda.launch import made_by
from farsum_kernels.backends.tables import reduced_over_j
from farsum_kernels.job import RANGES, Extent, Spec
from farsum_kernels.plan import Plan

Array = NDArray[Any]

WORTH_S = 0.002  # on one device; what takes less is not worth the copies to the others


class SplitBackend:
    """Implements farsum_kernels.compile.Backend with several of one kind."""

    kind = "cuda"

    def __init__(self, backends: Sequence[CudaBackend]) -> None:
        self._backends = backends
        self.name = " with ".join(backend.name for backend in backends)
        self.threads = len(backends)

    def compile(self, spec: Spec) -> SplitKernel:
        return SplitKernel(spec, [backend.compile(spec) for backend in self._backends])


class SplitKernel:
    """A reduction, compiled for each device."""

    def __init__(self, spec: Spec, kernels: Sequence[Kernel]) -> None:
        self._spec, self._kernels = spec, kernels
        rates = np.cumsum([0.0, *(kernel.driver.gpu.rate for kernel in kernels)])
        self._shares = rates / rates[-1]

    def plan(self, extent: Extent) -> Plan[Any]:
        """How the first device would cut the job up if it were alone."""
        return self._kernels[0].plan(extent)

    def check_indices(self, extent: Extent) -> None:
        """Raise FormulaTooLarge when rows cannot be counted."""
        self._kernels[0].check_indices(extent)

    def launch(
        self, arrays: Mapping[int, Array], extent: Extent, digests: Mapping[int, bytes] | None = None
    ) -> Any:
        """Bind arrays. One device takes a job alone that is small, has ranges, or reads the numbers of its rows."""
        first, over_j = self._kernels[0], reduced_over_j(self._spec, extent)
        alone = RANGES[0] in arrays or first.numbers_rows or first.seconds(over_j) < WORTH_S
        if alone or over_j.m < len(self._kernels):
            return first.launch(arrays, extent, digests)
        return SplitLaunch(self._spec, self._kernels, self._shares, arrays, extent, digests or {})

    def repeated(self, shapes: Mapping[int, tuple[int, ...]], extent: Extent, into: Sequence[Array]) -> None:
        """As on one device."""


class SplitLaunch:
    """A launch on each device."""

    def __init__(
        self,
        spec: Spec,
        kernels: Sequence[Kernel],
        shares: Array,
        arrays: Mapping[int, Array],
        extent: Extent,
        digests: Mapping[int, bytes],
    ) -> None:
        kernels[0].check_indices(extent)
        rows = reduced_over_j(spec, extent).m
        ends = [round(rows * share) for share in shares]
        self._rows = list(pairwise(ends))
        self._before = (slice(None),) * len(extent.batch)
        self._made = made_by(spec, extent)
        side = 0 if spec.axis == 1 else 1
        self._launches = []
        for kernel, (start, end) in zip(kernels, self._rows, strict=True):
            own, known = dict(arrays), dict(digests)
            for n, variable in spec.inputs.items():
                if variable.params[2] == side:
                    own[n] = arrays[n][..., start:end, :]
                    if n in digests:
                        # The rows of an array are another array, known by where they lie in it.
                        known[n] = digests[n] + f"{start}:{end}".encode()
            m, n = (end - start, extent.n) if side == 0 else (extent.m, end - start)
            self._launches.append(kernel.launch(own, Extent(m, n, extent.batch), known))
        self._done = [0.0] * len(kernels)

    @property
    def words(self) -> Mapping[str, str]:
        """The plan of the first device, in words, and how many there are."""
        return {**self._launches[0].words, "devices": str(len(self._launches))}

    def step(self) -> float:
        """Wait for a slice of each device that is not done; meanwhile the others compute what they have queued."""
        for n, launch in enumerate(self._launches):
            if self._done[n] < 1.0:
                self._done[n] = launch.step()
        return sum(self._done) / len(self._done)

    def results(self, into: Sequence[Array] | None = None) -> tuple[Array, ...]:
        """The results of all, each in its rows."""
        out = list(into) if into else [np.empty(shape, dtype) for shape, dtype in self._made]
        for launch, (start, end) in zip(self._launches, self._rows, strict=True):
            for whole, value in zip(out, launch.results(), strict=True):
                whole[(*self._before, slice(start, end))] = value
        return tuple(out)
