"""How a job is cut up: a function of its sizes and of the machine."""

from __future__ import annotations

import pytest

from farsum_kernels.job import Extent
from farsum_kernels.plan import ALONE, Layout, Machine, plan_for, threads_for

LAYOUT = Layout(lanes=16, rows=3, columns=1, tile=16, slab=64, unroll=6)


def test_a_thread_is_started_for_enough_work_only() -> None:
    many = Machine(64, 32, 64)
    alone = ALONE * 16
    assert threads_for(0.99 * alone, 16, many) == 1
    assert [threads_for(n * alone, 16, many) for n in (1, 2, 10, 1000)] == [2, 4, 20, 64]
    assert threads_for(1000 * alone, 16, Machine(64, 32, 2)) == 2


@pytest.mark.parametrize("m", [1, 100, 10_000])
def test_few_rows_are_shared_by_cutting_the_columns(m: int) -> None:
    plan = plan_for(LAYOUT, Extent(m, 1_000_000, ()), 12.0, Machine(64, 32, 64))
    assert plan.threads == min(64, max(1, int(2 * m * 1e6 * 12 / (ALONE * 16))))
    assert plan.threads == 1 or plan.tasks >= 4 * plan.threads
