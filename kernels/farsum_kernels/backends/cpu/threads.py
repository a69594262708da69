"""The threads of native work, and the memory that each brings. The GIL is free while machine code runs."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from farsum_kernels.backends.cpu.addresses import address

_local = threading.local()


def _nowhere() -> int:
    return -1


# The CPU that the calling thread is on.
_cpu_at_hand: Callable[[], int] = (
    getattr(ctypes.CDLL(None), "sched_getcpu", _nowhere) if sys.platform == "linux" else _nowhere
)


def scratch(size: int) -> int:
    """This thread's scratch memory, aligned to 64 bytes."""
    held, start = getattr(_local, "scratch", (None, 0))
    if held is None or held.nbytes < size + 64:
        held = np.empty(size + 64, np.uint8)
        start = -(-address(held) // 64) * 64
        _local.scratch = held, start
    return start


class Pool:
    """Threads that wait for native work. A forked child starts with none and makes its own.

    Linux may wake a thread on the CPU of the thread that wakes it while another CPU is idle, and looks again only
    after milliseconds: where two CPUs share a cache, most jobs of 10 ms ran on one of them. So a thread is kept off
    the CPU of its caller until it is awake, and may run anywhere from then on.
    """

    def __init__(self) -> None:
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._size = 0
        self._members: list[int] = []  # the threads by the number that the operating system gives them

    def run(self, work: Callable[[], None], threads: int) -> None:
        """Run `work` on this thread and on threads - 1 others, and wait for all."""
        with self._lock:
            if self._executor is None or self._size < threads - 1:
                members: list[int] = []
                self._executor = ThreadPoolExecutor(
                    threads - 1, "farsum-cpu", lambda: members.append(threading.get_native_id())
                )
                self._size, self._members = threads - 1, members
            executor, asleep = self._executor, self._members
        allowed = _cpus_allowed()
        if elsewhere := allowed - {_cpu_at_hand()}:
            _confine(asleep, elsewhere)

        def awake() -> None:
            _confine([0], allowed)
            work()

        others = [executor.submit(awake) for _ in range(threads - 1)]
        work()
        for other in others:
            other.result()


def _cpus_allowed() -> set[int]:
    """The CPUs that the calling thread may run on; none where the operating system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _confine(threads: Iterable[int], cpus: set[int]) -> None:
    """Let threads of this process run on these CPUs only; 0 is the calling thread."""
    if not cpus:
        return
    for thread in threads:
        with suppress(OSError):  # a thread that has ended, a sandbox: then the operating system places it
            os.sched_setaffinity(thread, cpus)


POOL = Pool()
