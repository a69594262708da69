"""One connection to a server: a kept stream that many threads share, and the bulk streams beside it.

Knows messages as bytes and values of farsum_proto.wire; knows no array and no formula. Whoever waits
for an answer reads the stream itself: there is no reader thread to hand over to.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue

import grpc

from farsum.forks import mind_forks
from farsum_kernels.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    FarsumError,
    InternalError,
    MessageTooLarge,
    ServerUnreachable,
    WireError,
)
from farsum_kernels.job import ArrayRef
from farsum_proto import wire

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
CONNECT_S = 10.0
CALL_S = 60.0
# How long a server that was there and is not is waited for: a restart takes a few seconds.
AWAY_S = 20.0
# How much later than the server the client looks at a deadline: the server's answer is the better one.
PATIENCE_S = 2.0
# What a last word may take.
PARTING_S = 1.0
# How many arrays one message lets go of.
MAX_CLAIMS = 1024


class Lost(Exception):
    """The stream broke before the answer came. Jobs are idempotent: ask again on a new one."""

    def __init__(self, cause: FarsumError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def rebuilt(error: grpc.RpcError, target: str) -> FarsumError:
    """The error that the server meant, or what the transport says in the user's words."""
    code, details = error.code(), error.details() or ""
    trailing = [(datum.key, datum.value) for datum in error.trailing_metadata() or ()]
    if failure := wire.decode_error(trailing, details):
        if failure.retry_after_s:
            failure.error.retry_after_s = failure.retry_after_s
        return failure.error
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return unreachable(target, details)
        case grpc.StatusCode.CANCELLED:
            return Cancelled(f"the call to {target} was cancelled")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return ServerUnreachable(f"{target} did not answer in time")
        case grpc.StatusCode.UNIMPLEMENTED:
            return ServerUnreachable(f"what answers at {target} is not a farsum server: {details}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return MessageTooLarge(f"a message to {target} is over the limit: {details}")
    return InternalError(f"the call to {target} failed: {code.name}: {details}")


def unreachable(target: str, details: str = "") -> ServerUnreachable:
    reason = f" ({details})" if details else ""
    return ServerUnreachable(
        f"no farsum server answers at {target}{reason}; start one there with `farsum serve`, "
        f"or open the tunnel that leads to it"
    )


class Pending:
    """A request under way. Whichever thread reads the stream fills it; its own thread acts on it."""

    __slots__ = ("expired", "id", "on_progress", "outcome", "ready", "share", "waiting")

    def __init__(self, id_: int, on_progress: Callable[[wire.Progress], None] | None) -> None:
        self.id = id_
        self.on_progress = on_progress
        self.outcome: wire.Reply | wire.Failure | Lost | None = None
        self.share: wire.Progress | None = None
        # Set when there is something for this thread, or when it is to read in place of another.
        self.ready: threading.Event | None = None
        self.waiting = False
        self.expired = False


class Stream:
    """One bidirectional stream. When it breaks, it stays broken: the session opens another."""

    def __init__(self, channel: grpc.Channel, target: str) -> None:
        self._target = target
        self._outgoing: SimpleQueue[bytes | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._pending: dict[int, Pending] = {}
        self._reading = False
        self.broken: Lost | None = None
        call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(wire.METHODS["Session"])
        self._call = call(iter(self._outgoing.get, None))

    @property
    def idle(self) -> bool:
        return not self._pending

    def greet(self, client: str, holder: bytes) -> wire.Welcome:
        """Say hello. Raises ServerUnreachable and ProtocolMismatch."""
        self._outgoing.put(wire.encode_hello(client, holder=holder))
        # The handshake has a deadline, the stream has none.
        timer = threading.Timer(CONNECT_S, self._call.cancel)
        timer.daemon = True
        timer.start()
        try:
            _, welcome = wire.decode_server(next(self._call))
        except StopIteration:
            raise unreachable(self._target, "it hung up") from None
        except grpc.RpcError as error:
            raise self._as_error(error) from error
        finally:
            timer.cancel()
        if not isinstance(welcome, wire.Welcome):
            raise WireError(f"{self._target} did not answer the greeting")
        return welcome

    def _as_error(self, error: grpc.RpcError) -> FarsumError:
        if error.code() is grpc.StatusCode.CANCELLED:
            return unreachable(self._target, f"no answer in {CONNECT_S:g} s")
        return rebuilt(error, self._target)

    def send(self, data: bytes, pending: Pending) -> None:
        with self._lock:
            if self.broken:
                raise self.broken
            self._pending[pending.id] = pending
        self._outgoing.put(data)

    def cancel(self, pending: Pending) -> None:
        self._outgoing.put(wire.encode_cancel(pending.id))

    def tell(self, data: bytes) -> None:
        """Send what is not answered."""
        self._outgoing.put(data)

    def wait(self, pending: Pending) -> wire.Reply | wire.Failure | Lost:
        """The answer to a request. The first thread that waits reads for all of them."""
        try:
            while pending.outcome is None:
                self._wait_once(pending)
                if pending.share is not None and pending.on_progress:
                    share, pending.share = pending.share, None
                    pending.on_progress(share)
        except BaseException:
            # Ctrl-C, or a progress callback that raised: nobody waits for this answer any more.
            with self._lock:
                self._pending.pop(pending.id, None)
            self.cancel(pending)
            raise
        return pending.outcome

    def _wait_once(self, pending: Pending) -> None:
        """Read, or let another thread read, until there is something for this one."""
        with self._lock:
            if pending.outcome is not None or pending.share is not None:
                return
            lead = not self._reading
            if lead:
                self._reading = True
            else:
                pending.waiting = True
                pending.ready = pending.ready or threading.Event()
                pending.ready.clear()
        if lead:
            self._lead(pending)
        elif pending.ready:
            pending.ready.wait()
            pending.waiting = False

    def _lead(self, pending: Pending) -> None:
        try:
            while pending.outcome is None and pending.share is None:
                self._dispatch(next(self._call))
        except StopIteration:
            self.break_off(unreachable(self._target, "the connection was closed"))
        except grpc.RpcError as error:
            self.break_off(rebuilt(error, self._target))
        except WireError as error:
            self.break_off(error)
        except BaseException:
            # Interrupted in the middle of a read: what was read, and for whom, is unknown. The others
            # ask again on a new stream.
            self.break_off(unreachable(self._target, "the connection was given up"))
            raise
        finally:
            with self._lock:
                self._reading = False
                heir = next((p for p in self._pending.values() if p.waiting), None)
                if heir and heir.ready:
                    heir.ready.set()

    def _dispatch(self, data: bytes) -> None:
        id_, message = wire.decode_server(data)
        with self._lock:
            pending = self._pending.get(id_)
            match message:
                case wire.Progress(share, values) if pending:
                    last = pending.share.values if pending.share else ()
                    pending.share = wire.Progress(share, values or last)
                case wire.Outputs() | wire.Need() | wire.Outlook() | wire.Failure() if pending:
                    pending.outcome = message
                    del self._pending[id_]
                case _:
                    return  # Draining: what is under way is still answered. Or nobody waits any more.
            if pending.ready:
                pending.ready.set()

    def break_off(self, cause: FarsumError) -> None:
        """Give the stream up; the server cancels its jobs, whoever waits here learns why."""
        with self._lock:
            if self.broken is None:
                self.broken = Lost(cause)
            for pending in self._pending.values():
                if pending.outcome is None:
                    pending.outcome = self.broken
                    if pending.ready:
                        pending.ready.set()
            self._pending.clear()
        self._outgoing.put(None)
        self._call.cancel()


class Session:
    """The connection of one engine. Opens its stream when it is needed, and another after a fork."""

    def __init__(self, target: str, client: str, away_s: float = AWAY_S) -> None:
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

    def rest(self) -> bool:
        """Hang up if nothing is under way, and say whether; the next call opens the connection again."""
        with self._lock:
            if self._channel is None or self._pid != os.getpid() or (self._stream and not self._stream.idle):
                return False
            self._hang_up(unreachable(self.target, "the process was about to fork"))
            return True

    def renew_lock(self) -> None:
        self._lock = threading.RLock()

    def _hang_up(self, cause: FarsumError) -> None:
        stream, channel, self._stream, self._channel = self._stream, self._channel, None, None
        if stream:
            stream.break_off(cause)
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
                    stream.greet(self._client, self._holder)
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
            lambda id_: wire.encode_ask(id_, request), request.deadline_s, on_progress, on_sent
        )

    def _exchange(
        self,
        message: Callable[[int], bytes],
        deadline_s: float | None = None,
        on_progress: Callable[[wire.Progress], None] | None = None,
        on_sent: Callable[[Callable[[], None]], None] | None = None,
    ) -> wire.Reply:
        stream = self.stream()
        pending = Pending(next(self._ids), on_progress)
        if self._released:
            stream.tell(wire.encode_residency(0, wire.Residency(release=self._take_released())))
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
            found = rebuilt(error, self.target)
            if isinstance(found, ServerUnreachable | Draining):
                raise Lost(found) from error
            raise found from error

    def download(self, what: bytes | ArrayRef, into: memoryview, exact: bool = True) -> int:
        """Fetch one large result by its ticket, or an array that is held there; gives the number of bytes.

        exact   raise unless there are as many as there is room
        """
        received = 0
        method: grpc.UnaryStreamMultiCallable[bytes, bytes] = self.channel().unary_stream(
            wire.METHODS["Download"]
        )
        call = method(wire.encode_download(what))
        try:
            for chunk in call:
                end = received + len(chunk)
                if end > len(into):
                    wire.check_complete(end, len(into))
                into[received:end] = chunk
                received = end
        except grpc.RpcError as error:
            found = rebuilt(error, self.target)
            if isinstance(what, bytes) or isinstance(found, ServerUnreachable | Draining):
                raise Lost(found) from error
            raise found from error
        finally:
            call.cancel()
        if exact:
            wire.check_complete(received, len(into))
        return received

    def close(self) -> None:
        """Close the connection. Jobs under way are cancelled on the server and fail here with Cancelled."""
        self.flush(PARTING_S)
        with self._lock:
            self.closed = True
            if self._pid != os.getpid():
                return
            self._hang_up(Cancelled(f"the connection to {self.target} was closed"))


def address_of(target: str) -> str:
    """The gRPC address of a target.

    Raises ServerUnreachable for what is not a loopback address: there is no encryption yet.

    >>> address_of("grpc://localhost:50051"), address_of("unix:///run/farsum.sock")
    ('localhost:50051', 'unix:///run/farsum.sock')
    """
    if target.startswith("unix:"):
        return target
    scheme, separator, rest = target.partition("://")
    if not separator:
        scheme, rest = "grpc", target
    host, _, port = rest.rpartition(":")
    if scheme != "grpc" or not host or not port.isdigit():
        raise ServerUnreachable(
            f"{target!r} is no target; write grpc://localhost:50051 or unix:///path/of/socket"
        )
    if not _is_loopback(host.strip("[]")):
        raise ServerUnreachable(
            f"{target} is on another machine and farsum has no encryption yet; open a tunnel with "
            f"`ssh -N -L {port}:localhost:{port} {host}` and use grpc://localhost:{port}"
        )
    return rest


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
