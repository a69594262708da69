"""Copies of arrays that stay on a device, by the digest of their contents: those used last, up to a number of bytes.

A copy that a job reads is never given up; every other one goes as soon as its memory is needed. Only a cache: whoever
asks brings the array.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from farsum_kernels.backends.cuda.device import Driver
from farsum_kernels.errors import DeviceFull

Array = NDArray[Any]
Key = tuple[bytes, str, int]


@dataclass(slots=True)
class _Copy:
    buffer: Any
    size: int
    users: int = 0


class Lease:
    """An array on the device, for as long as this object lives."""

    __slots__ = ("__weakref__", "buffer", "found")

    def __init__(self, buffer: Any, found: bool) -> None:
        self.buffer, self.found = buffer, found


class Resident:
    """The copies on one device.

    budget   bytes that they may take together while others could use the memory
    """

    def __init__(self, driver: Driver, budget: int) -> None:
        self._driver, self._budget = driver, budget
        self._copies: OrderedDict[Key, _Copy] = OrderedDict()
        self._bytes = 0
        self._lock = threading.RLock()  # a finalizer may run while this thread holds it

    def lease(self, array: Array, digest: bytes | None) -> Lease:
        """The array on the device: the copy of its digest, or a new one. Raises DeviceFull."""
        if digest is None or array.nbytes > self._budget:
            return Lease(self._driver.upload(array), False)
        key = digest, array.dtype.name, array.size
        with self._lock:
            copy = self._copies.get(key)
            found = copy is not None
            if copy is None:
                self._evict(self._budget - array.nbytes)
                copy = _Copy(self._upload(array), array.nbytes)
                self._copies[key] = copy
                self._bytes += copy.size
            self._copies.move_to_end(key)
            copy.users += 1
        lease = Lease(copy.buffer, found)
        weakref.finalize(lease, self._return, copy)
        return lease

    def evict(self) -> bool:
        """Give up every copy that no job reads. Was there one?"""
        with self._lock:
            return self._evict(0)

    def idle_bytes(self) -> int:
        """What `evict` would free."""
        with self._lock:
            return sum(copy.size for copy in self._copies.values() if not copy.users)

    def _upload(self, array: Array) -> Any:
        try:
            return self._driver.upload(array)
        except DeviceFull:
            if not self._evict(0):
                raise
        return self._driver.upload(array)

    def _evict(self, most: int) -> bool:
        """Down to so many bytes, those used longest ago first."""
        idle = [key for key, copy in self._copies.items() if not copy.users]
        gone = False
        for key in idle:
            if self._bytes <= most:
                break
            self._bytes -= self._copies.pop(key).size
            gone = True
        return gone

    def _return(self, copy: _Copy) -> None:
        with self._lock:
            copy.users -= 1
