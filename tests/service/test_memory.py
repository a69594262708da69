"""Arrays that a server on the same machine is handed through memory: the same answers, and gRPC where there is no way."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import farsum
from farsum.remote import RemoteEngine
from farsum.session import Session
from farsum.stream import Lost
from farsum.upload import Item, upload_array, upload_arrays
from farsum_kernels.errors import HandleGone, WireError
from farsum_kernels.job import ArrayRef
from farsum_proto import wire
from farsum_proto.window import PLACE_BYTES, PLACES, Window
from farsum_server.memory import MAX_CONNECTIONS
from tests.service.relay import Relay
from tests.service.server import Server, gaussian_sum, medium_job, points, running
from tests.service.test_faults import until
from tests.service.test_residency import port_of
from tests.service.test_upload import MIB, item, noise


@pytest.fixture
def session(near: Server) -> Iterator[Session]:
    with RemoteEngine(near.target, memory=True) as engine:
        engine.ping()  # which greets, and so learns of the socket
        yield engine.session


def carried(server: Server, way: str, direction: str = "ingest") -> float:
    """The bytes of arrays that came, or went, by this transport."""
    try:
        return server.metric(f'farsum_{direction}_bytes_total{{transport="{way}"}}')
    except AssertionError:
        return 0.0


def fetched(session: Session, ref: ArrayRef) -> bytes:
    into = memoryview(bytearray(ref.nbytes + wire.MAX_HEADER_BYTES))
    count = session.download(ref, into, exact=False)
    return bytes(into[count - ref.nbytes : count])


def ref_of(array: Any) -> ArrayRef:
    return ArrayRef(item(array).digest, array.dtype.name, array.shape)


# Less than a place with its header, a place to the byte, and more places than the window has.
SIZES = [65_537, PLACE_BYTES - 192, PLACE_BYTES + 1, PLACES * PLACE_BYTES, PLACES * PLACE_BYTES * 2 + 12_345]


@pytest.mark.parametrize("size", SIZES)
def test_up_and_down(near: Server, session: Session, size: int) -> None:
    array = np.random.default_rng(size).integers(0, 255, size, np.uint8).astype("int64")
    before = {way: carried(near, way) for way in ("memory", "bulk")}
    upload_array(session, item(array))
    assert fetched(session, ref_of(array)) == array.tobytes()
    assert carried(near, "memory") - before["memory"] > array.nbytes
    assert carried(near, "bulk") == before["bulk"]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_jobs_have_the_answers_that_they_have_over_grpc(near: Server, dtype: str) -> None:
    spec, arrays = gaussian_sum(dtype), points(60_000, 300, dtype, seed=3)
    with RemoteEngine(near.target) as engine:
        want = engine.prepare(spec).run(arrays).values[0]
    before = carried(near, "memory"), carried(near, "memory", "egress"), carried(near, "bulk", "egress")
    arrays = points(60_001, 300, dtype, seed=3)  # other arrays, so that they are sent
    with RemoteEngine(near.target, memory=True) as engine:
        found = engine.prepare(spec).run({**arrays, 0: arrays[0][:60_000]}).values[0]
        again = engine.prepare(spec).run(arrays).values[0]
    with RemoteEngine(near.target) as engine:
        np.testing.assert_array_equal(again, engine.prepare(spec).run(arrays).values[0])
    assert found.shape == want.shape and found.flags.writeable
    found += 1
    assert carried(near, "memory") > before[0] and carried(near, "memory", "egress") > before[1]
    assert carried(near, "bulk", "egress") > before[2]


def test_several_at_once(near: Server, session: Session) -> None:
    arrays = [noise(3, seed) for seed in range(40, 46)]
    upload_arrays(session, [item(a) for a in arrays])
    for array in arrays:
        assert session.claim(item(array).digest, session.token()) == wire.Need(())
    upload_arrays(session, [item(a) for a in arrays])  # all are there: nothing is sent
    session.close()
    until(lambda: near.metric("farsum_memory_connections") == 0, "a connection is left")


def test_handles(near: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARSUM_MEMORY", "1")
    before = carried(near, "memory"), carried(near, "memory", "egress")
    with farsum.connect(near.target):
        array = np.random.default_rng(50).random((40_000, 3))
        handle = farsum.put(array)
        kept = (farsum.numpy.Vi(handle) * farsum.numpy.Vj(np.full((1, 3), 2.0))).sum(axis=1, keep=True)
        np.testing.assert_array_equal(farsum.get(kept), 2 * array)
        farsum.drop(handle, kept)
        with pytest.raises(HandleGone):
            farsum.get(kept)
    farsum.disconnect()
    assert carried(near, "memory") > before[0] and carried(near, "memory", "egress") > before[1]


def test_what_broke_off_over_grpc_goes_on_through_memory(near: Server, session: Session) -> None:
    array = noise(12, seed=51)
    with Relay(port_of(near)) as relay:
        broken = Session(relay.target, "test", away_s=0)
        relay.cut_after = 6 * MIB
        with pytest.raises(Lost):
            upload_array(broken, item(array))
        broken.close()
    until(lambda: near.metric("farsum_uploads_in_progress") == 0, "the upload is still under way")
    (received,) = session.claim(item(array).digest, session.token()).received
    before = carried(near, "memory")
    assert received > MIB
    upload_array(session, item(array, received=received))
    assert 0 < carried(near, "memory") - before < array.nbytes - received + 4096
    assert fetched(session, ref_of(array)) == array.tobytes()
    other = noise(3, seed=52)
    upload_array(session, item(other, received=2 * MIB))  # of which nothing is there: all of it is sent
    assert fetched(session, ref_of(other)) == other.tobytes()


@pytest.mark.parametrize("offset", [1, 100, 192, 193, MIB, 2 * MIB + 191])
def test_downloads_from_an_offset(session: Session, offset: int) -> None:
    array = noise(2, seed=53)
    upload_array(session, item(array))
    whole, rest = (memoryview(bytearray(array.nbytes + wire.MAX_HEADER_BYTES)) for _ in range(2))
    size = session.download(ref_of(array), whole, exact=False)
    assert session.download(ref_of(array), rest, exact=False, received=[offset]) == size
    assert rest[offset:] == whole[offset:]


def test_errors_are_those_of_grpc(session: Session) -> None:
    wrong = Item(noise(1, seed=54), "float64", bytes(32))
    with pytest.raises(WireError, match="do not have the digest"):
        upload_array(session, wrong)
    with pytest.raises(HandleGone):
        fetched(session, ArrayRef(bytes(32), "float32", (100_000,)))
    with pytest.raises(Lost, match="no longer here"):
        session.download(b"t" * 16, memoryview(bytearray(1000)))  # a job asks for its result again then
    assert session.claim(bytes(32), session.token()).digests == (bytes(32),)


# ── where there is no such way ────────────────────────────────────────────────────────────────────


def test_a_server_that_offers_nothing(server: Server) -> None:
    with RemoteEngine(server.target, memory=True) as engine:
        assert engine.prepare(gaussian_sum()).run(points(60_000, 3, seed=60)).values[0].shape == (60_000, 1)


def test_a_client_that_wants_nothing(near: Server) -> None:
    before = carried(near, "memory")
    with farsum.connect(near.target) as engine:
        engine.prepare(gaussian_sum()).run(points(60_000, 3, seed=61))
    farsum.disconnect()
    assert carried(near, "memory") == before


def offered(session: Session) -> wire.Passage:
    assert session._memory and session._memory._offer
    return session._memory._offer


def speak(listener: socket.socket) -> None:
    with listener.accept()[0] as link:
        link.send(b"220 ready")


@pytest.mark.parametrize("case", ["nobody there", "a file", "another server", "another service"])
def test_paths_that_mean_something_else_here(near: Server, case: str, tmp_path: Path) -> None:
    """As behind a tunnel: the path is good on the server's machine."""
    before = carried(near, "memory")
    with RemoteEngine(near.target, memory=True) as engine, ExitStack() as opened:
        engine.ping()
        path, number = offered(engine.session)
        if case == "another server":
            number = b"another server's"
        else:
            path = str(tmp_path / "socket")
        if case == "a file":
            (tmp_path / "socket").write_bytes(b"")
        if case == "another service":
            listener = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            listener.bind(path)
            listener.listen()
            answering = threading.Thread(target=speak, args=(listener,))
            answering.start()
            opened.callback(answering.join)
        assert engine.session._memory
        engine.session._memory.meet(wire.Passage(path, number))
        assert engine.prepare(gaussian_sum()).run(points(60_000, 3, seed=62)).values[0].shape == (60_000, 1)
        with engine.session.link() as link:
            assert link is None, "asked once, and then no more"
    assert carried(near, "memory") == before


@pytest.mark.parametrize("fails", [False, True], ids=["connects", "fails"])
def test_a_greeting_while_a_connection_is_opened(
    session: Session, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was offered before is not used any more, and its failure says nothing of the new offer."""
    assert session._memory
    offer, attach = offered(session), Window.attach

    def meet(*window: int) -> Window:
        assert session._memory
        session._memory.meet(wire.Passage(*offer))
        if fails:
            raise WireError("the old server is gone")
        return attach(*window)

    monkeypatch.setattr(Window, "attach", meet)
    with session.link() as link:
        assert link is None
    monkeypatch.undo()
    assert not session._memory._links
    with session.link() as link:
        assert link


def test_closing_while_a_connection_is_opened(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    attach = Window.attach

    def close(*window: int) -> Window:
        session.close()
        return attach(*window)

    monkeypatch.setattr(Window, "attach", close)
    with session.link() as link:
        assert link is None
    assert session._memory and not session._memory._links and not session._memory._idle


def test_more_connections_than_there_may_be(near: Server, session: Session) -> None:
    path, _ = offered(session)
    with ExitStack() as opened:
        links = []
        for _ in range(MAX_CONNECTIONS + 1):
            link = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            link.settimeout(10)
            link.connect(path)
            links.append(link)
        greetings = [link.recv(wire.MAX_PACKET_BYTES) for link in links]
        assert greetings[-1] == b"" and all(greetings[:-1])
        upload_array(session, item(noise(1, seed=63)))
        assert session.claim(item(noise(1, seed=63)).digest, session.token()) == wire.Need(())
    until(lambda: near.metric("farsum_memory_connections") == 0, "a connection is left")


# ── forks, and the end ────────────────────────────────────────────────────────────────────────────

FORK = """
import os, sys
import numpy as np
from farsum.remote import RemoteEngine
from tests.service.server import gaussian_sum, points
engine = RemoteEngine(sys.argv[1], memory=True)
prepared = engine.prepare(gaussian_sum())
prepared.run(points(60_000, 50, seed=70))
with engine.session.link() as mine:
    pid = os.fork()
    found = prepared.run(points(60_000, 50, seed=71 + (pid == 0))).values[0]
    used = len(engine.session._memory._links)
    if pid == 0:
        os._exit(0 if found.shape == (60_000, 1) and used == 1 and mine._socket.fileno() == -1 else 1)
assert used >= 1 and mine.alive and os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
print("both")
"""


def test_a_forked_child_opens_its_own(near: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, near.target], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "both\n", done.stderr


def test_a_server_that_stops_lets_results_through_and_leaves_no_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with running("--memory-socket", str(path)) as server:
        assert path.stat().st_mode & 0o777 == 0o600
        with RemoteEngine(server.target, memory=True) as engine:
            spec, arrays = medium_job()
            future = engine.prepare(spec).submit(arrays)
            until(lambda: server.metric("farsum_inflight_requests") == 1, "the job never came")
            assert carried(server, "bulk") == 0 < carried(server, "memory")
            with engine.session.link() as link:
                assert link
                server.terminate()
                until(lambda: server.status("/readyz") == 503, "still ready")
                array = noise(1)
                with pytest.raises(Lost, match="takes no new arrays"):
                    upload = wire.Upload(ref_of(array), array.nbytes + 192)
                    link.upload(upload, bytes(192), memoryview(array.reshape(-1).view(np.uint8)))
                    raise AssertionError
            assert future.result(60).values[0].shape == (40_000, 1)
        assert server.stop() == 0 and not path.exists() and not server.other_output
