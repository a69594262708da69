"""Clients that vanish, workers that die, servers that stop: nothing hangs, nothing leaks, others go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import grpc
import numpy as np
import psutil
import pytest
from blake3 import blake3

from farsum.remote import RemoteEngine
from farsum.session import Session
from farsum.stream import rebuilt
from farsum.upload import Item, upload_array
from farsum_kernels.errors import (
    ArrayMissing,
    Draining,
    FarsumError,
    QueueFull,
    ServerUnreachable,
    StoreFull,
    TruncatedStream,
    WorkerDied,
)
from farsum_kernels.job import ArrayRef, Options, Result
from farsum_proto import wire
from tests.service.server import (
    Server,
    engine_on,
    gaussian_sum,
    medium_job,
    pid_is_gone,
    points,
    raw_channel,
    running,
    slow_job,
)


def until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def workers_started(server: Server, count: int) -> bool:
    return server.events().count("worker ready") == count


VANISH = """
import sys, time
import numpy as np
from farsum.session import Session
from farsum_kernels.job import ArrayRef
from farsum_proto import tensor, wire
array = np.zeros((8_000_000,), "float32")
header = tensor.header_of(array)
def chunks():
    yield header + bytes(1 << 20)
    print("under way", flush=True)
    time.sleep(600)
ref = ArrayRef(bytes(32), "float32", array.shape)
Session(sys.argv[1], "test").upload(wire.Upload(ref, len(header) + array.nbytes), chunks())
"""


def test_client_killed_in_the_middle_of_an_upload(server: Server) -> None:
    used = server.metric("farsum_store_used_bytes")
    client = subprocess.Popen(
        [sys.executable, "-c", VANISH, server.target], stdout=subprocess.PIPE, text=True
    )
    assert client.stdout and client.stdout.readline() == "under way\n"
    until(lambda: server.metric("farsum_store_used_bytes") > used + 30_000_000, "no reservation")
    client.kill()
    client.wait()
    client.stdout.close()
    until(lambda: server.metric("farsum_store_used_bytes") == used, "the reservation is still held")
    assert server.metric("farsum_uploads_in_progress") == 0


def test_upload_that_brings_nothing() -> None:
    with running("--upload-idle-s", "0.3") as server, raw_channel(server) as channel:
        done = threading.Event()

        def chunks() -> Iterator[bytes]:
            yield wire.encode_upload(wire.Upload(ArrayRef(bytes(32), "float32", (1000,)), 4192))
            done.wait(30)

        with pytest.raises(grpc.RpcError) as raised:
            channel.stream_unary(wire.METHODS["Upload"])(chunks(), timeout=20)
        done.set()
        error = rebuilt(raised.value, server.target)
        assert type(error) is TruncatedStream and "nothing for 0.3 s" in str(error)
        assert server.metric("farsum_store_used_bytes") == 0


def test_client_killed_while_it_waits(server: Server) -> None:
    script = (
        "import sys\nfrom farsum.remote import RemoteEngine\nfrom tests.service.server import slow_job\n"
        "spec, arrays = slow_job()\nRemoteEngine(sys.argv[1]).prepare(spec).run(arrays)\n"
    )
    client = subprocess.Popen([sys.executable, "-c", script, server.target])
    until(lambda: server.metric("farsum_inflight_requests") == 1, "the job never came")
    client.kill()
    client.wait()
    until(lambda: server.metric("farsum_inflight_requests") == 0, "the job of a dead client still runs")


COMPILING = """
import random, sys
from farsum.remote import RemoteEngine
from farsum_kernels.formula.expr import I, J, constant, node, variable
from farsum_kernels.job import Spec
from tests.service.server import points
x, y, b = variable(0, 3, I), variable(1, 3, J), variable(2, 1, J)
d = node("SqDist", x, y)
terms = [node("Exp", node("Minus", node("Mult", constant(random.random()), node("Sin", node("Mult", constant(random.random()), d))))) for _ in range(480)]
while len(terms) > 1:
    terms = [node("Add", *pair) for pair in zip(terms[::2], terms[1::2])] + terms[len(terms) & ~1:]
spec = Spec(node("Mult", terms[0], b), "Sum", 1, "float32", None, 0)
print("now", flush=True)
RemoteEngine(sys.argv[1]).prepare(spec).run(points(4_000_000, 100_000))
"""


def test_client_killed_while_its_formula_compiles() -> None:
    """All of the store is there for others within a second, though the worker compiles on; and then it is free too."""
    with running() as server, engine_on(server) as engine:
        small = engine.prepare(gaussian_sum())
        small.run(points(5, 5))
        client = subprocess.Popen(
            [sys.executable, "-c", COMPILING, server.target], stdout=subprocess.PIPE, text=True
        )
        assert client.stdout and client.stdout.readline() == "now\n"
        client.stdout.close()
        until(lambda: server.metric("farsum_inflight_requests") == 1, "the job never came")
        worker = psutil.Process(server.worker_pid())
        time.sleep(0.2)
        client.kill()
        killed = time.monotonic()
        client.wait()
        ref = ArrayRef(bytes(32), "float32", ((256 * (1 << 20) - 8192) // 4,))
        while True:  # an upload of all that there is, of which the header alone is sent
            try:
                engine.session.upload(wire.Upload(ref, ref.nbytes + 192), iter([]))
            except TruncatedStream:
                break
            except StoreFull:
                assert time.monotonic() < killed + 1.0, "the memory of a dead client is still held"
                time.sleep(0.02)
        assert server.metric("farsum_inflight_requests") == 1, "it was compiled already: make it longer"
        assert small.run(points(5, 5)).values[0].shape == (5, 1)
        until(lambda: server.metric("farsum_inflight_requests") == 0, "the job of a dead client still runs")
        before = sum(worker.cpu_times()[:2])
        time.sleep(0.3)
        assert sum(worker.cpu_times()[:2]) - before < 0.1, "the worker computes for nobody"


def test_a_client_that_asks_and_reads_nothing(server: Server) -> None:
    """It is not read from either, so what waits for it takes no memory; once it reads, it has all its answers."""
    claims = wire.Residency(tuple((os.urandom(32), bytes(wire.TOKEN_BYTES)) for _ in range(1000)))
    sent, jobs, most = [0], 100, 2000

    def messages() -> Iterator[bytes]:
        yield wire.encode_hello("test")
        for rows in range(5000, 5000 + jobs):  # through the queue, so that the session's own writer answers
            form = wire.encode_form(gaussian_sum(reduction="KMin", k=3), {0: (rows, 3), 1: (1, 3)})
            x = bytes(rows * 12)
            contents = wire.Content(blake3(x).digest(), x), wire.Content(b"", bytes(12))
            yield wire.encode_ask(rows, wire.Request(form, contents))
        until(lambda: server.metric("farsum_inflight_requests") == 0, "the jobs never ended")
        for sent[0] in range(1, most + 1):
            yield wire.encode_residency(sent[0], claims)

    with raw_channel(server) as channel:
        answers = channel.stream_stream(wire.METHODS["Session"])(messages(), timeout=60)
        before = -1
        while not sent[0] or sent[0] > before:
            before = sent[0]
            time.sleep(0.5)
        assert sent[0] < most
        assert sum(1 for _ in answers) == 1 + jobs + most


def test_ctrl_c_cancels_on_the_server(server: Server) -> None:
    script = (
        "import sys\nfrom farsum.remote import RemoteEngine\n"
        "from tests.service.server import gaussian_sum, points, slow_job\n"
        "spec, arrays = slow_job()\nengine = RemoteEngine(sys.argv[1])\n"
        "try:\n    engine.prepare(spec).run(arrays)\nexcept KeyboardInterrupt:\n"
        "    print(engine.prepare(gaussian_sum()).run(points(3, 3)).values[0].shape, flush=True)\n    input()\n"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", script, server.target],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    until(lambda: server.metric("farsum_inflight_requests") == 1, "the job never came")
    time.sleep(0.2)
    client.send_signal(signal.SIGINT)
    assert client.stdout and client.stdout.readline() == "(3, 1)\n"
    until(lambda: server.metric("farsum_inflight_requests") == 0, "the job still runs")
    client.communicate("\n", timeout=20)


def test_two_clients_upload_the_same_array(server: Server) -> None:
    array = np.random.default_rng(11).random((2_000_000, 3)).astype("float32")
    digest = blake3(array.tobytes()).digest()

    def send(_: int) -> None:
        with engine_on(server) as engine:
            upload_array(engine.session, Item(array, "float32", digest))

    used = server.metric("farsum_store_used_bytes")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(send, range(2)))
    grown = server.metric("farsum_store_used_bytes") - used
    assert array.nbytes <= grown < array.nbytes + 4096


def test_worker_killed_in_the_middle_of_a_job() -> None:
    with running() as server, engine_on(server) as engine:
        spec, arrays = medium_job()
        want = engine.prepare(gaussian_sum()).run(points(100, 100)).values[0]
        future = engine.prepare(spec).submit(arrays)
        until(lambda: server.metric("farsum_inflight_requests") == 1, "the job never came")
        time.sleep(0.3)
        first = server.worker_pid()
        os.kill(first, signal.SIGKILL)
        assert future.result(60).values[0].shape == (40_000, 1)  # run again on the next worker
        again = engine.prepare(gaussian_sum()).run(points(100, 100)).values[0]
        np.testing.assert_array_equal(again, want)
        assert server.worker_pid() != first and pid_is_gone(first)
        assert server.metric("farsum_worker_restarts_total") == 1
        assert engine.ping()["devices"][0]["restarts"] == 1


def test_job_under_which_workers_die_twice_fails_and_the_others_go_on() -> None:
    with running() as server, engine_on(server) as engine:
        spec, arrays = slow_job()
        # The slow job has more work left than any other, so it runs whenever it is alone.
        guilty = engine.prepare(spec).submit(arrays)
        until(lambda: server.metric("farsum_inflight_requests") == 1, "the job never came")
        for n in range(2):
            until(partial(workers_started, server, n + 1), "no worker")
            time.sleep(0.5)
            os.kill(server.worker_pid(), signal.SIGKILL)
        with pytest.raises(WorkerDied, match="twice"):
            guilty.result(30)
        assert engine.prepare(gaussian_sum()).run(points(100, 100)).values[0].shape == (100, 1)


def test_sigterm_finishes_what_is_under_way() -> None:
    with running() as server, engine_on(server) as engine, engine_on(server) as other:
        other.prepare(gaussian_sum()).run(points(4, 4))
        spec, arrays = medium_job()
        future = engine.prepare(spec).submit(arrays)
        until(lambda: server.metric("farsum_inflight_requests") == 1, "the job never came")
        server.terminate()
        until(lambda: server.status("/readyz") == 503, "still ready")
        assert server.status("/healthz") == 200
        with pytest.raises((Draining, ServerUnreachable)):
            other.prepare(gaussian_sum()).run(points(4, 4))
        assert future.result(60).values[0].shape == (40_000, 1)  # large, so it was fetched during the drain
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 10
        assert server.events()[-1] == "stopped" and not server.other_output


def test_second_signal_stops_at_once() -> None:
    with running() as server, engine_on(server) as engine:
        spec, arrays = slow_job()
        future = engine.prepare(spec).submit(arrays)
        until(lambda: server.metric("farsum_inflight_requests") == 1, "the job never came")
        server.terminate()
        until(lambda: "draining" in server.events(), "no drain")
        server.terminate()
        assert server.process.wait(20) == 0
        with pytest.raises(FarsumError):
            future.result(20)


def test_sigterm_while_workers_start() -> None:
    command = [sys.executable, "-m", "farsum_server.cli", "serve", "--port", "0", "--http-port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    time.sleep(1.0)
    process.terminate()
    _, log = process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM), log


def test_full_queue_says_when_to_come_back() -> None:
    with running("--queue-limit", "2") as server, engine_on(server) as engine:
        spec, arrays = slow_job()
        prepared = engine.prepare(spec)
        futures: list[Future[Result]] = [prepared.submit(arrays) for _ in range(2)]
        until(lambda: server.metric("farsum_inflight_requests") == 2, "the jobs never came")
        small = engine.prepare(gaussian_sum())
        started = time.monotonic()
        with pytest.raises(QueueFull, match="try again"):
            small.run(points(5, 5), Options(deadline_s=1.0))
        assert time.monotonic() - started < 5
        waiting = small.submit(points(5, 5))
        time.sleep(0.2)
        futures[0].cancel()
        assert waiting.result(60).values[0].shape == (5, 1)
        futures[1].cancel()


def test_store_makes_room_and_says_when_it_cannot() -> None:
    with running("--store-bytes", str(16 << 20)) as server, engine_on(server) as engine:
        prepared = engine.prepare(gaussian_sum())
        for seed in range(6):  # 6 MB each
            arrays = points(500_000, 10, seed=seed)
            assert prepared.run(arrays).values[0].shape == (500_000, 1)
        assert server.metric("farsum_store_used_bytes") <= 16 << 20
        with pytest.raises(StoreFull):
            prepared.run(points(2_000_000, 10))
        assert prepared.run(points(5, 5)).values[0].shape == (5, 1)


def test_results_that_nobody_fetches_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    with running("--ticket-ttl-s", "0.2") as server, engine_on(server) as engine:
        arrays = points(100_000, 10)
        prepared = engine.prepare(gaussian_sum())
        prepared.run(arrays)
        used = server.metric("farsum_store_used_bytes")
        form = wire.encode_form(gaussian_sum(), {n: a.shape for n, a in arrays.items()})
        contents = [wire.Content(blake3(a.tobytes()).digest()) for a in (arrays[0],)]
        contents += [wire.Content(b"", arrays[n].tobytes()) for n in (1, 2)]
        reply = engine.session.ask(wire.Request(form, tuple(contents)))
        assert isinstance(reply, wire.Outputs)
        (value,) = reply.values
        assert value.inline is None and server.metric("farsum_store_used_bytes") > used
        until(lambda: server.metric("farsum_store_used_bytes") == used, "the result is still held")
        with raw_channel(server) as channel, pytest.raises(grpc.RpcError) as raised:
            list(channel.unary_stream(wire.METHODS["Download"])(wire.encode_download(value.ticket)))
        assert type(rebuilt(raised.value, server.target)) is ArrayMissing
        late: list[bool] = []
        download = Session.download

        def fetch_late(session: Session, what: bytes, into: memoryview) -> int:
            if not late:
                late.append(True)
                until(lambda: server.metric("farsum_store_used_bytes") == used, "the result is still held")
            return download(session, what, into)

        monkeypatch.setattr(Session, "download", fetch_late)
        # A client whose result is gone, as it would be after a restart, asks for it again.
        assert prepared.run(arrays).values[0].shape == (100_000, 1) and late


def test_daemon_holds_no_native_code(server: Server) -> None:
    with open(f"/proc/{server.process.pid}/maps") as maps:
        assert "llvmlite" not in maps.read()
    with open(f"/proc/{server.worker_pid()}/maps") as maps:
        assert "llvmlite" in maps.read()


def test_worker_ends_with_the_daemon() -> None:
    with running() as server:
        worker = server.worker_pid()
        server.process.kill()
        server.process.wait()
        until(lambda: pid_is_gone(worker), "the worker outlives its daemon")


def test_many_calls_leave_nothing_behind(server: Server) -> None:
    with RemoteEngine(server.target) as engine:
        prepared = engine.prepare(gaussian_sum())
        arrays = points(40_000, 10)
        prepared.run(arrays)
        used = server.metric("farsum_store_used_bytes")
        for _ in range(50):
            prepared.run(arrays)
        assert server.metric("farsum_store_used_bytes") == used
        assert server.metric("farsum_inflight_requests") == 0
