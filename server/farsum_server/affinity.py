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
        self._anywhere = os.sched_getaffinity(0) if sys.platform == "linux" else set[int]()
        self._calls = 0
        self._cpu: set[int] = set()
        # The threads that are kept on it, and where else they may run.
        self._elsewhere: dict[int, set[int]] = {}

    def small_call(self, worker: int) -> None:
        """A call went through the main thread of this worker process, and no other of it."""
        self._calls += 1
        if self._calls < MANY or len(self._anywhere) < 2:
            return
        # A thread that has ended, a sandbox, no /proc: then Linux places it.
        with suppress(OSError, ValueError, IndexError):
            if not self._elsewhere:
                self._cpu = {_cpu_at_hand()}
            for thread in (threading.get_native_id(), *self.carriers, worker):
                if thread not in self._elsewhere:
                    self._elsewhere[thread] = os.sched_getaffinity(thread)
                    os.sched_setaffinity(thread, self._cpu)

    def tick(self) -> None:
        """Some time has passed."""
        if self._calls < MANY:
            self.scatter()
        self._calls = 0

    def scatter(self) -> None:
        """Let all of them run anywhere: what is started now, and what they start, is not to share that CPU."""
        if self._elsewhere:
            self._calls = 0
            for thread, cpus in self._elsewhere.items():
                with suppress(OSError):
                    os.sched_setaffinity(thread, cpus)
            self._elsewhere.clear()

    def let_loose(self) -> None:
        """Let the thread that calls run wherever this process might from its start."""
        if self._anywhere:
            with suppress(OSError):
                os.sched_setaffinity(0, self._anywhere)


def _cpu_at_hand() -> int:
    """The CPU that this thread runs on: the 39th field of its state, behind a name that may hold anything."""
    state = Path("/proc/thread-self/stat").read_text()
    return int(state.rpartition(")")[2].split()[36])
