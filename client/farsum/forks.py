"""What connections do before a process forks, and in the child: hang up while nothing holds a lock of gRPC.

A child has its parent's locks but not the threads that would open them. gRPC takes its connections down on
threads of its own, so hanging up is not enough: it must be over. Never touches what is under way.
"""

from __future__ import annotations

import os
import threading
import time
from functools import cache
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

_TASKS = Path("/proc/self/task")
# Threads that did not run for so long have nothing left to do; the longest that is waited for that.
_CALM_S, _PATIENCE_S = 0.004, 0.5


class Forkable(Protocol):
    def rest(self) -> bool:
        """Hang up if nothing is under way; whether there was something to hang up."""
        ...

    def renew_lock(self) -> None: ...


_known: WeakSet[Forkable] = WeakSet()


def mind_forks(connection: Forkable) -> None:
    """Have the connection rest before each fork. Call it once gRPC has made its first channel."""
    _known.add(connection)
    _register()


@cache
def _register() -> None:
    # The hooks that were registered last run first, and those of gRPC, which it registers with its first channel
    # where GRPC_ENABLE_FORK_SUPPORT asks for them, stop the threads with which a connection is closed.
    os.register_at_fork(before=_before, after_in_child=_after_in_child)


def _before() -> None:
    if any([connection.rest() for connection in list(_known)]):
        _wait_for_calm()


def _after_in_child() -> None:
    # A lock that another thread of the parent held at that moment would stay locked for ever.
    for connection in list(_known):
        connection.renew_lock()


def _wait_for_calm() -> None:
    """Return when all other threads sleep. One that computes without end is not waited for for long."""
    end, before = time.monotonic() + _PATIENCE_S, None
    while time.monotonic() < end:
        now = _others()
        if now == before and all(state == "S" for state, _ in now.values()):
            return
        before = now
        time.sleep(_CALM_S)


def _others() -> dict[str, tuple[str, int]]:
    """The state of each other thread, and how often it gave up the processor; nothing where nobody says so."""
    found, own = {}, str(threading.get_native_id())
    try:
        for task in _TASKS.iterdir():
            if task.name != own:
                fields = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
                switches = int(fields["voluntary_ctxt_switches"]) + int(fields["nonvoluntary_ctxt_switches"])
                found[task.name] = fields["State"].split()[0], switches
    except (OSError, KeyError, ValueError):  # one ended meanwhile, or this is no Linux
        return {"?": ("?", time.monotonic_ns())} if _TASKS.exists() else {}
    return found
