"""The threads of native work, and the memory that each brings. The GIL is free while machine code runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from farsum_kernels.backends.cpu.addresses import address

_local = threading.local()


def scratch(size: int) -> int:
    """This thread's scratch memory, aligned to 64 bytes."""
    held, start = getattr(_local, "scratch", (None, 0))
    if held is None or held.nbytes < size + 64:
        held = np.empty(size + 64, np.uint8)
        start = -(-address(held) // 64) * 64
        _local.scratch = held, start
    return start


class Pool:
    """Threads that wait for native work. A forked child starts with none and makes its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._size = 0
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._executor, self._size = None, 0

    def run(self, work: Callable[[], None], threads: int) -> None:
        """Run `work` on this thread and on threads - 1 others, and wait for all."""
        with self._lock:
            if self._executor is None or self._size < threads - 1:
                self._size = threads - 1
                self._executor = ThreadPoolExecutor(self._size, thread_name_prefix="farsum-cpu")
            executor = self._executor
        others = [executor.submit(work) for _ in range(threads - 1)]
        work()
        for other in others:
            other.result()


POOL = Pool()
