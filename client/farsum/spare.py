"""Memory for large results: that of a result that was dropped serves the next one.

The system gives fresh memory page by page and clears each first, which takes a fifth to a third of the time of a large download
(docs/benchmarks.md). The allocator keeps what is freed up to 32 MiB, so this is for what is larger. What waits here is
marked as free: where memory gets scarce, the system takes it.
"""

from __future__ import annotations

import mmap
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_BYTES = 32 << 20
# What waits at most, in all and for how many results.
MOST_BYTES, MOST = 1 << 30, 4

# Filled from wherever the collector runs: what is done there takes no lock.
_spare: deque[mmap.mmap] = deque()


class _Lease:
    """Lends memory to the array that is made of it, and takes it back when nothing looks into that any more."""

    def __init__(self, memory: mmap.mmap, nbytes: int) -> None:
        self._memory = memory
        start = np.frombuffer(memory, np.uint8).__array_interface__["data"]
        self.__array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": start, "version": 3}

    def __del__(self) -> None:
        with suppress(Exception):  # at the end of the interpreter anything may be gone
            _give(self._memory)


def room(nbytes: int) -> NDArray[Any]:
    """Bytes of any content, writable."""
    if nbytes < LEAST_BYTES or not hasattr(mmap, "MADV_FREE"):
        return np.empty(nbytes, np.uint8)
    try:
        memory = _found(nbytes) or _fresh(nbytes)
    except OSError:
        return np.empty(nbytes, np.uint8)  # which may find some, or says that there is none
    return np.asarray(_Lease(memory, nbytes))


def _found(nbytes: int) -> mmap.mmap | None:
    """What waits and fits without much waste; it is the caller's now."""
    try:
        waiting = sorted(_spare, key=len)
    except RuntimeError:  # the collector ran meanwhile and gave some
        return None
    for memory in waiting:
        if nbytes <= len(memory) <= nbytes + nbytes // 4:
            with suppress(ValueError):  # another thread was faster
                _spare.remove(memory)
                return memory
    return None


def _fresh(nbytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _give(memory: mmap.mmap) -> None:
    memory.madvise(mmap.MADV_FREE)
    _spare.append(memory)
    while len(_spare) > MOST or sum(map(len, _spare)) > MOST_BYTES:
        _spare.popleft()
