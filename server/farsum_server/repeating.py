"""Small jobs that come again in one process: bound once, and computed wherever their arrays lie."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from farsum_kernels.job import RANGES, Result, Spec, extent_of, output_dtypes, output_shapes
from farsum_proto.tensor import held_as

if TYPE_CHECKING:
    from farsum_kernels.compile import Repeated
    from farsum_server.worker import Worker

# Results of more bytes are written where they go to, and not copied there.
MOST_BYTES = 64 << 10
MOST_PAIRS = 1 << 20


# The number, shape and dtype of each array.
Faces = list[tuple[int, tuple[int, ...], Any]]


def faces_of(arrays: Mapping[int, Any]) -> Faces:
    return [(n, array.shape, array.dtype) for n, array in arrays.items()]


class Repeating:
    """The job of arrays that look like these, if it is small. One thread at a time uses it, others do without."""

    def __init__(self, worker: Worker, spec: Spec, arrays: Mapping[int, Any]) -> None:
        self.faces = faces_of(arrays)
        self._lock = threading.Lock()
        self._repeated: Repeated | None = None
        if RANGES[0] in arrays:
            return
        shapes = {n: array.shape for n, array in arrays.items()}
        extent = extent_of(spec, shapes)
        faces = zip(output_shapes(spec, extent), output_dtypes(spec), strict=True)
        self._results = [np.empty(shape, held_as(dtype)) for shape, dtype in faces]
        if extent.pairs <= MOST_PAIRS and sum([result.nbytes for result in self._results]) <= MOST_BYTES:
            self._repeated = worker.repeated(spec, shapes, self._results)

    def run(self, arrays: Mapping[int, Any]) -> Result | None:
        """The result; None for arrays that look otherwise, and where nothing is gained."""
        repeated = self._repeated
        if repeated is None or not self._fits(arrays) or not self._lock.acquire(blocking=False):
            return None
        try:
            repeated.run([repeated.address(arrays[n]) for n in repeated.indices], arrays)
            return Result(tuple([result.copy() for result in self._results]), repeated.words)
        except BaseException:
            self._repeated = None  # an interrupt may have left a thread at work on its memory
            raise
        finally:
            self._lock.release()

    def _fits(self, arrays: Mapping[int, Any]) -> bool:
        if len(arrays) != len(self.faces):
            return False
        for n, shape, dtype in self.faces:
            array = arrays.get(n)
            if type(array) is not np.ndarray or array.shape != shape or array.dtype != dtype:
                return False
            if not array.flags.c_contiguous:
                return False
        return True
