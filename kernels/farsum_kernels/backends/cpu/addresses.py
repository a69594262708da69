"""Where arrays lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_uint64
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# The first field of an array object is the pointer to its data. Reading it there takes 0.15 µs, where the
# array interface, which spells out shape and dtype too, takes 1.0 µs: a third of a small call, all arrays
# together. Whether it is there is looked up once; an interpreter that lays objects out otherwise is slower.
_AFTER_HEADER = object.__basicsize__


def _spelled_out(array: Array) -> int:
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def _field(array: Array) -> int:
    return c_uint64.from_address(id(array) + _AFTER_HEADER).value


def _is_there() -> bool:
    probes: list[Array] = [np.empty(3), np.empty((2, 5), np.float32)[1:], np.empty(0, np.int64)]
    return _AFTER_HEADER == 16 and all(_field(p) == _spelled_out(p) for p in probes)


address = _field if _is_there() else _spelled_out


def table_of(arrays: Sequence[Array]) -> Any:
    """The addresses of arrays, as native code reads them. The arrays must be kept alive elsewhere."""
    return (c_uint64 * len(arrays))(*map(address, arrays))
