"""Where the threads of small calls run: together or anywhere, and never a reason to fail."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import pytest

from farsum_server import affinity
from farsum_server.affinity import MANY, Affinity

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs of Linux"
)


@pytest.fixture
def other() -> Iterator[int]:
    """A thread that waits: in place of a worker."""
    done, started = threading.Event(), threading.Event()
    ids = []

    def wait() -> None:
        ids.append(threading.get_native_id())
        started.set()
        done.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    started.wait()
    yield ids[0]
    done.set()
    thread.join()


def test_together_after_many_calls_and_anywhere_after_none(other: int) -> None:
    everywhere = os.sched_getaffinity(0)
    found = Affinity()
    try:
        for _ in range(MANY - 1):
            found.small_call(other)
        assert os.sched_getaffinity(0) == os.sched_getaffinity(other) == everywhere
        found.small_call(other)
        assert os.sched_getaffinity(0) == os.sched_getaffinity(other)
        assert len(os.sched_getaffinity(0)) == 1
        found.tick()
        assert len(os.sched_getaffinity(0)) == 1, "they came"
        found.tick()
        assert os.sched_getaffinity(0) == os.sched_getaffinity(other) == everywhere
    finally:
        found.scatter()


def test_threads_that_are_started_meanwhile_can_be_let_loose(other: int) -> None:
    everywhere, found = os.sched_getaffinity(0), Affinity()
    seen = []

    def look() -> None:
        seen.append(os.sched_getaffinity(0))
        found.let_loose()
        seen.append(os.sched_getaffinity(0))

    try:
        for _ in range(MANY):
            found.small_call(other)
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    finally:
        found.scatter()
    assert len(seen[0]) == 1 and seen[1] == everywhere


def test_what_cannot_be_done_is_left(other: int, monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere, found = os.sched_getaffinity(0), Affinity()

    def nowhere() -> int:
        raise FileNotFoundError("/proc/thread-self/stat")

    with monkeypatch.context() as patched:
        patched.setattr(affinity, "_cpu_at_hand", nowhere)
        for _ in range(2 * MANY):
            found.small_call(other)
    assert os.sched_getaffinity(0) == everywhere
    found.carriers = [1 << 22]  # a thread that is not there
    try:
        for _ in range(MANY):
            found.small_call(other)
    finally:
        found.scatter()
    assert os.sched_getaffinity(0) == everywhere
