"""The socket beside gRPC: large arrays of clients on this machine, through memory that both sides map.

It carries what bulk.py sends and receives, and decides nothing else. A client never sees the arena, and no
descriptor of a client is ever taken: the window that a connection copies through is the server's, of a sealed size.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TypeVar

import structlog

from farsum_kernels.errors import FarsumError, WireError
from farsum_proto import wire
from farsum_proto.window import Window
from farsum_server.clients import Client
from farsum_server.daemon import Daemon, internal
from farsum_server.local_socket import listen, peer_of

log = structlog.get_logger("farsum.memory")

# Each has a window of 4 MiB; whoever comes beyond goes over gRPC.
MAX_CONNECTIONS = 64
# A connection that carries nothing for so long is closed; its client opens another when it needs one.
IDLE_S = 60.0
# So long a client that made a mistake may take to read what it was.
PARTING_S = 1.0
_PAUSE_S = 0.1

P = TypeVar("P", bound=wire.Packet)


class MemoryServer:
    """Listens at a path, see `check_path`, from `open` on, until `close`.

    idle_s   a transfer that does not go on for so long is broken off
    """

    def __init__(self, daemon: Daemon, path: Path, idle_s: float) -> None:
        self._daemon = daemon
        self._idle_s = idle_s
        self._path = path
        self._listener: socket.socket | None = None
        self._inode = 0
        self._accepting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        daemon.metrics.watch(
            "memory_connections", "Connections to the memory socket.", lambda: len(self._tasks)
        )
        self.offer = wire.Passage(str(path), secrets.token_bytes(16))

    def open(self) -> None:
        """Raises ServerUnreachable when the path is taken."""
        self._listener = listen(self._path)
        self._inode = self._path.stat().st_ino
        self._accepting = asyncio.create_task(self._accept(self._listener))

    async def close(self) -> None:
        """Hang up; what is under way is broken off."""
        if self._listener is None or self._accepting is None:
            return
        self._accepting.cancel()
        with suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(self._accepting, *self._tasks, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                link, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.error("memory socket", error=error.strerror)
                await asyncio.sleep(_PAUSE_S)
                continue
            if len(self._tasks) >= MAX_CONNECTIONS or peer_of(link) != os.geteuid():
                link.close()
                continue
            task = asyncio.create_task(self._serve(link))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, link: socket.socket) -> None:
        window = None
        try:
            window, fd = Window.create()
            try:
                greeting = wire.Window(self.offer.server, window.places, window.place_bytes)
                socket.send_fds(link, [wire.encode_packet(greeting)], [fd])
            finally:
                os.close(fd)
            await Connection(self._daemon, link, window, self._idle_s).run()
        except (OSError, TimeoutError):
            pass  # The client went away, or did not go on.
        except Exception as error:
            internal(error, "Memory")
        finally:
            link.close()
            if window:
                window.close()


class Connection:
    """One client, one transfer after another."""

    def __init__(self, daemon: Daemon, link: socket.socket, window: Window, idle_s: float) -> None:
        self._daemon = daemon
        self._link = link
        self._window = window
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._tenant = Client().tenant

    async def run(self) -> None:
        """Return when the client has made a mistake and was told.

        Raises OSError when it hangs up, TimeoutError when it does not go on.
        """
        while True:
            async with asyncio.timeout(IDLE_S):
                data = await self._read()
            begun, method, code = time.perf_counter(), "Memory", "OK"
            try:
                match packet := wire.decode_packet(data):
                    case wire.Upload():
                        method = "MemoryUpload"
                        await self._upload(packet)
                    case wire.Download():
                        method = "MemoryDownload"
                        await self._download(packet)
                    case _:
                        raise WireError(f"{type(packet).__name__} came where a transfer was due")
            except FarsumError as error:
                code = error.status.grpc
                await self._part(error)
                return
            except (OSError, TimeoutError):
                code = "CANCELLED"
                raise
            except Exception as error:
                code = "INTERNAL"
                await self._part(internal(error, method))
                return
            finally:
                self._daemon.metrics.answered(method, code, time.perf_counter() - begun)

    async def _upload(self, upload: wire.Upload) -> None:
        if upload.codec:
            raise WireError("what goes through memory is not compressed")
        async with aclosing(self._pieces(upload)) as pieces:
            stored = await self._daemon.upload(self._tenant, upload, pieces, "memory")
        await self._say(wire.Stored(stored))

    async def _pieces(self, upload: wire.Upload) -> AsyncGenerator[memoryview, None]:
        """What the client fills in; each piece is good until the next is asked for."""
        await self._say(wire.Ahead(upload.stream_bytes))
        due, number = upload.stream_bytes - upload.offset, 0
        while due:
            count = (await self._hear(wire.Filled)).nbytes
            if not 0 < count <= min(due, self._window.place_bytes):
                raise WireError(f"a place of {self._window.place_bytes} bytes holds {count}; {due} are due")
            yield self._window.place(number)[:count]
            await self._say(wire.Taken())
            due, number = due - count, number + 1

    async def _download(self, download: wire.Download) -> None:
        async with self._daemon.download(download.what, self._tenant, "memory") as (header, body):
            size, offset = len(header) + len(body), download.offset
            filled = taken = 0
            await self._say(wire.Ahead(size))
            while offset < size or taken < filled:
                if offset < size and filled - taken < self._window.places:
                    count = self._window.fill(filled, header, body, offset)
                    await self._say(wire.Filled(count))
                    offset, filled = offset + count, filled + 1
                else:
                    async with asyncio.timeout(self._idle_s):
                        await self._hear(wire.Taken)
                    taken += 1

    async def _say(self, packet: wire.Packet) -> None:
        """Raises TimeoutError when the client reads nothing for long."""
        async with asyncio.timeout(self._idle_s):
            await self._loop.sock_sendall(self._link, wire.encode_packet(packet))

    async def _hear(self, kind: type[P]) -> P:
        packet = wire.decode_packet(await self._read())
        if not isinstance(packet, kind):
            raise WireError(f"{type(packet).__name__} came where {kind.__name__} was due")
        return packet

    async def _read(self) -> bytes:
        """One packet. Raises ConnectionError when the client is gone; descriptors that came with it are dropped."""
        await asyncio.sleep(
            0
        )  # one that is there is read at once: without this a client that hurries stops the loop
        data = await self._loop.sock_recv(self._link, wire.MAX_PACKET_BYTES)
        if not data:
            raise ConnectionAbortedError("the client hung up")
        return data

    async def _part(self, error: FarsumError) -> None:
        """Say what was wrong, and wait until it is read: closing earlier could take it back."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(PARTING_S):
                await self._say(wire.Failure(error, wire.retry_after(error)))
                self._link.shutdown(socket.SHUT_WR)
                while await self._loop.sock_recv(self._link, wire.MAX_PACKET_BYTES):
                    pass
