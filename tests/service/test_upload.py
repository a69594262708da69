"""Uploads over bad lines: taken up where they broke off, packed where it pays, refused before memory is taken."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from blake3 import blake3

import farsum
from farsum.handle import Content, Handle
from farsum.remote import RemoteEngine
from farsum.session import Session
from farsum.stream import Lost, rebuilt
from farsum.upload import Item, codec_for, upload_array, upload_arrays
from farsum_kernels.errors import FarsumError, ServerUnreachable, StoreFull, TruncatedStream, WireError
from farsum_kernels.job import ArrayRef
from farsum_proto import tensor, wire
from tests.service.relay import Relay
from tests.service.server import Server, expected, gaussian_sum, points, raw_channel, running
from tests.service.test_faults import until
from tests.service.test_residency import port_of, used

MIB = 1 << 20


def noise(megabytes: int, seed: int = 0) -> Any:
    return (
        np.random.default_rng(seed).integers(0, 255, megabytes * MIB, np.uint8).view("float64").reshape(-1, 4)
    )


def item(array: Any, **more: Any) -> Item:
    return Item(array, array.dtype.name, blake3(array.tobytes()).digest(), **more)


@pytest.fixture
def session(server: Server) -> Iterator[Session]:
    opened = Session(server.target, "test")
    yield opened
    opened.close()


def test_a_broken_upload_goes_on_where_it_was(server: Server) -> None:
    array = noise(24, seed=1)
    with Relay(port_of(server)) as relay, farsum.connect(relay.target):
        relay.cut_after = relay.sent + 9 * MIB
        handle = farsum.put(array)
        assert relay.cut_after is None, "the line was never cut"
        # What was on its way when the line broke is sent twice, and no more.
        assert relay.sent < array.nbytes + 5 * MIB
        found = farsum.handle.Handle(
            type(handle.content)(None, handle.nbytes, handle.content.digest), "float64", array.shape
        )
        found.content.engine = handle.content.engine
        np.testing.assert_array_equal(farsum.get(found), array)
        farsum.drop(handle)
    farsum.disconnect()


def test_a_broken_download_goes_on_where_it_was(server: Server) -> None:
    array = noise(24, seed=17)
    with Relay(port_of(server), bits_per_s=800e6) as relay, RemoteEngine(relay.target) as engine:
        engine.hold(farsum.put(array))
        handle = Handle(Content(None, array.nbytes, item(array).digest), "float64", array.shape)
        handle.content.engine = engine
        before, cuts = relay.received, (6 * MIB, 12 * MIB)

        def cut() -> None:
            for size in cuts:
                until(partial(lambda least: relay.received > least, before + size), "nothing comes")
                relay.cut()

        with ThreadPoolExecutor(1) as pool:
            cutter = pool.submit(cut)
            np.testing.assert_array_equal(engine.fetch(handle), array)
            cutter.result()
        # What was on its way when the line broke comes twice, and no more.
        assert array.nbytes < relay.received - before < array.nbytes + len(cuts) * 3 * MIB


def test_downloads_from_where_no_stream_goes_on(session: Session) -> None:
    array = noise(1, seed=18)
    upload_array(session, item(array))
    ref = ArrayRef(item(array).digest, "float64", array.shape)
    into = memoryview(bytearray(2 * MIB))
    with pytest.raises(WireError, match="cannot go on from byte"):
        session.download(ref, into, received=[array.nbytes + 5000])
    with pytest.raises(WireError, match="declared"):
        session.download(ref, into, received=[MIB // 2])  # all of the rest, but not as much as there is room


def test_a_job_whose_upload_breaks_twice(server: Server) -> None:
    arrays = points(1_500_000, 3, seed=9)
    with Relay(port_of(server)) as relay, RemoteEngine(relay.target) as engine:
        for _ in range(2):
            relay.cut_after = relay.sent + 6 * MIB
            cut = threading.Thread(target=until, args=(lambda: relay.cut_after is None, "never cut"))
            cut.start()
        found = engine.prepare(gaussian_sum()).run(arrays).values[0]
        cut.join()
        rows = np.arange(0, 1_500_000, 100_000)
        np.testing.assert_allclose(found[rows], expected({**arrays, 0: arrays[0][rows]}), rtol=1e-5)


def test_what_is_left_of_a_broken_upload_takes_nobodys_room() -> None:
    with running("--store-bytes", str(20 * MIB)) as server:
        array = noise(16)
        with Relay(port_of(server)) as relay:
            broken = Session(relay.target, "test", away_s=0)
            relay.cut_after = 8 * MIB
            with pytest.raises(Lost):
                upload_array(broken, item(array))
            broken.close()
        until(lambda: server.metric("farsum_uploads_in_progress") == 0, "the upload is still under way")
        assert used(server) > 16 * MIB, "what came is there for the next attempt"
        other = Session(server.target, "test")
        need = other.claim(item(array).digest, other.token())
        assert need.received[0] >= 4 * MIB
        upload_array(other, item(noise(17, seed=2)))
        assert other.claim(item(array).digest, other.token()).received == (0,)
        other.close()


def test_going_on_from_what_is_not_there(session: Session, server: Server) -> None:
    array = noise(3, seed=3)
    before = used(server)
    header, body = tensor.header_of(array), array.tobytes()
    upload = wire.Upload(
        ArrayRef(item(array).digest, "float64", array.shape), len(header) + len(body), offset=1000
    )
    with pytest.raises(TruncatedStream, match="send all of it"):
        session.upload(upload, iter([body]))
    assert used(server) == before
    upload_array(session, item(array, received=2 * MIB))  # a client that was told so starts again by itself
    assert session.claim(item(array).digest, session.token()) == wire.Need(())


def test_an_offset_beyond_the_end(session: Session) -> None:
    upload = wire.Upload(ArrayRef(bytes(32), "float32", (1000,)), 4096, offset=4096)
    with pytest.raises(WireError, match="cannot go on from byte 4096"):
        session.upload(upload, iter([b""]))


def test_several_streams(session: Session, server: Server) -> None:
    arrays = [noise(2, seed) for seed in range(10, 16)]
    upload_arrays(session, [item(a) for a in arrays])
    for array in arrays:
        assert session.claim(item(array).digest, session.token()) == wire.Need(())


# ── compression ───────────────────────────────────────────────────────────────────────────────────


def test_what_compresses_is_compressed_and_what_does_not_is_not() -> None:
    steps, random = np.arange(1 << 18) // 100 * 1.0, noise(2)
    for link in (1e6, 12.5e6, 125e6):
        assert codec_for(steps.view(np.uint8).data, link)
        assert not codec_for(random.reshape(-1).view(np.uint8).data, link)
    assert not codec_for(steps.view(np.uint8).data, 1e12), "on a link that is faster than packing"


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_uploads(session: Session, codec: str) -> None:
    array = np.arange(500_003) // 7 * 1.0
    header, body = tensor.header_of(array), array.view(np.uint8).data
    upload = wire.Upload(
        ArrayRef(item(array).digest, "float64", array.shape), len(header) + len(body), codec=codec
    )
    pack = pa.Codec(codec).compress
    session.upload(upload, (pack(chunk, asbytes=True) for chunk in tensor.chunks_of(header, body)))
    into = memoryview(bytearray(array.nbytes + wire.MAX_HEADER_BYTES))
    count = session.download(upload.ref, into, exact=False)
    assert into[count - array.nbytes : count] == body


def test_compressed_on_a_slow_line(server: Server) -> None:
    array = np.arange(1 << 18) // 100 * 1.0
    with Relay(port_of(server)) as relay, farsum.connect(relay.target):
        np.testing.assert_array_equal(farsum.get(farsum.put(array)), array)
        assert relay.sent < array.nbytes / 2
        kept = farsum.numpy.Vi(farsum.put(array.reshape(-1, 1))).sum(axis=0)
        assert kept[0, 0] == array.sum()
    farsum.disconnect()


@pytest.mark.parametrize(
    "chunk", [b"no frame at all", pa.Codec("lz4").compress(bytes(5 * MIB), asbytes=True), b""]
)
def test_chunks_that_do_not_unpack(session: Session, server: Server, chunk: bytes) -> None:
    before = used(server)
    upload = wire.Upload(ArrayRef(bytes(32), "float32", (MIB,)), 4 * MIB + 192, codec="lz4", resumable=True)
    with pytest.raises(WireError, match="unpack"):
        session.upload(upload, iter([chunk]))
    assert used(server) == before


def test_a_codec_that_nobody_knows(session: Session) -> None:
    upload = wire.Upload(ArrayRef(bytes(32), "float32", (MIB,)), 4 * MIB + 192, codec="snappy")
    with pytest.raises(WireError, match="use lz4 or zstd"):
        session.upload(upload, iter([b"x"]))


# ── who is killed when ────────────────────────────────────────────────────────────────────────────

STAGES = {
    "upload": "farsum.put(np.random.default_rng(0).random(6_000_000))",
    "job": "RemoteEngine(target).prepare(slow_job()[0]).run(slow_job()[1])",
    "result": "engine = RemoteEngine(target)\nticket = large(engine)\nprint('now', flush=True)\ntime.sleep(600)",
}
CLIENT = """
import sys, time
import numpy as np
import farsum
from blake3 import blake3
from farsum.remote import RemoteEngine
from farsum_proto import wire
from tests.service.server import gaussian_sum, points, slow_job
target = sys.argv[1]

def large(engine):
    arrays = points(200_000, 10)
    engine.prepare(gaussian_sum()).run(arrays)
    form = wire.encode_form(gaussian_sum(), {n: a.shape for n, a in arrays.items()})
    contents = [wire.Content(blake3(arrays[0].tobytes()).digest())]
    contents += [wire.Content(b"", arrays[n].tobytes()) for n in (1, 2)]
    return engine.session.ask(wire.Request(form, tuple(contents)))

farsum.connect(target)
print("now", flush=True)
"""


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_client_leaves_no_reservation(stage: str) -> None:
    """Within a second, all of the store is there for others again."""
    store = 64 * MIB
    with running("--store-bytes", str(store)) as server, Relay(port_of(server), bits_per_s=400e6) as relay:
        target = relay.target if stage == "upload" else server.target
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT + STAGES[stage], target], stdout=subprocess.PIPE, text=True
        )
        assert client.stdout and client.stdout.readline() == "now\n"
        if stage == "result":
            assert client.stdout.readline() == "now\n"
        elif stage == "upload":
            until(lambda: server.metric("farsum_uploads_in_progress") == 1, "the upload never came")
            time.sleep(0.2)
        else:
            until(lambda: server.metric("farsum_inflight_requests") == 1, "the job never came")
        client.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        relay.cut()
        client.wait()
        client.stdout.close()
        with RemoteEngine(server.target) as engine:
            upload = wire.Upload(ArrayRef(bytes(32), "uint8", ()), 0)
            ref = ArrayRef(bytes(32), "float32", ((store - 8192) // 4,))
            while True:  # an upload of all that there is, of which the header alone is sent
                upload = wire.Upload(ref, ref.nbytes + 192)
                try:
                    engine.session.upload(upload, iter([]))
                except TruncatedStream:
                    break
                except StoreFull:
                    assert time.monotonic() < killed + 1.0, "the memory of a dead client is still held"
                    time.sleep(0.02)
        # A job that was being compiled gave its memory up before its place on the worker.
        until(lambda: server.metric("farsum_inflight_requests") == 0, "its job still runs", 2)


@pytest.mark.parametrize("way", ["upload", "result"])
def test_a_server_that_is_killed_in_the_middle(way: str) -> None:
    """The client waits for the next one, and goes on; without a next one it says so, and does not hang."""
    servers = [Server()]
    port = port_of(servers[0])
    spec, arrays = gaussian_sum(), points(400_000, 10)

    def kill(relay: Relay) -> None:
        counter = "sent" if way == "upload" else "received"
        until(lambda: getattr(relay, counter) > 300_000, "nothing travels")
        servers[0].process.kill()
        servers[0].process.wait()
        servers.append(Server("--port", str(port)))

    try:
        with ExitStack() as opened:
            relay = opened.enter_context(Relay(port, bits_per_s=60e6))
            if way == "result":
                with RemoteEngine(servers[0].target) as near:
                    near.prepare(spec).run(arrays)  # so that the result is all that travels
            engine = opened.enter_context(RemoteEngine(relay.target, away_s=60.0))
            killer = opened.enter_context(ThreadPoolExecutor(1)).submit(kill, relay)
            found = engine.prepare(spec).run(arrays).values[0]
            killer.result()
        rows = np.arange(0, 400_000, 50_000)
        np.testing.assert_allclose(found[rows], expected({**arrays, 0: arrays[0][rows]}), rtol=1e-5)
        with RemoteEngine(servers[1].target, away_s=0.5) as engine:
            engine.prepare(spec).run(points(5, 5))
            assert servers[1].stop() == 0
            begun = time.monotonic()
            with pytest.raises(ServerUnreachable, match="farsum serve"):
                engine.prepare(spec).run(points(5, 5))
            assert time.monotonic() - begun < 10
    finally:
        for server in servers:
            server.stop()


@pytest.mark.parametrize("shape, says", [((1 << 40, 3), "larger than|does not fit|bytes"), ((7, 3), "bytes")])
def test_declared_sizes_are_compared_before_memory_is_taken(
    server: Server, shape: tuple[int, ...], says: str
) -> None:
    before = used(server)
    header = wire.encode_upload(
        wire.Upload(ArrayRef(bytes(32), "float32", shape), 4096, bytes(16), 100, True, "lz4")
    )
    with raw_channel(server) as channel, pytest.raises(grpc.RpcError) as raised:
        channel.stream_unary(wire.METHODS["Upload"])(iter([header]), timeout=20)
    with pytest.raises(FarsumError, match=says):
        raise rebuilt(raised.value, server.target)
    assert used(server) == before
