"""Some rows of a job, as a job of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from farsum_kernels.job import Extent, Spec

Array = NDArray[Any]
L_co = TypeVar("L_co", covariant=True)


class Bindable(Protocol[L_co]):
    """A kernel of any backend."""

    spec: Spec

    def bind(self, arrays: Mapping[int, Array], extent: Extent) -> L_co: ...


def on_rows(kernel: Bindable[L_co], arrays: Mapping[int, Array], extent: Extent, rows: Array) -> L_co:
    """The launch of a dense job without batches for these of its rows, in this order."""
    over_j = kernel.spec.axis == 1
    chosen = {
        index: arrays[index][rows] if v.params[2] == (0 if over_j else 1) else arrays[index]
        for index, v in kernel.spec.inputs.items()
    }
    return kernel.bind(chosen, Extent(len(rows), extent.n, ()) if over_j else Extent(extent.m, len(rows), ()))
