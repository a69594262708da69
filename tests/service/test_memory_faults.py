"""What may go wrong beside memory: clients that lie, vanish or stop, and servers that die."""

from __future__ import annotations

import array
import asyncio
import fcntl
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farsum.remote import RemoteEngine
from farsum.upload import upload_array
from farsum_kernels.errors import (
    DigestMismatch,
    FarsumError,
    StoreFull,
    TruncatedStream,
    WireError,
)
from farsum_kernels.job import ArrayRef
from farsum_proto import tensor, wire
from farsum_proto.window import PLACE_BYTES, PLACES, Window
from farsum_server.daemon import Daemon
from farsum_server.memory import Connection
from tests.service.server import Server, expected, gaussian_sum, points, running
from tests.service.test_daemon import LIMITS, with_daemon
from tests.service.test_faults import until
from tests.service.test_memory import carried, fetched, offered, ref_of
from tests.service.test_residency import port_of, used
from tests.service.test_upload import MIB, item, noise


class Raw:
    """A client that says what it likes."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        data, descriptors, _, _ = socket.recv_fds(link, wire.MAX_PACKET_BYTES, 2)
        assert isinstance(wire.decode_packet(data), wire.Window)
        (self.fd,) = descriptors
        self.window = Window.attach(self.fd, PLACES, PLACE_BYTES)

    def say(self, *packets: wire.Packet | bytes) -> None:
        for packet in packets:
            self.link.send(packet if isinstance(packet, bytes) else wire.encode_packet(packet))

    def hear(self) -> Any:
        data = self.link.recv(wire.MAX_PACKET_BYTES)
        return wire.decode_packet(data) if data else None


@contextmanager
def raw(near: Server) -> Iterator[Raw]:
    with RemoteEngine(near.target, memory=True) as engine:
        engine.ping()
        path, _ = offered(engine.session)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.settimeout(20)
        link.connect(path)
        client = Raw(link)
        yield client
        client.window.close()
        os.close(client.fd)


def open_in(process: int | str) -> list[str]:
    """What the descriptors of a process lead to."""
    found = []
    for fd in os.listdir(f"/proc/{process}/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{process}/fd/{fd}"))
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(near: Server) -> Iterator[None]:
    """Not a descriptor, not a connection, not a reservation; and the server goes on."""
    yield
    until(lambda: near.metric("farsum_memory_connections") == 0, "a connection is left")
    until(lambda: near.metric("farsum_uploads_in_progress") == 0, "an upload is left")
    for process in ("self", near.process.pid):
        assert not [found for found in open_in(process) if "farsum-window" in found]
    assert near.process.poll() is None and not near.other_output
    with RemoteEngine(near.target, memory=True) as engine:
        assert engine.prepare(gaussian_sum()).run(points(50, 3)).values[0].shape == (50, 1)


def header(array: Any, **more: Any) -> wire.Upload:
    return wire.Upload(ref_of(array), array.nbytes + len(tensor.header_of(array)), **more)


ARRAY = noise(1, seed=80)
UPLOAD = header(ARRAY)
LIES: dict[str, tuple[list[wire.Packet | bytes], type[FarsumError], str]] = {
    "garbage": ([b"\xff" * 100], WireError, "no Packet"),
    "a truncated header": ([wire.encode_packet(UPLOAD)[:-5]], WireError, "no Packet"),
    "an empty message": ([b"\x00"], WireError, "no Packet"),
    "a packet without end": ([bytes(100_000)], WireError, "none is so long"),
    "no transfer": ([wire.Taken()], WireError, "where a transfer was due"),
    "the greeting of a server": ([wire.Window(bytes(16), 4, PLACE_BYTES)], WireError, "a transfer was due"),
    "another transfer within": ([UPLOAD, UPLOAD], WireError, "Upload came where Filled was due"),
    "nothing in a place": ([UPLOAD, wire.Filled(0)], WireError, "holds 0"),
    "more than a place": ([UPLOAD, wire.Filled(PLACE_BYTES + 1)], WireError, "holds 1048577"),
    "more than is due": ([UPLOAD, wire.Filled(PLACE_BYTES), wire.Filled(PLACE_BYTES)], WireError, "are due"),
    "another array": ([UPLOAD, wire.Filled(PLACE_BYTES), wire.Filled(UPLOAD.stream_bytes - PLACE_BYTES)], WireError, "no Arrow|digest"),
    "shape and bytes": ([wire.Upload(ArrayRef(bytes(32), "float32", (7, 3)), 1 << 20)], WireError, "does not carry"),
    "shape that overflows": ([wire.Upload(ArrayRef(bytes(32), "float32", (1 << 40, 1 << 30)), 1 << 20)], FarsumError, "larger|bytes"),
    "more than there is": ([wire.Upload(ArrayRef(bytes(32), "float32", (1 << 30,)), (4 << 30) + 192)], StoreFull, "fit"),
    "compressed": ([header(ARRAY, codec="lz4")], WireError, "not compressed"),
    "to go on from nowhere": ([header(ARRAY, offset=1000)], TruncatedStream, "send all of it"),
    "a download that nobody takes": ([wire.Download(b"no such ticket!!")], FarsumError, "no longer here"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lies(near: Server, lie: str) -> None:
    packets, kind, says = LIES[lie]
    before = used(near)
    with raw(near) as client:
        client.say(*packets)
        answer = client.hear()
        while isinstance(answer, wire.Ahead | wire.Taken):
            answer = client.hear()
        assert isinstance(answer, wire.Failure) and isinstance(answer.error, kind)
        with pytest.raises(kind, match=says):
            raise answer.error
        assert client.hear() is None
    assert used(near) == before


@pytest.mark.parametrize("what", ["a pipe", "a directory", "many", "a shrunk memory"])
def test_descriptors_are_not_taken(near: Server, what: str) -> None:
    """Nothing that a client sends along is opened, mapped or kept; what it asks is answered all the same."""
    with ExitStack() as opened, raw(near) as client:
        if what == "a pipe":
            fds = list(os.pipe())
        elif what == "a shrunk memory":
            fds = [os.memfd_create("small")]
        else:
            fds = [os.open("/", os.O_RDONLY) for _ in range(200 if what == "many" else 1)]
        for fd in fds:
            opened.callback(os.close, fd)
        sent = {os.readlink(f"/proc/self/fd/{fd}") for fd in fds}
        for _ in range(3):
            client.link.sendmsg(
                [wire.encode_packet(wire.Taken() if what == "many" else UPLOAD)],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))],
            )
        assert isinstance(client.hear(), wire.Failure if what == "many" else wire.Ahead)
        assert not sent & set(open_in(near.process.pid))


def test_the_memory_keeps_its_size(near: Server) -> None:
    """Were it to shrink under a copy, SIGBUS would end the server."""
    with raw(near) as client:
        client.say(UPLOAD)
        assert client.hear() == wire.Ahead(UPLOAD.stream_bytes)
        for size in (0, PLACES * PLACE_BYTES // 2, PLACES * PLACE_BYTES * 2):
            with pytest.raises(PermissionError):
                os.ftruncate(client.fd, size)
        for seals in (fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SHRINK):
            with pytest.raises(OSError):
                fcntl.fcntl(client.fd, fcntl.F_ADD_SEALS, seals)
        with pytest.raises(OSError):
            os.posix_fallocate(client.fd, PLACES * PLACE_BYTES, 4096)
        head, body = tensor.header_of(ARRAY), memoryview(ARRAY.reshape(-1).view(np.uint8))
        for number, offset in enumerate((0, PLACE_BYTES)):
            client.say(wire.Filled(client.window.fill(number, head, body, offset)))
            assert client.hear() == wire.Taken()
        assert client.hear() == wire.Stored(ARRAY.nbytes)


def test_what_is_changed_after_it_was_taken_changes_nothing(near: Server) -> None:
    own = noise(5, seed=81)
    head, body = tensor.header_of(own), memoryview(own.reshape(-1).view(np.uint8))
    upload = header(own)
    with raw(near) as client:
        client.say(upload)
        assert client.hear() == wire.Ahead(upload.stream_bytes)
        offset = number = 0
        while offset < upload.stream_bytes:
            count = client.window.fill(number, head, body, offset)
            client.say(wire.Filled(count))
            assert client.hear() == wire.Taken()
            client.window.place(number)[:] = bytes(PLACE_BYTES)
            offset, number = offset + count, number + 1
        assert client.hear() == wire.Stored(own.nbytes)
    with RemoteEngine(near.target, memory=True) as engine:
        engine.ping()
        assert fetched(engine.session, ref_of(own)) == own.tobytes()


def test_bytes_that_have_another_digest(near: Server) -> None:
    own = noise(2, seed=82)
    with RemoteEngine(near.target, memory=True) as engine:
        engine.ping()
        session, wrong = engine.session, own.copy()
        wrong[0] += 1
        before = used(near)
        with pytest.raises(DigestMismatch):
            upload_array(session, item(wrong)._replace(digest=item(own).digest))
        assert session.claim(item(own).digest, session.token()).digests and used(near) == before


@pytest.mark.parametrize("fault", ["a pipe", "unsealed", "too small", "no memory at all"])
def test_windows_that_a_server_must_not_send(fault: str) -> None:
    """A client looks as well: SIGBUS would end it."""
    with ExitStack() as opened:
        if fault == "a pipe":
            fd, other = os.pipe()
            opened.callback(os.close, other)
        elif fault == "no memory at all":
            fd = os.open(__file__, os.O_RDONLY)
        else:
            fd = os.memfd_create("window", os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, PLACE_BYTES)
            if fault == "too small":
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        opened.callback(os.close, fd)
        with pytest.raises(WireError, match="window"):
            Window.attach(fd, 1 if fault == "unsealed" else 2, PLACE_BYTES)
        for places, size in ((0, 4096), (1 << 31, 1 << 31)):
            with pytest.raises(WireError, match="is none"):
                Window.attach(fd, places, size)


# ── who is killed when ────────────────────────────────────────────────────────────────────────────

KILLED = """
import signal, sys, os
import numpy as np
from farsum.remote import RemoteEngine
from farsum.upload import Item, upload_array
from farsum_proto.window import Window
from tests.service.test_memory import fetched, ref_of
from tests.service.test_upload import item, noise
array = noise(24, seed=int(sys.argv[3]))
with RemoteEngine(sys.argv[1], memory=True) as engine:
    engine.ping()
    if sys.argv[2] == "download":
        upload_array(engine.session, item(array))
    place, fill = Window.place, Window.fill
    def kill(self, number, *more):
        if number == 9:
            print("now", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP if sys.argv[4] == "stopped" else signal.SIGKILL)
        return (fill if more else place)(self, number, *more)
    Window.place = Window.fill = kill
    if sys.argv[2] == "upload":
        upload_array(engine.session, item(array))
    fetched(engine.session, ref_of(array))
"""


def killed(near: Server, way: str, seed: int, how: str = "killed") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", KILLED, near.target, way, str(seed), how]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert client.stdout and client.stdout.readline() == "now\n"
    client.stdout.close()
    return client


@pytest.mark.parametrize("way", ["upload", "download"])
def test_a_client_that_is_killed(near: Server, way: str) -> None:
    """Within a second all of the store is there for others again."""
    client = killed(near, way, 83)
    begun = time.monotonic()
    assert client.wait(20) == -signal.SIGKILL
    ref = ArrayRef(bytes(32), "float32", ((256 * MIB - 8192) // 4,))
    with RemoteEngine(near.target) as engine:
        while True:  # an upload of all that there is, of which the header alone is sent
            try:
                engine.session.upload(wire.Upload(ref, ref.nbytes + 192), iter([]))
            except TruncatedStream:
                break
            except StoreFull:
                assert time.monotonic() < begun + 1.0, "the memory of a dead client is still held"
                time.sleep(0.02)
    assert not near.metric("farsum_memory_connections")


@pytest.mark.parametrize("way", ["upload", "download"])
def test_a_client_that_stops(way: str, tmp_path: Path) -> None:
    with running("--memory-socket", str(tmp_path / "socket"), "--upload-idle-s", "0.3") as server:
        client = killed(server, way, 84, "stopped")
        until(lambda: server.metric("farsum_memory_connections") == 0, "it is still waited for")
        client.kill()
        client.wait()
        assert server.metric("farsum_uploads_in_progress") == 0 and not server.other_output


@pytest.mark.parametrize("way", ["upload", "result"])
def test_a_server_that_is_killed(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits for the next one, and goes on with it through memory: what the first one left is no hindrance."""
    flags = ("--memory-socket", str(tmp_path / "socket"))
    servers = [Server(*flags)]
    port, spec, arrays = (
        port_of(servers[0]),
        gaussian_sum(),
        points(1_500_000 if way == "result" else 700_000, 3),
    )
    place, fill = Window.place, Window.fill

    def kill(self: Window, number: int, *more: Any) -> Any:
        if number == 2 and len(servers) == 1 and bool(more) == (way == "upload"):
            servers[0].process.kill()
            servers[0].process.wait()
            servers.append(Server("--port", str(port), *flags))
        return fill(self, number, *more) if more else place(self, number)

    monkeypatch.setattr(Window, "fill", kill)
    monkeypatch.setattr(Window, "place", kill)
    try:
        with RemoteEngine(servers[0].target, away_s=60.0, memory=True) as engine:
            found = engine.prepare(spec).run(arrays).values[0]
        assert len(servers) == 2
        rows = np.arange(0, len(found), 100_000)
        np.testing.assert_allclose(found[rows], expected({**arrays, 0: arrays[0][rows]}), rtol=1e-5)
        assert carried(servers[1], "memory") > arrays[0].nbytes and carried(servers[1], "bulk") == 0
    finally:
        for server in servers:
            server.stop()


def test_a_client_that_reads_nothing(tmp_path: Path) -> None:
    """It asks for the end of an array, of which nothing has to be taken, until nothing more can be said to it."""
    with running("--memory-socket", str(tmp_path / "socket"), "--upload-idle-s", "0.3") as server:
        with RemoteEngine(server.target) as engine:
            upload_array(engine.session, item(ARRAY))
        with raw(server) as client:
            client.link.settimeout(1.0)
            with pytest.raises(OSError):
                while True:
                    client.say(wire.Download(ref_of(ARRAY), UPLOAD.stream_bytes))
            until(lambda: server.metric("farsum_memory_connections") == 0, "it is still waited for")
        assert server.stop() == 0, "the array that nobody takes keeps it from stopping"


def test_a_client_that_hurries() -> None:
    """Packets that are there already are not read one after the other while everybody else waits."""

    async def scenario(daemon: Daemon) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        window, fd = Window.create()
        os.close(fd)
        with ours, theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            packets: list[wire.Packet] = [UPLOAD, *[wire.Filled(1)] * 100]
            for packet in packets:
                theirs.send(wire.encode_packet(packet))
            serving = asyncio.create_task(Connection(daemon, ours, window, 10.0).run())
            heard = [0]
            while sum(heard) < 101:  # `ahead`, and `taken` for each
                await asyncio.sleep(0)
                heard.append(0)
                with suppress(BlockingIOError):
                    while theirs.recv(wire.MAX_PACKET_BYTES):
                        heard[-1] += 1
            assert max(heard) <= 2
            theirs.shutdown(socket.SHUT_RDWR)
            await asyncio.wait([serving])
            assert isinstance(serving.exception(), ConnectionError)
        del serving
        gc.collect()  # and with it the place that it looked into
        window.close()

    with_daemon("Worker", scenario, replace(LIMITS, store_bytes=4 * MIB))
