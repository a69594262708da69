"""Which CPU the threads run on that carry small calls: one, while such calls follow one another.

A small call goes through three threads of a server, gRPC's, the loop's and a worker's, one after the other. Linux wakes
each on a CPU that is idle, which has to be roused first and has none of their memory at hand: a sixth of the call
(docs/decisions/0013). So they are kept together while calls come, and anywhere again before anything else happens.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# So many small calls between two ticks of the daemon follow one another.
MANY = 50


class Affinity:
    """Keeps threads together. Used from the loop's thread alone.

    carriers   the native ids of the other threads that carry messages
    """

    def __init__(self) -> None:
        self.carriers: Sequence[int] = ()
        self._calls = 0
        self._together: set[int] = set()  # the threads that are kept on one CPU
        self._allowed: set[int] = set()

    def small_call(self, worker: int) -> None:
        """A call went through this worker process."""
        self._calls += 1
        if self._calls >= MANY and worker not in self._together and sys.platform == "linux":
            self.scatter()
            self._gather(worker)

    def tick(self) -> None:
        """Some time has passed."""
        if self._calls < MANY:
            self.scatter()
        self._calls = 0

    def _gather(self, worker: int) -> None:
        self._allowed = os.sched_getaffinity(0)
        self._together = {threading.get_native_id(), worker, *self.carriers}
        _confine(self._together, {_cpu_at_hand()})

    def scatter(self) -> None:
        """Let them run anywhere: what is started now, and what they start, is not to share that CPU."""
        if self._together:
            threads, self._together = self._together, set()
            self._calls = 0
            _confine(threads, self._allowed)


def _confine(threads: set[int], cpus: set[int]) -> None:
    """Let these threads run on these CPUs only."""
    for thread in threads:
        with suppress(OSError):  # one that has ended, or a sandbox: then Linux places it
            os.sched_setaffinity(thread, cpus)


def _cpu_at_hand() -> int:
    """The CPU that this thread runs on: the 39th field of its state, behind a name that may hold anything."""
    state = Path("/proc/thread-self/stat").read_text()
    return int(state.rpartition(")")[2].split()[36])
