"""Many calls under way over one connection: futures and asyncio, in process and on a server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, wait
from typing import Any

import numpy as np
import pytest

import farsum
from farsum.handle import Handle
from farsum.numpy import Genred, Vi, Vj
from farsum_kernels.errors import Cancelled, DeadlineExceeded, ShapeError
from tests.service.relay import Relay
from tests.service.server import Server, running, slow_job
from tests.service.test_faults import until
from tests.service.test_residency import port_of

RNG = np.random.default_rng(0)
X, Y = (RNG.random(shape).astype("float32") for shape in ((300, 3), (400, 3)))
GAUSSIAN = (-Vi(0, 3).sqdist(Vj(1, 3))).exp().sum(axis=1)


@pytest.fixture(params=["embedded", "server"])
def where(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "server":
        with farsum.connect(request.getfixturevalue("server").target):
            yield request.param
        farsum.disconnect()
    else:
        yield request.param


def test_futures_give_what_calls_give(where: str) -> None:
    want = GAUSSIAN(X, Y)
    np.testing.assert_array_equal(GAUSSIAN.submit(X, Y).result(30), want)
    text = Genred("Exp(-SqDist(x,y))", ["x = Vi(3)", "y = Vj(3)"], axis=1)
    np.testing.assert_array_equal(text.submit(X, farsum.put(Y)).result(30), want)
    nearest = Vi(X).sqdist(Vj(Y)).min_argmin(axis=1, call=False)
    for found, expected in zip(nearest.submit().result(30), nearest(), strict=True):
        np.testing.assert_array_equal(found, expected)
    masked = (-Vi(X).sqdist(Vj(Y))).exp().sum(axis=1, mask="causal", call=False)
    np.testing.assert_array_equal(masked.submit().result(30), masked())
    for reduced in (masked, (-Vi(X).sqdist(Vj(Y))).exp().sum(axis=1, use_double_acc=True, call=False)):
        kept = reduced.submit(keep=True).result(30)
        assert isinstance(kept, Handle)
        np.testing.assert_array_equal(farsum.get(kept), reduced())
    z = Vi((X + 1j).astype("complex64")).conj().sum(axis=0, call=False)
    assert z.submit().result(30).dtype == np.complex64


def test_mistakes_are_raised_at_once(where: str) -> None:
    with pytest.raises(ShapeError, match="argument 1"):
        GAUSSIAN.submit(X, Y[:, :2])
    with pytest.raises(ShapeError, match="expected 2 inputs"):
        GAUSSIAN.submit(X)


def test_asyncio(where: str) -> None:
    async def main() -> list[Any]:
        return await asyncio.gather(*(GAUSSIAN.asubmit(X[:n], Y) for n in range(1, 200)))

    for n, found in enumerate(asyncio.run(main()), 1):
        np.testing.assert_array_equal(found, GAUSSIAN(X[:n], Y))


def test_errors_come_with_the_result(where: str) -> None:
    _, arrays = slow_job()
    late = Genred("Exp(-SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)"], axis=1)
    future = late.submit(*arrays.values(), deadline_s=0.5)
    with pytest.raises(DeadlineExceeded):
        future.result(60)
    assert isinstance(future.exception(), DeadlineExceeded)


def test_cancelled_on_the_server(server: Server) -> None:
    _, arrays = slow_job()
    slow = Genred("Exp(-SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)"], axis=1)
    with farsum.connect(server.target):
        x, y, b = map(farsum.put, arrays.values())
        future = slow.submit(x, y, b)
        until(lambda: server.metric("farsum_inflight_requests") == 1, "the job never came")
        assert future.cancel()
        with pytest.raises((Cancelled, CancelledError)):
            future.result(30)
        until(lambda: server.metric("farsum_inflight_requests") == 0, "the job still runs")

        async def impatient() -> None:
            async with asyncio.timeout(0.5):
                await slow.asubmit(x, y, b)

        with pytest.raises(TimeoutError):
            asyncio.run(impatient())
        until(lambda: server.metric("farsum_inflight_requests") == 0, "the job still runs")
    farsum.disconnect()


def test_many_in_flight_hide_the_way(server: Server) -> None:
    """Twenty calls over a line with 100 ms of delay take far less than twenty times the way."""
    with Relay(port_of(server), delay_s=0.05) as relay, farsum.connect(relay.target):
        x, y = farsum.put(X), farsum.put(Y)
        want = GAUSSIAN(x, y)
        begun = time.monotonic()
        futures = [GAUSSIAN.submit(x, y) for _ in range(20)]
        assert not wait(futures, 20).not_done
        assert time.monotonic() - begun < 1.0
        for future in futures:
            np.testing.assert_array_equal(future.result(), want)
    farsum.disconnect()


def test_a_full_queue_is_asked_again_when_it_said_so() -> None:
    with running("--queue-limit", "3") as server, farsum.connect(server.target):
        futures = [GAUSSIAN.submit(X, Y) for _ in range(30)]
        for future in futures:
            np.testing.assert_array_equal(future.result(60), GAUSSIAN(X, Y))
        assert server.metric("farsum_rejected_total") > 0, "the queue was never full"
    farsum.disconnect()
