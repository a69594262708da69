"""Recorded loops over real sockets: one round trip whatever the rounds, each array once, and what cuts them off."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import farsum
from farsum.numpy import Vi, Vj
from farsum_kernels.errors import Cancelled, DeadlineExceeded, MessageTooLarge, SolverDidNotConverge
from farsum_kernels.job import Options
from tests.service.relay import Relay
from tests.service.server import Server
from tests.service.test_faults import until

rng = np.random.default_rng(0)


@pytest.fixture
def there(server: Server) -> Iterator[Server]:
    """The server as what work goes to."""
    farsum.connect(server.target)
    yield server
    farsum.disconnect()


def example() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "examples" / "loops.py"
    spec = importlib.util.spec_from_file_location("example_of_loops", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


X, Y, V = rng.random((3000, 3)), rng.random((2500, 3)), rng.random((3000, 1))
CALLS: dict[str, tuple[Any, ...]] = {
    "sinkhorn": (X, Y, 0.1, 12),
    "kmeans": (X, X[:9], 12),
    "mean_shift": (X, 0.2, 5),
    "power_iteration": (X, V, np.array([[2.0]]), 12),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_loop_is_one_round_trip_and_the_numbers_of_the_engine_here(
    name: str, there: Server, messages: list[bytes]
) -> None:
    program, args = getattr(example(), name), CALLS[name]
    first = program(*args)
    messages.clear()
    again = program(*args)
    assert len(messages) == 1 and len(messages[0]) < 4096
    farsum.disconnect()
    here = program(*args)
    for got, want in zip(*(r if isinstance(r, tuple) else (r,) for r in (again, here)), strict=True):
        assert_array_equal(got, want)
    for got, want in zip(*(r if isinstance(r, tuple) else (r,) for r in (first, again)), strict=True):
        assert_array_equal(got, want)


def test_a_hundred_steps_move_each_array_once(server: Server) -> None:
    """What a laptop sends in all, framing included, is the points, and a program of some hundred bytes."""
    port = int(server.address.rpartition(":")[2])
    x, y = rng.random((3000, 3)), rng.random((2500, 3))
    with Relay(port) as relay:
        farsum.connect(relay.target)
        try:
            before = relay.sent
            f, g = example().sinkhorn(x, y, 0.1, 100)
            sent, received = relay.sent - before, relay.received
        finally:
            farsum.disconnect()
    starts = f.nbytes + g.nbytes  # of zeros
    assert x.nbytes + y.nbytes < sent < 1.02 * (x.nbytes + y.nbytes + starts) + 4096
    assert received < 1.02 * (f.nbytes + g.nbytes) + 4096


def test_kept_results_of_a_loop_are_where_the_next_one_begins(there: Server, messages: list[bytes]) -> None:
    program = example().mean_shift
    x = farsum.put(X)
    moved = program(x, 0.2, 3, keep=True)
    messages.clear()
    assert_array_equal(
        farsum.get(program(moved, 0.2, 2, keep=True)), program.__wrapped__(program(X, 0.2, 3), 0.2, 2)
    )
    assert max(map(len, messages)) < 4096


def smoothing(x: Any, v: Any, times: int = 1_000_000) -> Any:
    K = (-Vi(x).sqdist(Vj(x))).exp()
    return farsum.repeat(lambda v: (K @ v) / K.sum(axis=1), v, times=times)


def test_cancel_and_deadline(there: Server) -> None:
    program = farsum.program(smoothing)
    with pytest.raises(DeadlineExceeded, match=r"within 0\.5 s"):
        program(X, V, deadline_s=0.5)
    future = program.submit(X, V)
    until(lambda: there.metric("farsum_inflight_requests") == 1, "the program never came")
    short = (-Vi(X[:50]).sqdist(Vj(Y[:50]))).exp().sum(axis=1)
    assert short.shape == (50, 1) and not future.done()
    assert future.cancel()
    with pytest.raises(Cancelled):
        future.result(30)
    until(lambda: there.metric("farsum_inflight_requests") == 0, "the program still runs")


def test_progress(there: Server) -> None:
    seen: list[float] = []
    farsum.program(smoothing).submit(X, V, times=60, options=Options(progress=seen.append)).result(60)
    assert len(seen) > 2 and seen == sorted(seen) and seen[-1] == 1.0


@pytest.mark.parametrize("where", ["here", "there"])
def test_the_results_are_watched_while_they_are_computed(where: str, there: Server) -> None:
    if where == "here":
        farsum.disconnect()
    seen: list[Any] = []
    program = farsum.program(lambda x, v: (smoothing(x, v, 100), v.sum()))
    found, _ = program(X, V, watch=seen.append, watch_s=0.01)
    assert len(seen) > 2
    for smooth, total in seen:
        assert smooth.shape == V.shape and np.isnan(total).all()
    spread = [np.ptp(smooth) for smooth, _ in seen if np.isfinite(smooth).all()]
    assert spread == sorted(spread, reverse=True) and np.ptp(found) <= spread[-1]


def test_what_is_too_large_to_be_watched_is_refused(there: Server) -> None:
    wide = farsum.program(lambda x: Vi(x).concat(Vi(x)).sum(axis=1))
    with pytest.raises(MessageTooLarge, match="can be watched"):
        wide(np.ones((100_000, 3)), watch=print)


def test_a_measure_that_is_not_a_number(there: Server) -> None:
    @farsum.program
    def rooted(a: Any) -> Any:
        states = farsum.repeat(lambda a, b: (a - 1, b + a, np.sqrt(a).max()), a, a, times=100, until=0.0)
        return (*states, states[0] * 2)

    with pytest.raises(SolverDidNotConverge, match="round 4 of 100") as raised:
        rooted(np.full((2, 1), 2.0))
    a, b, later = raised.value.iterate
    assert_array_equal(a, [[-2.0], [-2.0]])
    assert_array_equal(b, [[4.0], [4.0]])
    assert np.isnan(later).all() and len(raised.value.residuals) == 4
