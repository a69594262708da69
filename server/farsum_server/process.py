"""The worker process, and the daemon's handle on it.

The process owns native code: it alone compiles and runs, so a crash or an exhausted memory costs one
worker. It is spawned, never forked, and decides nothing: it performs one action after the other. This
module imports no native code itself; the process loads the worker class that it is told to.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import structlog

from farsum_proto import wire
from farsum_server.arena import Arena
from farsum_server.performer import Performer

WORKER = "farsum_server.worker:Worker"

# Longer messages go in several packets. A packet of numbers starts with wire.NUMBERS.
_MORE, _LAST = b"\x01", b"\x00"

log = structlog.get_logger("farsum.worker")


def fragments(message: bytes) -> list[bytes]:
    """A message as packets; the first byte says whether another one follows."""
    if len(message) <= wire.PACKET_BYTES:
        return [_LAST + message]
    parts = [message[n : n + wire.PACKET_BYTES] for n in range(0, len(message), wire.PACKET_BYTES)]
    return [_MORE + p for p in parts[:-1]] + [_LAST + parts[-1]]


class Joiner:
    """Packets back to messages."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def add(self, packet: bytes) -> bytes | None:
        """The message that this packet completes, if it does."""
        if packet[:1] == _MORE:
            self._parts.append(packet[1:])
            return None
        if not self._parts:
            return packet[1:]
        message = b"".join([*self._parts, packet[1:]])
        self._parts.clear()
        return message


# ── inside the process ────────────────────────────────────────────────────────────────────────────


def serve(channel: socket.socket, performer: Performer, device: wire.Device) -> None:
    """Perform actions until the daemon closes its end."""

    def send(job: int, event: wire.Event) -> None:
        for packet in fragments(wire.encode_event(job, event)):
            channel.send(packet)

    send(0, wire.Ready(device))
    joiner, inbox = Joiner(), performer.inbox
    while size := channel.recv_into(inbox):
        if inbox[0] == wire.NUMBERS:
            job, number = wire.decode_head(inbox)
            answer = performer.again(job, number)
            if isinstance(answer, memoryview):
                channel.send(answer)
            else:
                send(job, answer)
        elif message := joiner.add(bytes(inbox[:size])):
            job, action = wire.decode_action(message)
            if event := performer.perform(job, action, send):
                send(job, event)


def main() -> None:
    parser = argparse.ArgumentParser(description="A worker of the farsum daemon, which starts it.")
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--arena", type=int, required=True)
    parser.add_argument("--arena-bytes", type=int, required=True)
    parser.add_argument("--worker", default=WORKER)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    # Ctrl-C and a service manager signal the whole group. The daemon drains; a worker ends when the
    # daemon closes the channel, or dies.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from farsum_server.logs import configure_logs

    configure_logs()
    module, _, name = args.worker.partition(":")
    worker = getattr(importlib.import_module(module), name)(threads=args.threads, device=args.device)
    performer = Performer(worker, Arena(args.arena, args.arena_bytes))
    with socket.socket(fileno=args.channel) as channel, suppress(BrokenPipeError, ConnectionResetError):
        serve(channel, performer, wire.Device(worker.name, worker.kind, worker.threads))


# ── inside the daemon ─────────────────────────────────────────────────────────────────────────────

OnEvent = Callable[[int, int, wire.Event | wire.Said], None]


class WorkerProcess:
    """The handle: starts the process, sends actions without blocking, reports events and death.

    Must be used from the event loop's thread. After `on_lost` has been called, or `stop`, it may be
    started again.
    """

    def __init__(
        self,
        number: int,
        arena: Arena,
        on_event: OnEvent,
        on_lost: Callable[[int], None],
        *,
        threads: int | None = None,
        worker: str = WORKER,
        device: str = "cpu",
    ) -> None:
        self.number = number
        self.starts = 0
        self._arena = arena
        self._on_event = on_event
        self._on_lost = on_lost
        self._options = [
            "--worker",
            worker,
            "--device",
            device,
            *(["--threads", str(threads)] if threads else []),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._joiner = Joiner()
        self._unsent: deque[bytes] = deque()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "farsum_server.process", "--channel", str(theirs.fileno()),
                 "--arena", str(self._arena.fd), "--arena-bytes", str(self._arena.size), *self._options],
                pass_fds=(theirs.fileno(), self._arena.fd),
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self.starts += 1
        self._channel = ours
        self._poll = select.poll()
        self._poll.register(ours, select.POLLIN)
        self._joiner = Joiner()
        self._unsent.clear()
        asyncio.get_running_loop().add_reader(ours.fileno(), self._readable)

    def send(self, job: int, action: wire.Action) -> None:
        if self._channel is None:
            return  # Lost a moment ago; `on_lost` tells the queue, which runs the job again.
        packets = fragments(wire.encode_action(job, action))
        if self._unsent:
            self._unsent.extend(packets)
            return
        for n, packet in enumerate(packets):
            try:
                self._channel.send(packet)
            except BlockingIOError:
                self._unsent.extend(packets[n:])
                asyncio.get_running_loop().add_writer(self._channel.fileno(), self._writable)
                return
            except OSError:
                return  # The reader sees the end of the channel and reports it.

    def _writable(self) -> None:
        assert self._channel is not None
        while self._unsent:
            try:
                self._channel.send(self._unsent[0])
            except BlockingIOError:
                return
            except OSError:
                break
            self._unsent.popleft()
        asyncio.get_running_loop().remove_writer(self._channel.fileno())

    def offer(self, packet: bytes) -> bool:
        """Send a packet of numbers, whose answer `answer` waits for, if that can be done at once."""
        if self._channel is None or self._unsent:
            return False
        try:
            self._channel.send(packet)
        except OSError:
            return False  # its buffer is full; or it has ended, which the reader sees and reports
        return True

    def answer(self, job: int, seconds: float) -> bytes | None:
        """Wait here for the answer to a packet: sooner done than going round the loop.

        None when it does not come in time, or something else does: that is reported like any event.
        """
        channel = self._channel
        assert channel is not None
        try:
            if not self._poll.poll(1000 * seconds):
                return None
            packet = channel.recv(wire.PACKET_BYTES + 1)
        except OSError:
            return None  # the reader sees the end of the channel and reports it
        if packet and packet[0] == wire.NUMBERS and wire.decode_head(packet)[0] == job:
            return packet
        if packet:
            asyncio.get_running_loop().call_soon(self._take_later, channel, packet)
        return None

    def _take_later(self, channel: socket.socket, packet: bytes) -> None:
        if channel is self._channel:  # of a process that has ended everything was reported
            self._take(packet)

    def _readable(self) -> None:
        assert self._channel is not None
        try:
            packet = self._channel.recv(wire.PACKET_BYTES + 1)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        self._take(packet)

    def _take(self, packet: bytes) -> None:
        if not packet:
            self._close()
            self._on_lost(self.number)
        elif packet[0] == wire.NUMBERS:
            self._on_event(self.number, wire.decode_head(packet)[0], wire.Said(packet))
        elif message := self._joiner.add(packet):
            self._on_event(self.number, *wire.decode_event(message))

    def kill(self) -> None:
        """End it at once. `on_lost` follows."""
        if self._process:
            self._process.kill()

    def _close(self) -> None:
        if self._channel is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._channel.fileno())
            loop.remove_writer(self._channel.fileno())
            self._channel.close()
            self._channel = None
        process, self._process = self._process, None
        if process:
            process.kill()
            # The kernel may take a while to tear down a large process; the loop does not wait for it.
            asyncio.get_running_loop().run_in_executor(None, process.wait)

    def stop(self) -> None:
        """End it for good; `on_lost` is not called."""
        self._close()


if __name__ == "__main__":
    main()
