"""The daemon with workers that misbehave, without sockets of clients in between."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from farsum_kernels.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    FarsumError,
    FormulaTooExpensive,
    InternalError,
    WorkerDied,
)
from farsum_proto import wire
from farsum_server.clients import Client
from farsum_server.daemon import Daemon
from farsum_server.express import FORM_BYTES, MISSES, PAUSE_S, SLOTS
from farsum_server.jobs import Begun, Limits, Slot
from farsum_server.metrics import Metrics
from tests.service.server import gaussian_sum

LIMITS = Limits(store_bytes=1 << 22, compile_deadline_s=0.5)


def with_daemon(
    worker: str, scenario: Callable[[Daemon], Awaitable[None]], limits: Limits = LIMITS, workers: int = 1
) -> None:
    async def run() -> None:
        daemon = Daemon(
            limits, Metrics("test"), worker=f"tests.service.stand_in:{worker}", devices=["cpu"] * workers
        )
        daemon.start()
        try:
            assert await daemon.wait_ready(30)
            await asyncio.wait_for(scenario(daemon), 60)
        finally:
            daemon.stop()
            await asyncio.sleep(0.05)
            daemon.close()

    asyncio.run(run())


def request(rows: int, **options: Any) -> wire.Request:
    form = wire.encode_form(gaussian_sum(), {0: (rows, 3), 1: (1, 3), 2: (1, 1)})
    x = bytes(rows * 12)
    first = wire.Content(b"" if len(x) < wire.TINY_BYTES else blake3(x).digest(), x)
    return wire.Request(form, (first, wire.Content(b"", bytes(12)), wire.Content(b"", bytes(4))), **options)


def large_request() -> wire.Request:
    """A job whose result is too large to travel inline."""
    form = wire.encode_form(gaussian_sum(reduction="KMin", k=10), {0: (5000, 3), 1: (1, 3)})
    x = bytes(60_000)
    return wire.Request(form, (wire.Content(blake3(x).digest(), x), wire.Content(b"", bytes(12))))


def ask(
    daemon: Daemon, client: Client, asked: wire.Request, on_progress: Callable[[float], None] | None = None
) -> asyncio.Future[Any]:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    daemon.ask(client, asked, answer.set_result, on_progress and (lambda share, values: on_progress(share)))
    return answer


async def prepared(daemon: Daemon, client: Client, asked: wire.Request) -> Slot:
    """What the job has once it has come a second time."""
    for _ in range(2):
        assert isinstance(await ask(daemon, client, asked), wire.Outputs)
    slot = daemon.slot(asked.form)
    assert slot is not None
    return slot


def packet(slot: Slot, first: float = 0.0) -> bytes:
    """A job on zeros, but for its first number; or if its rows are named, on those of `request`."""
    rows, tiny = slot.decoded.faces[0].shape[0], slot.rooms.tiny[0]
    x = np.zeros((rows, 3), np.float32)
    x[0, 0] = first
    return slot.rooms.ask(
        slot.number, 7, [x.tobytes() if tiny else blake3(x.tobytes()).digest(), bytes(12), bytes(4)]
    )


def say(daemon: Daemon, client: Client, slot: Slot, sent: bytes) -> tuple[object, asyncio.Future[Any]]:
    """A small job as a session asks for it: what `express` gives, and the values or the answer."""
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    begun = daemon.express(client, slot, sent)
    if isinstance(begun, bytes):
        answer.set_result(slot.rooms.values(begun))
    else:
        asked = wire.Request(slot.form, slot.rooms.contents(sent))
        daemon.ask(client, asked, answer.set_result, None, begun)
    return begun, answer


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_two_slices_and_progress() -> None:
    async def scenario(daemon: Daemon) -> None:
        shares: list[float] = []
        outcome = await ask(daemon, Client(), request(5, progress=True), shares.append)
        assert outcome.values == (wire.Value("float32", (5, 1), bytes(20)),)
        assert wire.decode_plan(outcome.plan) == {"path": "stand-in"}
        assert shares == [0.5]

    with_daemon("Worker", scenario)


def test_compiler_that_does_not_end_costs_its_own_job_only() -> None:
    async def scenario(daemon: Daemon) -> None:
        slow = ask(daemon, Client(), request(13))
        other = ask(daemon, Client(), request(5))
        outcome = await slow
        assert isinstance(outcome, FormulaTooExpensive) and "0.5 s" in str(outcome)
        assert isinstance(await other, wire.Outputs)
        assert daemon.devices[0].restarts == 1

    with_daemon("SlowCompiler", scenario)


def test_a_job_that_is_cancelled_while_it_compiles_frees_its_memory_at_once() -> None:
    async def scenario(daemon: Daemon) -> None:
        client = Client()
        used = daemon._store.used
        left = ask(daemon, client, large_request())
        taken = daemon._store.used
        assert taken > used + 5000 * 10 * 4
        await until(lambda: daemon._jobs[1].untouched)
        daemon.leave(client)
        assert isinstance(await left, Cancelled)
        (held,) = daemon._store._held.values()  # its array, which is a cache again
        assert not held.pins and daemon._store.used <= taken - 5000 * 10 * 4
        assert len(daemon._jobs) == 1, "the worker compiles still"
        others = [ask(daemon, Client(), request(5)) for _ in range(3)]  # as many as the queue takes
        for other in others:
            assert isinstance(await other, wire.Outputs)
        assert not daemon._jobs and daemon.devices[0].restarts == 0, "the job ran on"

    with_daemon("LongCompiler", scenario, replace(LIMITS, compile_deadline_s=30.0, queue_limit=3))


def test_the_client_leaves_before_the_worker_says_that_it_compiles() -> None:
    async def scenario(daemon: Daemon) -> None:
        left = ask(daemon, Client(), large_request())
        daemon.cancel(1)
        assert isinstance(await left, Cancelled)
        await until(lambda: daemon._store.used < 61_000)
        assert len(daemon._jobs) == 1 and daemon._jobs[1].untouched
        await until(lambda: not daemon._jobs)
        assert daemon.devices[0].restarts == 0 and daemon._store.used < 61_000

    with_daemon("LongCompiler", scenario, replace(LIMITS, compile_deadline_s=30.0))


def test_a_first_step_that_does_not_end_is_an_overrun_too() -> None:
    async def scenario(daemon: Daemon) -> None:
        assert isinstance(await ask(daemon, Client(), request(13)), FormulaTooExpensive)
        assert isinstance(await ask(daemon, Client(), request(5)), wire.Outputs)

    with_daemon("LateCompiler", scenario)


def test_bug_of_the_worker_is_an_internal_error_without_its_story() -> None:
    async def scenario(daemon: Daemon) -> None:
        outcome = await ask(daemon, Client(), request(13))
        assert type(outcome) is InternalError and "secret" not in str(outcome) and "job-1" in str(outcome)
        assert daemon.devices[0].restarts == 0

    with_daemon("Buggy", scenario)


def test_job_that_kills_its_worker_is_tried_twice() -> None:
    async def scenario(daemon: Daemon) -> None:
        bad = ask(daemon, Client(), request(13))
        good = [ask(daemon, Client(), request(5)) for _ in range(4)]
        assert isinstance(await bad, WorkerDied)
        assert all(isinstance(outcome, wire.Outputs) for outcome in await asyncio.gather(*good))

    with_daemon("Crashing", scenario)


def test_worker_cannot_write_into_arrays() -> None:
    async def scenario(daemon: Daemon) -> None:
        assert isinstance(await ask(daemon, Client(), request(200)), InternalError)

    with_daemon("Writing", scenario)


def test_worker_that_cannot_start() -> None:
    async def run() -> None:
        daemon = Daemon(LIMITS, Metrics("test"), worker="tests.service.stand_in:Unable")
        daemon.start()
        assert not await daemon.wait_ready(30)
        daemon.stop()
        daemon.close()

    asyncio.run(run())


def test_deadline_of_a_job_that_waits() -> None:
    async def scenario(daemon: Daemon) -> None:
        ask(daemon, Client(), request(13))
        started = time.monotonic()
        outcome = await ask(daemon, Client(), request(5, deadline_s=0.1))
        assert isinstance(outcome, DeadlineExceeded) and time.monotonic() - started < 0.4

    with_daemon("SlowCompiler", scenario)


def test_a_client_that_leaves_takes_its_jobs_and_results_along() -> None:
    async def scenario(daemon: Daemon) -> None:
        client = Client()
        outcome = await ask(daemon, client, large_request())
        assert outcome.values[0].ticket and client.tickets
        waiting = ask(daemon, client, request(5))
        daemon.leave(client)
        assert isinstance(await waiting, Cancelled)
        assert client.idle

    with_daemon("Worker", scenario)


def test_drain_waits_for_results_to_be_fetched() -> None:
    async def scenario(daemon: Daemon) -> None:
        outcome = await ask(daemon, Client(), large_request())
        drain = asyncio.create_task(daemon.drain())
        await asyncio.sleep(0.1)
        assert not drain.done()
        with pytest.raises(Draining):
            ask(daemon, Client(), request(5))
        async with daemon.download(outcome.values[0].ticket) as (header, body):
            assert len(header) + len(body) == outcome.values[0].stream_bytes
            assert bytes(body[:4]) == b"\0\0\x80?"
        await asyncio.wait_for(drain, 5)

    with_daemon("Worker", scenario)


def test_two_workers_run_two_jobs_at_once() -> None:
    async def scenario(daemon: Daemon) -> None:
        stuck = ask(daemon, Client(), request(13))
        assert isinstance(await ask(daemon, Client(), request(5)), wire.Outputs)
        assert not stuck.done()

    with_daemon("SlowCompiler", scenario, workers=2)


def test_memory_is_free_when_all_is_done() -> None:
    async def scenario(daemon: Daemon) -> None:
        client = Client()
        for asked in (request(5), request(200), large_request()):
            outcome = await ask(daemon, client, asked)
            assert not isinstance(outcome, FarsumError)
        daemon.leave(client)
        page = daemon.metrics.page().decode()
        # The arrays that have a digest are kept.
        assert "farsum_store_arrays 2.0" in page
        assert "farsum_inflight_requests 0.0" in page

    with_daemon("Worker", scenario)


# ── small jobs, which are waited for in place ─────────────────────────────────────────────────────


def test_small_jobs_are_answered_at_once() -> None:
    async def scenario(daemon: Daemon) -> None:
        for rows in (5, 200):
            client = Client()
            slot = await prepared(daemon, client, request(rows))
            assert slot.rooms.tiny[0] is (rows == 5)
            told = 0
            for _ in range(20):  # now and then the machine has other things to do
                slot.misses = 0
                begun, answer = say(daemon, client, slot, packet(slot))
                outcome = await answer
                if isinstance(begun, bytes):
                    told += 1
                    assert wire.decode_head(begun)[1] == slot.number
                    assert outcome == (b"\0\0\x80?" * rows,), "what is written where the answer is sent from"
            assert told > 10
        assert "farsum_inflight_requests 0.0" in daemon.metrics.page().decode()

    with_daemon("Quick", scenario)


def test_small_jobs_that_take_longer_than_was_thought() -> None:
    async def scenario(daemon: Daemon) -> None:
        slot = await prepared(daemon, Client(), request(5))
        begun, answer = say(daemon, Client(), slot, packet(slot, first=13))
        assert begun == Begun(3, slot)
        other, second = say(daemon, Client(), slot, packet(slot))
        assert other is None, "one at a time is waited for"
        assert isinstance(await second, wire.Outputs)
        assert (await answer).values == (wire.Value("float32", (5, 1), b"\0\0\x80?" * 5),)
        while slot.misses < MISSES:
            before = slot.misses
            begun, answer = say(daemon, Client(), slot, packet(slot, first=13))
            assert isinstance(begun, Begun) and slot.misses == before + 1
            assert isinstance(await answer, wire.Outputs)
        begun, answer = say(daemon, Client(), slot, packet(slot))
        assert begun is None, "nobody waits for it for a while"
        assert isinstance(await answer, wire.Outputs)
        await asyncio.sleep(PAUSE_S)
        begun, answer = say(daemon, Client(), slot, packet(slot))
        assert begun is not None
        await answer

    with_daemon("Quick", scenario)


def test_small_jobs_that_end_badly() -> None:
    async def dies(daemon: Daemon) -> None:
        slot = await prepared(daemon, Client(), request(5))
        begun, answer = say(daemon, Client(), slot, packet(slot, first=13))
        assert isinstance(begun, Begun) and isinstance(await answer, WorkerDied)
        assert slot.lost and not slot.ready, "its successor knows nothing of it"
        begun, answer = say(daemon, Client(), slot, packet(slot))
        assert begun is None and isinstance(await answer, wire.Outputs)
        again = await prepared(daemon, Client(), request(5))
        assert again.number > slot.number, "no number is used twice"

    async def fails(daemon: Daemon) -> None:
        slot = await prepared(daemon, Client(), request(5))
        _, answer = say(daemon, Client(), slot, packet(slot, first=13))
        outcome = await answer
        assert type(outcome) is InternalError and "secret" not in str(outcome)

    async def is_cancelled(daemon: Daemon) -> None:
        client = Client()
        slot = await prepared(daemon, client, request(5))
        _, answer = say(daemon, client, slot, packet(slot, first=13))
        daemon.leave(client)
        assert isinstance(await answer, Cancelled)
        daemon.refuse_new_work()
        with pytest.raises(Draining):
            say(daemon, client, slot, packet(slot))

    with_daemon("Crashing", dies)
    with_daemon("Buggy", fails)
    with_daemon("SlowCompiler", is_cancelled)


def test_a_form_that_cannot_be_prepared_goes_the_long_way() -> None:
    async def scenario(daemon: Daemon) -> None:
        for _ in range(4):
            assert isinstance(await ask(daemon, Client(), request(5)), wire.Outputs)
        assert daemon.slot(request(5).form) is None

    with_daemon("Unprepared", scenario)


def test_named_arrays_that_are_gone_are_asked_for() -> None:
    async def scenario(daemon: Daemon) -> None:
        slot = await prepared(daemon, Client(), request(200))
        begun, answer = say(daemon, Client(), slot, packet(slot, first=1))
        assert begun is None
        assert (await answer).digests == (slot.rooms.contents(packet(slot, first=1))[0].digest,)

    with_daemon("Quick", scenario)


def test_what_is_not_small_is_not_prepared() -> None:
    async def scenario(daemon: Daemon) -> None:
        form = wire.decode_form(request(5).form)
        for data, costly in ((b"", replace(form, cost=1e9)), (bytes(FORM_BYTES + 1), form)):
            daemon._express.prepare(daemon._devices[0], data, costly)
        for _ in range(3):
            assert isinstance(await ask(daemon, Client(), large_request()), wire.Outputs)
        assert not any(daemon._express._slots.values())

    with_daemon("Quick", scenario)


def test_a_worker_whose_channel_is_full_is_not_waited_for() -> None:
    async def scenario(daemon: Daemon) -> None:
        slot = await prepared(daemon, Client(), request(5))
        process = slot.device.process
        assert process.pid
        os.kill(process.pid, signal.SIGSTOP)
        while process.offer(packet(slot)):
            pass
        begun, answer = say(daemon, Client(), slot, packet(slot))
        assert begun is None, "nothing was sent, so nothing has begun"
        os.kill(process.pid, signal.SIGKILL)
        assert isinstance(await answer, wire.Outputs)

    with_daemon("Quick", scenario)


def test_a_small_job_stays_with_the_worker_that_has_it() -> None:
    async def scenario(daemon: Daemon) -> None:
        asked = request(5)
        first = (await prepared(daemon, Client(), asked)).device  # the one that the queue would choose
        (other,) = [device for device in daemon._devices if device is not first]
        daemon._express.prepare(other, asked.form, wire.decode_form(asked.form))
        slot = daemon._express._slots[other.process.number][asked.form]
        await until(lambda: slot.ready)
        begun, answer = say(daemon, Client(), slot, packet(slot, first=13))
        assert isinstance(begun, Begun)
        assert daemon._queue.worker_of(begun.job) == other.process.number
        assert isinstance(await answer, wire.Outputs)
        assert "farsum_inflight_requests 0.0" in daemon.metrics.page().decode()

    with_daemon("Quick", scenario, workers=2)


def test_the_form_that_was_used_least_recently_makes_room() -> None:
    async def scenario(daemon: Daemon) -> None:
        slots = [await prepared(daemon, Client(), request(rows)) for rows in range(14, 14 + SLOTS)]
        say(daemon, Client(), slots[0], packet(slots[0]))  # the oldest is used again
        newest = await prepared(daemon, Client(), request(14 + SLOTS))
        assert [slot.lost for slot in slots] == [False, True, *[False] * (SLOTS - 2)]
        for slot in (slots[0], newest):
            slot.misses = 0
            _, answer = say(daemon, Client(), slot, packet(slot))
            outcome = await answer
            got = outcome if isinstance(outcome, tuple) else (outcome.values[0].inline,)
            assert len(got[0]) == 4 * slot.decoded.faces[0].shape[0]

    with_daemon("Quick", scenario)
