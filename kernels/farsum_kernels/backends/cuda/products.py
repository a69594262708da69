"""A job whose distances come from scalar products: of tensor cores, or of the other units. Chooses, and launches it.

Neither is taken but under the certificate of backends/certified.py, for which the points are looked at: on the device,
or, for products without tensor cores, on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from farsum_kernels.backends.certified import (
    MIN_ROWS,
    Certified,
    certified,
    in_one_chain,
    on_tensor_cores,
)
from farsum_kernels.backends.cuda.layout import PRODUCTS, TENSOR
from farsum_kernels.backends.cuda.packed import packed_launch
from farsum_kernels.backends.cuda.tensor_layout import FEWEST, MOST, tensor_pays
from farsum_kernels.backends.tables import reduced_over_j
from farsum_kernels.errors import DeviceFull
from farsum_kernels.job import RANGES, Extent

if TYPE_CHECKING:
    from farsum_kernels.backends.cuda.filtered import FilteredLaunch
    from farsum_kernels.backends.cuda.kernel import Kernel
    from farsum_kernels.backends.cuda.launch import Launch
    from farsum_kernels.backends.cuda.pieces import Pieces
    from farsum_kernels.backends.culled import CulledLaunch

Array = NDArray[Any]
Digests = Mapping[int, bytes] | None

LOOK_S = 2e-9  # of the host, for a number of the points: norms, and a second time about the centre


class ByProducts:
    """What a kernel by differences does better by products, if its points allow it.

    compiled   a kernel of the same device for another spec, in which there are scalar products, for PRODUCTS or TENSOR
    path       the one of both that must be taken; None leaves it to the cost model
    """

    def __init__(self, kernel: Kernel, compiled: Callable[..., Kernel], path: str | None) -> None:
        self._kernel, self._path, spec = kernel, path, kernel.spec
        self.plain = certified(spec, lambda s: compiled(s, by=PRODUCTS), in_one_chain)
        self.tensor: Certified[Kernel] | None = None
        if spec.dtype == "float32":
            found = certified(spec, lambda s: compiled(s, by=TENSOR), on_tensor_cores, FEWEST, apart=True)
            self.tensor = found if found and found.dim <= MOST else None

    def launch(
        self, arrays: Mapping[int, Array], extent: Extent, digests: Digests
    ) -> Launch | Pieces | CulledLaunch | FilteredLaunch | None:
        """The job, bound; None where its distances are better, or must be, differences."""
        if self._path not in (None, PRODUCTS, TENSOR) or RANGES[0] in arrays:
            return None
        found = self._by_tensor(arrays, extent, digests)
        return (found or None) if found is not None else self._by_plain(arrays, extent, digests)

    def _by_plain(
        self, arrays: Mapping[int, Array], extent: Extent, digests: Digests
    ) -> Launch | Pieces | CulledLaunch | FilteredLaunch | None:
        asked = self.plain
        if asked is None or self._path == TENSOR:
            return None
        # The host looks at every number of the points; half of the time of a pair is what it can gain.
        least = 2 * LOOK_S * asked.dim * self._kernel.driver.gpu.rate / self._kernel.work_per_pair
        fit = asked.arrays(arrays, extent, 0 if self._path == PRODUCTS else max(MIN_ROWS, least))
        if fit is None:
            return None
        known = dict(digests or {})
        for place, (own, centre) in asked.places.items():
            if own in known and fit[place] is arrays[own]:
                known[place] = known[own]
            elif own in known and centre in known:
                known[place] = b"moved" + known[own] + known[centre]
        return asked.kernel.launch(fit, extent, known)

    def _by_tensor(
        self, arrays: Mapping[int, Array], extent: Extent, digests: Digests
    ) -> Launch | Literal[False] | None:
        """The job on tensor cores; None where they are not for it, False where its points are not for products."""
        over_j, asked = reduced_over_j(self._kernel.spec, extent), self.tensor
        if asked is None or self._path == PRODUCTS or over_j.batch or not over_j.pairs:
            return None
        pays = tensor_pays(asked.dim, over_j.m, over_j.n, self._kernel.driver.gpu)
        if not (pays or self._path == TENSOR) or asked.kernel.product is None:
            return None
        known = dict(digests or {})
        known |= {place: known[own] for place, (own, _) in asked.places.items() if own in known}
        try:
            return packed_launch(asked, {**arrays, **asked.points(arrays)}, extent, known) or False
        except DeviceFull:  # the packed points are too much; without them it may fit
            return None
