"""When an attempt is made again: the server was away, or is full and says when to come back.

Only for what may be done twice without harm: jobs, claims and fetches are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from farsum.session import Session
from farsum.stream import Lost
from farsum_kernels.errors import ArrayMissing, Draining, FarsumError, ServerUnreachable, StoreFull

# A job under which the server went away so often is not sent to it again.
MAX_LOSSES = 4
# Without a deadline, how long a full queue is tried again, and a full store.
BUSY_S = 300.0
FULL_S = 30.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0

T = TypeVar("T")


def persist(session: Session, attempt: Callable[[], T], left: Callable[[], float | None] = lambda: None) -> T:
    """What the attempt gives, made again while that is worth it.

    left   the seconds until the deadline, None for no end; raises when nobody waits any more

    Raises what the attempt raised last.
    """
    since: float | None = None
    pause, losses = _FIRST_PAUSE_S, 0
    while True:
        try:
            return attempt()
        except Lost as lost:
            error, limit_s = lost.cause, session.away_s
            losses += 1
            # A result that is not there any more was lost with the server that had it.
            if losses > MAX_LOSSES or not isinstance(error, ServerUnreachable | Draining | ArrayMissing):
                raise error from lost
        except (ServerUnreachable, Draining) as away:
            error, limit_s = away, session.away_s
            if not session.greeted:
                raise  # Nobody was ever there.
        except FarsumError as busy:
            error, limit_s = busy, FULL_S if isinstance(busy, StoreFull) else BUSY_S
            if not busy.retry_after_s:
                raise
            pause = busy.retry_after_s
        now, seconds = time.monotonic(), left()
        since = now if since is None else since
        if session.closed or now + pause > since + limit_s or (seconds is not None and pause > seconds):
            raise error
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
