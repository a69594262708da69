"""One kept stream that many threads share, and what its failures mean in the user's words.

Knows messages as bytes and values of farsum_proto.wire. Whoever waits for an answer reads the stream itself: there
is no reader thread to hand over to.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple

import grpc

from farsum_kernels.errors import (
    Cancelled,
    FarsumError,
    InternalError,
    MessageTooLarge,
    ServerUnreachable,
    WireError,
)
from farsum_proto import wire

CONNECT_S = 10.0
MAX_KNOWN = 1024


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
        # Our servers say what they mean by an error. Without their word a stream that ends in one of the other
        # two broke with its connection.
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.UNKNOWN | grpc.StatusCode.INTERNAL:
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

    __slots__ = ("expired", "form", "id", "on_progress", "outcome", "ready", "share", "waiting")

    def __init__(
        self, id_: int, on_progress: Callable[[wire.Progress], None] | None = None, form: bytes = b""
    ) -> None:
        self.id = id_
        self.on_progress = on_progress
        self.form = form
        self.outcome: wire.Reply | wire.Failure | wire.Said | Lost | None = None
        self.share: wire.Progress | None = None
        # Set when there is something for this thread, or when it is to read in place of another.
        self.ready: threading.Event | None = None
        self.waiting = False
        self.expired = False


class Known(NamedTuple):
    """What the server calls a job that it was asked for, and the plan of it."""

    number: int
    plan: bytes


def _decoded(
    data: bytes,
) -> tuple[int, wire.Welcome | wire.Reply | wire.Progress | wire.Failure | wire.Goodbye | wire.Said]:
    if wire.is_numbers(data):
        return wire.decode_head(data)[0], wire.Said(data)
    return wire.decode_server(data)


class Stream:
    """One bidirectional stream. When it breaks, it stays broken: the session opens another."""

    def __init__(self, channel: grpc.Channel, target: str) -> None:
        self._target = target
        self._outgoing: SimpleQueue[bytes | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._pending: dict[int, Pending] = {}
        self._reading = False
        # The jobs that need not be said in full on this stream, by their forms.
        self.known: dict[bytes, Known] = {}
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
        """Ask; then `wait`. Raises Lost on a stream that broke."""
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

    def wait(self, pending: Pending) -> wire.Reply | wire.Failure | wire.Said | Lost:
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
            cause = rebuilt(error, self._target)
            if isinstance(cause, Cancelled) and not self.broken:  # not by us
                cause = unreachable(self._target, "the connection was cut")
            self.break_off(cause)
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
                heirs = [p for p in self._pending.values() if p.waiting] if self._pending else ()
                if heirs and (ready := heirs[0].ready):
                    ready.set()

    def _dispatch(self, data: bytes) -> None:
        id_, message = _decoded(data)
        with self._lock:
            pending = self._pending.get(id_)
            match message:
                case wire.Progress(share, values) if pending:
                    last = pending.share.values if pending.share else ()
                    pending.share = wire.Progress(share, values or last)
                case wire.Said() | wire.Outputs() | wire.Need() | wire.Outlook() | wire.Failure() if pending:
                    pending.outcome = message
                    del self._pending[id_]
                    if isinstance(message, wire.Outputs) and message.again:
                        self._learn(pending.form, Known(message.again, message.plan))
                case _:
                    return  # Draining: what is under way is still answered. Or nobody waits any more.
            if pending.ready:
                pending.ready.set()

    def _learn(self, form: bytes, known: Known) -> None:
        if len(self.known) >= MAX_KNOWN:
            self.known.clear()
        self.known[form] = known

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
