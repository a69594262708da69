"""How a job is cut up: a function of its sizes and of the machine."""

from __future__ import annotations

import pytest

from farsum_kernels.job import Extent
from farsum_kernels.plan import START, Layout, Machine, plan_for, threads_for

LAYOUT = Layout(lanes=16, rows=3, columns=1, tile=16, slab=64, unroll=6)


def test_a_thread_is_started_for_enough_work_only() -> None:
    many, two = Machine(64, 32, 64), Machine(64, 32, 2)
    work = START * 16
    assert [threads_for(n * work, 16, many) for n in (0.1, 3.9, 4.1, 100, 1e6)] == [1, 1, 2, 10, 64]
    assert [threads_for(n * work, 16, two) for n in (0.1, 3.9, 4.1, 100, 1e6)] == [1, 1, 2, 2, 2]
    for n in (5, 50, 500):  # no other number is faster

        def seconds(threads: int, n: int = n) -> float:
            return n / threads + threads

        chosen = threads_for(n * work, 16, many)
        assert seconds(chosen) <= 1.1 * min(map(seconds, range(1, 65)))


@pytest.mark.parametrize("m", [1, 100, 10_000])
def test_few_rows_are_shared_by_cutting_the_columns(m: int) -> None:
    plan = plan_for(LAYOUT, Extent(m, 1_000_000, ()), 12.0, Machine(64, 32, 64))
    assert plan.threads == threads_for(m * 1e6 * 12, 16, Machine(64, 32, 64))
    assert plan.tasks >= 4 * plan.threads or plan.threads == 1
