"""Large arrays to and from a server on this machine, through memory that both map. Decides nothing about when.

Only where the user wants it and the server offers it; where it cannot be reached, gRPC carries them as before.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from farsum.stream import Lost, unreachable
from farsum_kernels.errors import Draining, FarsumError, ServerUnreachable, WireError
from farsum_kernels.job import ArrayRef
from farsum_proto import wire
from farsum_proto.window import Window

CONNECT_S = 2.0
# A server that says nothing for so long has stopped.
PATIENCE_S = 60.0
# So many connections are kept for the next transfers.
MAX_IDLE = 4

P = TypeVar("P", bound=wire.Packet)
Q = TypeVar("Q", bound=wire.Packet)


class Memory:
    """The connections of one session to the socket beside gRPC. Each carries one transfer at a time."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._offer: wire.Passage | None = None
        self._links: set[Link] = set()
        self._idle: list[Link] = []
        self._lock = threading.Lock()

    def meet(self, offer: wire.Passage | None) -> None:
        """What the server offers, as it has just said."""
        self.rest()
        with self._lock:
            self._offer = offer

    @contextmanager
    def link(self) -> Iterator[Link | None]:
        """A connection for one transfer; None if there is no way to the server but gRPC."""
        link = self._take()
        try:
            yield link
        except BaseException:
            if link:
                self._drop(link)
            raise
        if link:
            with self._lock:
                keep = link in self._links and len(self._idle) < MAX_IDLE
                if keep:
                    self._idle.append(link)
            if not keep:
                self._drop(link)

    def _take(self) -> Link | None:
        while True:
            with self._lock:
                offer, link = self._offer, self._idle.pop() if self._idle else None
            if link is None:
                break
            if link.alive:
                return link
            self._drop(link)
        if offer is None:
            return None
        try:
            link = Link(offer, self._target)
        except (OSError, WireError):
            link = None  # not on this machine, or not for this user; the next greeting may offer another
        with self._lock:
            current = self._offer is offer  # neither closed nor greeted anew meanwhile
            if current and link:
                self._links.add(link)
            elif current:
                self._offer = None
        if link and not current:
            link.close()
            link = None
        return link

    def _drop(self, link: Link) -> None:
        with self._lock:
            self._links.discard(link)
        link.close()

    def rest(self) -> None:
        """Close what carries nothing now."""
        with self._lock:
            idle, self._idle = self._idle, []
        for link in idle:
            self._drop(link)

    def after_fork(self) -> None:
        """In a child: what the parent opened is the parent's."""
        self._lock = threading.Lock()
        links, self._links, self._idle = self._links, set(), []
        for link in links:
            link.close()

    def close(self) -> None:
        """Close all connections; whoever waits on one learns that it is lost."""
        self.rest()
        with self._lock:
            links, self._links, self._offer = self._links, set(), None
        for link in links:
            link.hang_up()


class Link:
    """One connection, and the window that the server gave it.

    Raises OSError and WireError when nobody answers there, or not the server that made the offer.
    """

    def __init__(self, offer: wire.Passage, target: str) -> None:
        self._target = target
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.settimeout(CONNECT_S)
            self._socket.connect(offer.path)
            self._window = self._greeted(offer)
            self._socket.settimeout(PATIENCE_S)
        except BaseException:
            self._socket.close()
            raise

    def _greeted(self, offer: wire.Passage) -> Window:
        _, uid, _ = struct.unpack("3i", self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.geteuid():
            raise WireError(f"{offer.path} is of another user")
        room = socket.CMSG_SPACE(struct.calcsize("i"))
        data, ancillary, _, _ = self._socket.recvmsg(wire.MAX_PACKET_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        fds = [
            fd
            for level, kind, found in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            for (fd,) in struct.iter_unpack("i", found)
        ]
        try:
            packet = wire.decode_packet(data)
            if not isinstance(packet, wire.Window) or packet.server != offer.server or len(fds) != 1:
                raise WireError(f"{offer.path} is of another server")
            return Window.attach(fds[0], packet.places, packet.place_bytes)
        finally:
            for fd in fds:
                os.close(fd)

    @property
    def alive(self) -> bool:
        """Has the server neither hung up nor said anything?"""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def upload(self, upload: wire.Upload, header: bytes, body: memoryview) -> None:
        """Send one array from the offset of the upload on. Raises Lost, and what the server raises."""
        self._say(upload)
        if isinstance(self._hear(wire.Ahead, wire.Stored), wire.Stored):
            return  # it was there
        offset, filled, taken = upload.offset, 0, 0
        while offset < upload.stream_bytes:
            if filled - taken == self._window.places:
                self._hear(wire.Taken)
                taken += 1
            count = self._window.fill(filled, header, body, offset)
            self._say(wire.Filled(count))
            offset, filled = offset + count, filled + 1
        for _ in range(filled - taken):
            self._hear(wire.Taken)
        self._hear(wire.Stored)

    def download(self, what: bytes | ArrayRef, into: memoryview, received: list[int]) -> None:
        """Fetch one stream; `received` holds how much of it is there, and is kept up to date.

        Raises Lost, TruncatedStream for more than there is room, and what the server raises.
        """
        self._say(wire.Download(what, received[0]))
        size, number = self._hear(wire.Ahead).stream_bytes, 0
        if size > len(into):
            wire.check_complete(size, len(into))
        while received[0] < size:
            count = self._hear(wire.Filled).nbytes
            end = received[0] + count
            if not 0 < count <= min(self._window.place_bytes, size - received[0]):
                raise WireError(f"{self._target} filled a place with {count} bytes")
            into[received[0] : end] = self._window.place(number)[:count]
            received[0] = end
            number += 1
            self._say(wire.Taken())

    def _say(self, packet: wire.Packet) -> None:
        try:
            self._socket.send(wire.encode_packet(packet))
        except OSError as error:
            raise self._lost(error) from error

    def _hear(self, kind: type[P], other: type[Q] | None = None) -> P | Q:
        """The next packet, which is to be of this kind, or of the other."""
        try:
            data = self._socket.recv(wire.MAX_PACKET_BYTES)
        except OSError as error:
            raise self._lost(error) from error
        if not data:
            raise self._lost("it hung up")
        packet = wire.decode_packet(data)
        if isinstance(packet, wire.Failure):
            raise _meant(packet)
        if isinstance(packet, kind) or (other and isinstance(packet, other)):
            return packet
        raise WireError(f"{self._target} said {type(packet).__name__} out of turn")

    def _lost(self, reason: object) -> Lost:
        return Lost(unreachable(self._target, f"through memory: {reason}"))

    def hang_up(self) -> None:
        """Wake the thread that waits on this connection, which then closes it."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
        self._window.close()


def _meant(failure: wire.Failure) -> FarsumError | Lost:
    """What the server means by an error. One that goes away will be there again."""
    error = failure.error
    if failure.retry_after_s:
        error.retry_after_s = failure.retry_after_s
    return Lost(error) if isinstance(error, ServerUnreachable | Draining) else error
