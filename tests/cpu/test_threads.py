"""The threads of native work: where they run, and that they may run anywhere afterwards."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from farsum_kernels.backends.cpu import threads
from farsum_kernels.backends.cpu.threads import Pool

linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads are placed on Linux only")


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool()
    yield made
    assert made._executor
    made._executor.shutdown()


def test_work_runs_once_on_each_thread(pool: Pool) -> None:
    met, both = [], threading.Barrier(3, timeout=30)

    def work() -> None:
        met.append(threading.get_ident())
        both.wait()

    pool.run(work, 3)
    assert len(set(met)) == 3
    pool.run(work, 3)
    assert len(set(met)) == 3 and len(met) == 6


@linux
def test_a_thread_wakes_on_another_cpu_than_its_caller(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.sched_getaffinity(0)
    pool.run(lambda: None, 2)  # the thread is there
    caller, confined = threading.get_ident(), []
    confine = threads._confine

    def noted(which: list[int], cpus: set[int]) -> None:
        confine(which, cpus)
        if threading.get_ident() == caller:
            confined.append({thread: os.sched_getaffinity(thread) for thread in which})

    monkeypatch.setattr(threads, "_confine", noted)
    after, both = {}, threading.Barrier(2, timeout=30)

    def work() -> None:
        both.wait()
        after[threading.get_native_id()] = os.sched_getaffinity(0)

    pool.run(work, 2)
    assert list(after.values()) == [allowed] * 2
    if len(allowed) == 1:  # there is no other to wake on
        assert not confined
        return
    (asleep,) = confined
    assert set(after) == {threading.get_native_id(), *asleep}
    assert all(cpus < allowed and len(allowed - cpus) == 1 for cpus in asleep.values())


@linux
def test_a_process_that_is_bound_to_one_cpu_computes(pool: Pool) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        done = []
        pool.run(lambda: done.append(os.sched_getaffinity(0)), 2)
        assert done == [{min(allowed)}] * 2
    finally:
        os.sched_setaffinity(0, allowed)
