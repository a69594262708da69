"""One connection to a server: a kept stream that many threads share, and the bulk streams beside it.

Knows messages as bytes and values of farsum_proto.wire; knows no array and no formula.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING

import grpc

from farsum.address import address_of
from farsum.forks import mind_forks
from farsum.stream import Lost, Pending, Stream, rebuilt, unreachable
from farsum_kernels.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    FarsumError,
    ServerUnreachable,
    WireError,
)
from farsum_kernels.job import ArrayRef
from farsum_proto import wire

if TYPE_CHECKING:
    from farsum.memory import Link

OPTIONS = (
    ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # An own connection per engine, so that closing one never disturbs another.
    ("grpc.use_local_subchannel_pool", 1),
    # Shorter than the default second: a server that restarts is found again quickly.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
CALL_S = 60.0
# How long a server that was there and is not is waited for: a restart takes a few seconds.
AWAY_S = 20.0
# How much later than the server the client looks at a deadline: the server's answer is the better one.
PATIENCE_S = 2.0
# What a last word may take.
PARTING_S = 1.0
# How many arrays one message lets go of.
MAX_CLAIMS = 1024


class Session:
    """The connection of one engine. Opens its stream when it is needed, and another after a fork."""

    def __init__(self, target: str, client: str, away_s: float = AWAY_S, memory: bool = False) -> None:
        self.target = target
        self.away_s = away_s
        self._address = address_of(target)
        self._client = client
        self._lock = threading.RLock()
        self._ids = itertools.count(1)
        self._pid = os.getpid()
        self._channel: grpc.Channel | None = None
        self._stream: Stream | None = None
        self._numbers = itertools.count(1)
        self._holder = os.urandom(wire.HOLDER_BYTES)
        # Filled from wherever the collector runs, so nothing but an append is done there.
        self._released: deque[wire.Claim] = deque()
        self.greeted = False
        self.link_bytes_s: float | None = None  # how fast the last large upload was
        self.closed = False
        self._memory = None
        if memory and sys.platform == "linux":  # elsewhere no server offers it
            from farsum.memory import Memory

            self._memory = Memory(target)

    def link(self) -> AbstractContextManager[Link | None]:
        """A connection through memory for one array; None where gRPC is to carry it."""
        return self._memory.link() if self._memory else nullcontext()

    def rest(self) -> bool:
        """Hang up if nothing is under way, and say whether; the next call opens the connection again."""
        with self._lock:
            if self._channel is None or self._pid != os.getpid() or (self._stream and not self._stream.idle):
                return False
            self._hang_up(unreachable(self.target, "the process was about to fork"))
            return True

    def renew_lock(self) -> None:
        self._lock = threading.RLock()
        if self._memory:
            self._memory.after_fork()

    def _hang_up(self, cause: FarsumError) -> None:
        stream, channel, self._stream, self._channel = self._stream, self._channel, None, None
        if stream:
            stream.break_off(cause)
        if self._memory:
            self._memory.rest()
        if channel:
            channel.close()

    def channel(self) -> grpc.Channel:
        with self._lock:
            if self.closed:
                raise ServerUnreachable(f"the connection to {self.target} was closed")
            if self._pid != os.getpid():
                # What the parent opened is of no use here, and closing it would disturb the parent.
                self._inherited = (self._channel, self._stream)
                self._pid, self._channel, self._stream = os.getpid(), None, None
                self._holder = os.urandom(wire.HOLDER_BYTES)
            if self._channel is None:
                self._channel = grpc.insecure_channel(self._address, options=OPTIONS)
                mind_forks(self)
            return self._channel

    def stream(self) -> Stream:
        stream = self._stream
        if stream is not None and stream.broken is None and self._pid == os.getpid() and not self.closed:
            return stream
        with self._lock:
            channel = self.channel()
            if self._stream is None or self._stream.broken:
                stream = Stream(channel, self.target)
                try:
                    welcome = stream.greet(self._client, self._holder)
                    if self._memory:
                        self._memory.meet(welcome.passage)
                    self.greeted = True
                except BaseException:
                    stream.break_off(Cancelled("the greeting failed"))
                    raise
                self._stream = stream
            return self._stream

    def ask(
        self,
        request: wire.Request,
        on_progress: Callable[[wire.Progress], None] | None = None,
        on_sent: Callable[[Callable[[], None]], None] | None = None,
    ) -> wire.Reply:
        """Send a job and wait for its answer.

        `on_sent` is given a function that cancels the job from another thread.
        Raises Lost when the stream broke, else the error that the server sent.
        """
        return self._exchange(
            lambda id_: wire.encode_ask(id_, request), request.deadline_s, on_progress, on_sent, request.form
        )

    def knows(self, form: bytes) -> bool:
        """Has the stream that is open a number for jobs of this form?"""
        stream = self._stream
        return stream is not None and form in stream.known

    def again(
        self, stream: Stream, form: bytes, number: int, rooms: wire.Rooms, contents: list[bytes]
    ) -> wire.Said | wire.Outputs | wire.Need | None:
        """Ask for a small job by the number that its form has on this stream.

        None and Need where it has to be asked in full, whatever came between.
        """
        pending = Pending(next(self._ids), form=form)
        self._tell_released(stream)
        try:
            stream.send(rooms.ask(number, pending.id, contents), pending)
        except Lost:
            return None
        outcome = stream.wait(pending)
        return outcome if isinstance(outcome, wire.Said | wire.Outputs | wire.Need) else None

    def _exchange(
        self,
        message: Callable[[int], bytes],
        deadline_s: float | None = None,
        on_progress: Callable[[wire.Progress], None] | None = None,
        on_sent: Callable[[Callable[[], None]], None] | None = None,
        form: bytes = b"",
    ) -> wire.Reply:
        stream = self.stream()
        pending = Pending(next(self._ids), on_progress, form)
        self._tell_released(stream)
        stream.send(message(pending.id), pending)
        if on_sent:
            on_sent(lambda: stream.cancel(pending))
        watchdog = self._watch(stream, pending, deadline_s)
        try:
            outcome = stream.wait(pending)
        finally:
            if watchdog:
                watchdog.cancel()
        if isinstance(outcome, wire.Failure):
            if outcome.retry_after_s:
                outcome.error.retry_after_s = outcome.retry_after_s
            raise outcome.error
        if isinstance(outcome, Lost):
            if pending.expired:
                raise DeadlineExceeded(f"{self.target} did not answer within {deadline_s:g} s")
            raise outcome
        if isinstance(outcome, wire.Said):
            raise WireError(f"{self.target} answered a message with a packet")
        return outcome

    # ── arrays that are held there ────────────────────────────────────────────────────────────────

    def token(self) -> bytes:
        """A token of its own for each array, or for the results of one job, that the server is to hold."""
        return self._holder + next(self._numbers).to_bytes(wire.TOKEN_BYTES - wire.HOLDER_BYTES, "little")

    def claim(self, digest: bytes, token: bytes) -> wire.Need:
        """Hold an array; the answer names it if it is not there. Raises what `ask` raises."""
        residency = wire.Residency(((digest, token),), self._take_released())
        reply = self._exchange(lambda id_: wire.encode_residency(id_, residency), CALL_S)
        if not isinstance(reply, wire.Need):
            raise WireError(f"{self.target} answered a claim with {type(reply).__name__}")
        return reply

    def let_go(self, digest: bytes, token: bytes) -> None:
        """The token holds the array no more; the server is told with the next message. Takes no lock."""
        self._released.append((digest, token))

    def flush(self, patience_s: float = CALL_S) -> None:
        """Tell the server now what it need not hold, if it is there to be told."""
        stream = self._stream
        if not self._released or stream is None or stream.broken or self._pid != os.getpid() or self.closed:
            return
        with suppress(FarsumError, Lost):
            released = wire.Residency(release=self._take_released())
            self._exchange(lambda id_: wire.encode_residency(id_, released), patience_s)

    def _tell_released(self, stream: Stream) -> None:
        if self._released:
            stream.tell(wire.encode_residency(0, wire.Residency(release=self._take_released())))

    def _take_released(self) -> tuple[wire.Claim, ...]:
        return tuple([self._released.popleft() for _ in range(min(len(self._released), MAX_CLAIMS))])

    @staticmethod
    def _watch(stream: Stream, pending: Pending, deadline_s: float | None) -> threading.Timer | None:
        """The server keeps deadlines. This is for a server that has stopped answering."""
        if deadline_s is None:
            return None

        def expire() -> None:
            pending.expired = True
            stream.break_off(ServerUnreachable("the server stopped answering"))

        timer = threading.Timer(deadline_s + PATIENCE_S, expire)
        timer.daemon = True
        timer.start()
        return timer

    def call(self, method: str, data: bytes, timeout_s: float = CALL_S) -> bytes:
        """A unary call."""
        try:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel().unary_unary(
                wire.METHODS[method]
            )
            return call(data, timeout=timeout_s)
        except grpc.RpcError as error:
            raise rebuilt(error, self.target) from error

    def upload(self, upload: wire.Upload, chunks: Iterator[bytes]) -> None:
        """Send one array over a stream of its own."""
        messages = itertools.chain((wire.encode_upload(upload),), chunks)
        try:
            call: grpc.StreamUnaryMultiCallable[bytes, bytes] = self.channel().stream_unary(
                wire.METHODS["Upload"]
            )
            call(messages)
        except grpc.RpcError as error:
            raise self._broken(error) from error

    def _broken(self, error: grpc.RpcError) -> FarsumError | Lost:
        """What a bulk stream ended with. One that nobody cancelled was lost with its connection."""
        found = rebuilt(error, self.target)
        if isinstance(found, Cancelled) and not self.closed:
            return Lost(unreachable(self.target, "the connection was cut"))
        return Lost(found) if isinstance(found, ServerUnreachable | Draining) else found

    def download(
        self, what: bytes | ArrayRef, into: memoryview, exact: bool = True, received: list[int] | None = None
    ) -> int:
        """Fetch one large result by its ticket, or an array that is held there; gives the number of bytes.

        exact      raise unless there are as many as there is room
        received   holds how many are there from an attempt that was broken off, and is kept up to date
        """
        received = received or [0]
        with self.link() as link:
            if link:
                try:
                    link.download(what, into, received)
                except FarsumError as error:
                    raise (Lost(error) if isinstance(what, bytes) else error) from error
            else:
                self._fetch(what, into, received)
        if exact:
            wire.check_complete(received[0], len(into))
        return received[0]

    def _fetch(self, what: bytes | ArrayRef, into: memoryview, received: list[int]) -> None:
        method: grpc.UnaryStreamMultiCallable[bytes, bytes] = self.channel().unary_stream(
            wire.METHODS["Download"]
        )
        call = method(wire.encode_download(what, received[0]))
        try:
            for chunk in call:
                end = received[0] + len(chunk)
                if end > len(into):
                    wire.check_complete(end, len(into))
                into[received[0] : end] = chunk
                received[0] = end
        except grpc.RpcError as error:
            found = self._broken(error)
            if isinstance(what, bytes) and isinstance(found, FarsumError):
                raise Lost(found) from error
            raise found from error
        finally:
            call.cancel()

    def close(self) -> None:
        """Close the connection. Jobs under way are cancelled on the server and fail here with Cancelled."""
        self.flush(PARTING_S)
        with self._lock:
            self.closed = True
            if self._memory:
                self._memory.close()
            if self._pid != os.getpid():
                return
            self._hang_up(Cancelled(f"the connection to {self.target} was closed"))
