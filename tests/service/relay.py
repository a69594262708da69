"""A slow link on the loopback: a TCP relay with a bandwidth, a delay each way and a switch that cuts it.

Real sockets through real threads: no privileges and no kernel support are needed.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from contextlib import suppress
from types import TracebackType

# A token bucket: this much may pass at once after a pause.
BURST_BYTES = 16 << 10
# What is on its way at most, each way; a sender is held up beyond, as by the buffers of a real link.
QUEUE_BYTES = 256 << 10


class Relay:
    """Listens on a free port and passes everything on to `to`, a loopback port.

    bits_per_s   the bandwidth of each direction, None for no limit
    delay_s      added to each direction: half of the round trip

    `sent` and `received` count the bytes of TCP payload that clients have sent and received.

    >>> Relay(50051, bits_per_s=100e6, delay_s=0.010)  # doctest: +SKIP
    """

    def __init__(self, to: int, bits_per_s: float | None = None, delay_s: float = 0.0) -> None:
        self._to = to
        self._bytes_per_s = None if bits_per_s is None else bits_per_s / 8
        self._delay_s = delay_s
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.sent = self.received = 0
        self.cut_after: int | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def target(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection that is open, in the middle of whatever it carries. New ones are served."""
        with self._lock:
            broken, self._open = self._open, set()
        for s in broken:
            with suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                near.close()
                continue
            for s in (near, far):
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {near, far}
            _Direction(self, near, far, "sent")
            _Direction(self, far, near, "received")

    def count(self, counter: str, size: int) -> None:
        with self._lock:
            setattr(self, counter, getattr(self, counter) + size)
        if self.cut_after is not None and self.sent >= self.cut_after:
            self.cut_after = None
            self.cut()


class _Direction:
    """One way of one connection: a thread that reads, and one that writes what has been long enough under way."""

    def __init__(self, relay: Relay, source: socket.socket, sink: socket.socket, counter: str) -> None:
        self._relay, self._source, self._sink, self._counter = relay, source, sink, counter
        self._way: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._changed = threading.Condition()
        for work in (self._read, self._write):
            threading.Thread(target=work, daemon=True).start()

    def _read(self) -> None:
        rate, free_at = self._relay._bytes_per_s, 0.0
        data = b"x"
        while data:
            try:
                data = self._source.recv(1 << 14)
            except OSError:
                data = b""
            now = time.monotonic()
            if rate is not None:
                # The link is busy until `free_at`; a pause fills the bucket no further than the burst.
                free_at = max(free_at, now - BURST_BYTES / rate) + len(data) / rate
            with self._changed:
                self._changed.wait_for(lambda: self._size < QUEUE_BYTES)
                self._way.append((max(now, free_at) + self._relay._delay_s, data))
                self._size += len(data)
                self._changed.notify_all()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._way))
                due, data = self._way[0]
            if (pause := due - time.monotonic()) > 0:
                time.sleep(pause)
            self._relay.count(self._counter, len(data))
            with suppress(OSError):
                if data:
                    self._sink.sendall(data)
                else:
                    self._sink.shutdown(socket.SHUT_WR)
            with self._changed:
                self._way.popleft()
                self._size -= len(data)
                self._changed.notify_all()
            if not data:
                return
