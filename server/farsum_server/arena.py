"""One shared memory for all arrays of a server, mapped by the daemon and by every worker.

Hands out offsets, not objects; knows no digest, no tenant and no job. Fresh pages of shared memory
cost about forty times a copy into warm ones (measured: 0.4 against 16 GB/s), so regions are never
given back to the system but used again, lowest addresses first, and fresh ones are touched ahead of their use.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import tempfile
import threading
from bisect import bisect_left, insort

from farsum_kernels.errors import StoreFull

ALIGN = 64  # a cache line, a vector register, and what Arrow asks of its buffers
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14; the mmap module does not name it
_WARM_STEP = 32 << 20


class Allocator:
    """Free regions of [0, capacity). Best fit, lowest address first; neighbours join when freed.

    >>> a = Allocator(1024)
    >>> a.take(100), a.take(10)
    (0, 128)
    >>> a.give(0), a.take(64)
    (128, 0)
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity // ALIGN * ALIGN
        self.used = 0
        self.high = 0  # the end of the highest region that was ever taken
        self._taken: dict[int, int] = {}
        self._free: dict[int, int] = {}  # start -> size
        self._ends: dict[int, int] = {}  # end -> start
        self._by_size: list[tuple[int, int]] = []
        if self.capacity:
            self._put(0, self.capacity)

    @staticmethod
    def rounded(size: int) -> int:
        """What a region of so many bytes takes."""
        return max(ALIGN, -(-size // ALIGN) * ALIGN)

    def take(self, size: int) -> int | None:
        """The offset of a region of at least `size` bytes, or None."""
        size = self.rounded(size)
        place = bisect_left(self._by_size, (size, 0))
        if place == len(self._by_size):
            return None
        found, start = self._by_size[place]
        self._drop(start, found)
        if found > size:
            self._put(start + size, found - size)
        self._taken[start] = size
        self.used += size
        self.high = max(self.high, start + size)
        return start

    def give(self, start: int) -> int:
        """Take a region back; gives its size."""
        size = given = self._taken.pop(start)
        self.used -= size
        end = start + size
        if end in self._free:
            after = self._free[end]
            self._drop(end, after)
            end += after
        if start in self._ends:
            before = self._ends[start]
            self._drop(before, start - before)
            start = before
        self._put(start, end - start)
        return given

    def _put(self, start: int, size: int) -> None:
        self._free[start] = size
        self._ends[start + size] = start
        insort(self._by_size, (size, start))

    def _drop(self, start: int, size: int) -> None:
        del self._free[start], self._ends[start + size]
        del self._by_size[bisect_left(self._by_size, (size, start))]


def _anonymous_file(size: int) -> int:
    try:
        fd = os.memfd_create("farsum-arena", os.MFD_CLOEXEC)
    except (AttributeError, OSError):
        # No memfd (not Linux, or forbidden): a file without a name serves as well.
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)  # sparse: memory is taken when it is written
    return fd


class Arena:
    """The memory itself. The daemon creates it; a worker attaches to the descriptor it inherited."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self._map = mmap.mmap(fd, size)
        self.view = memoryview(self._map)
        self._stop = threading.Event()
        self._warmer: threading.Thread | None = None
        self._warm = 0

    @classmethod
    def create(cls, size: int) -> Arena:
        if size < mmap.PAGESIZE:
            raise StoreFull(f"a store of {size} bytes holds nothing; give it at least {mmap.PAGESIZE}")
        return cls(_anonymous_file(size), size)

    def warm(self, end: int) -> None:
        """Touch the first `end` bytes in the background, so that uploads run at the speed of copies.

        Those that were touched before are not again, so it may be called often.
        """
        if self.cold(end):
            end = min(end, self.size) // mmap.PAGESIZE * mmap.PAGESIZE
            start, self._warm = self._warm, end
            self._warmer = threading.Thread(
                target=self._populate, args=(start, end), name="arena-warmer", daemon=True
            )
            self._warmer.start()

    def cold(self, end: int) -> bool:
        """Is there anything in the first `end` bytes that `warm` would touch now?"""
        return min(end, self.size) // mmap.PAGESIZE * mmap.PAGESIZE > self._warm and not self.warming

    @property
    def warming(self) -> bool:
        return self._warmer is not None and self._warmer.is_alive()

    def _populate(self, first: int, end: int) -> None:
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        anchor = ctypes.c_char.from_buffer(self._map)
        address = ctypes.addressof(anchor)
        for start in range(first, end, _WARM_STEP):
            if self._stop.is_set():
                break
            if madvise(address + start, min(_WARM_STEP, end - start), _POPULATE_WRITE):
                # An old kernel: first writes pay instead. Touching from here would race with uploads.
                self._warm = self.size
                break

    def close(self) -> None:
        self._stop.set()
        if self._warmer:
            self._warmer.join()
        self.view.release()
        with contextlib.suppress(BufferError):  # An array still looks into the map, which goes with it.
            self._map.close()
        os.close(self.fd)
