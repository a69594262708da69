"""Memory for large results: used again once nothing looks into it, and never before."""

from __future__ import annotations

import gc
import mmap
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from farsum import spare

LARGE = spare.LEAST_BYTES
frees = pytest.mark.skipif(not hasattr(mmap, "MADV_FREE"), reason="the system cannot take back what waits")


@pytest.fixture(autouse=True)
def nothing_waits() -> Iterator[None]:
    spare._spare.clear()
    yield
    spare._spare.clear()


def place(array: object) -> int:
    return int(np.asarray(array).__array_interface__["data"][0])


def test_small_results_are_the_allocator_s() -> None:
    for size in (0, 1, LARGE - 1):
        room = spare.room(size)
        assert room.nbytes == size and room.dtype == np.uint8 and room.flags.owndata


def test_a_large_result_can_be_written() -> None:
    room = spare.room(LARGE + 5)
    assert room.nbytes == LARGE + 5 and room.flags.writeable
    room[...] = 7
    assert room[0] == room[-1] == 7


@frees
def test_memory_that_was_dropped_is_used_again() -> None:
    room = spare.room(LARGE)
    first = place(room)
    del room
    assert place(spare.room(LARGE)) == first
    assert len(spare._spare) == 1


@frees
def test_what_is_looked_into_is_not_used_again() -> None:
    room = spare.room(LARGE)
    view = np.ndarray((5, 3), np.float32, room, 64)[1:]
    first = place(room)
    view[...] = 3.0
    del room
    gc.collect()
    other = spare.room(LARGE)
    assert place(other) != first and not spare._spare
    other[...] = 1
    assert (view == 3.0).all()
    del view
    assert place(spare.room(LARGE)) == first


@frees
def test_what_does_not_fit_is_left() -> None:
    for size in (2 * LARGE, LARGE):
        room = spare.room(size)
        del room
    assert sorted(map(len, spare._spare)) == [LARGE, 2 * LARGE]
    room = spare.room(LARGE + LARGE // 2)
    assert sorted(map(len, spare._spare)) == [LARGE, 2 * LARGE], (
        "one is too small, of the other a quarter would lie idle"
    )
    del room
    room = spare.room(2 * LARGE - LARGE // 4)
    assert room.nbytes == 2 * LARGE - LARGE // 4
    assert sorted(map(len, spare._spare)) == [LARGE, LARGE + LARGE // 2]


@frees
def test_where_there_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(spare, "_fresh", nothing)
    assert spare.room(LARGE).flags.owndata, "NumPy may find some"
    with pytest.raises(MemoryError):
        spare.room(1 << 60)


@frees
def test_no_more_waits_than_is_allowed() -> None:
    rooms = [spare.room(LARGE) for _ in range(spare.MOST + 2)]
    rooms.clear()
    assert len(spare._spare) == spare.MOST
    large = [spare.room(spare.MOST_BYTES * 2 // 3) for _ in range(2)]
    large.clear()
    assert sum(map(len, spare._spare)) <= spare.MOST_BYTES


@frees
def test_threads_never_share_memory() -> None:
    failures = []

    def work(mark: int) -> None:
        for _ in range(50):
            room = spare.room(LARGE)
            room[:: 1 << 20] = mark
            if not (room[:: 1 << 20] == mark).all():
                failures.append(mark)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures
