"""Memory of the server: regions never overlap, none is lost, and only what nobody uses is evicted."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farsum_kernels.errors import StoreFull
from farsum_server.arena import ALIGN, Allocator, Arena
from farsum_server.store import Store


@given(st.lists(st.one_of(st.integers(0, 5000), st.integers(-20, -1)), max_size=60))
def test_regions_never_overlap_and_none_is_lost(script: list[int]) -> None:
    """Positive: take so many bytes. Negative: give one of those held back."""
    allocator = Allocator(1 << 14)
    held: dict[int, int] = {}
    for step in script:
        if step >= 0:
            start = allocator.take(step)
            if start is not None:
                assert start % ALIGN == 0 and start + step <= allocator.capacity
                assert all(start + step <= s or s + n <= start for s, n in held.items())
                held[start] = max(step, 1)
        elif held:
            start = sorted(held)[step % len(held)]
            allocator.give(start)
            del held[start]
    for start in held:
        allocator.give(start)
    assert allocator.used == 0
    assert allocator.take(allocator.capacity) == 0, "the free regions did not join"


def test_low_addresses_that_were_used_before_come_first() -> None:
    allocator = Allocator(1 << 20)
    first, second = allocator.take(1000), allocator.take(1000)
    assert first == 0 and second
    allocator.give(first)
    assert allocator.take(900) == 0


def digest(n: int) -> bytes:
    return bytes([n]) * 32


def test_least_recently_used_goes_first_and_pinned_stays() -> None:
    store = Store(Allocator(3 * ALIGN))
    for n in range(3):
        block = store.reserve("a", ALIGN)
        store.add("a", digest(n), ALIGN, block, block)
    pinned = store.find("a", digest(0))
    assert pinned
    pinned.pins += 1
    store.find("a", digest(1))
    store.reserve("a", ALIGN)
    assert [store.find("a", digest(n)) is not None for n in range(3)] == [True, True, False]
    store.reserve("a", ALIGN)
    assert store.find("a", digest(1)) is None
    with pytest.raises(StoreFull, match="no room"):
        store.reserve("a", ALIGN)
    pinned.pins -= 1
    store.reserve("a", ALIGN)
    assert len(store) == 0 and store.evictions == 3


def test_second_upload_of_an_array_gives_its_region_back() -> None:
    store = Store(Allocator(10 * ALIGN))
    first, second = store.reserve("a", ALIGN), store.reserve("a", ALIGN)
    held = store.add("a", digest(1), ALIGN, first, first)
    assert store.add("a", digest(1), ALIGN, second, second) is held
    assert store.used == ALIGN


def test_tenants_do_not_see_each_other() -> None:
    store = Store(Allocator(10 * ALIGN))
    block = store.reserve("a", 1)
    store.add("a", digest(1), 1, block, block)
    assert store.find("b", digest(1)) is None


def test_larger_than_the_store() -> None:
    with pytest.raises(StoreFull, match="store-bytes"):
        Store(Allocator(1000)).reserve("a", 1001)


def test_arena_is_shared_through_its_descriptor() -> None:
    arena = Arena.create(1 << 20)
    arena.warm(1 << 20)
    other = Arena(os.dup(arena.fd), arena.size)
    arena.view[100:103] = b"abc"
    assert bytes(other.view[100:103]) == b"abc"
    other.close()
    arena.close()


def test_memory_is_touched_ahead_of_its_use() -> None:
    arena = Arena.create(1 << 20)
    for end, touched in (
        (1 << 16, 1 << 16),
        (1 << 18, 1 << 18),
        (1 << 17, 1 << 18),  # touched already
        (1 << 30, 1 << 20),  # more than there is
    ):
        arena.warm(end)
        while arena.warming:
            time.sleep(0.001)
        assert os.fstat(arena.fd).st_blocks * 512 == touched
    arena.close()


def test_the_highest_region_is_remembered() -> None:
    allocator = Allocator(1 << 20)
    allocator.give(allocator.take(1000) or 0)
    allocator.take(10)
    assert allocator.high == 1024
