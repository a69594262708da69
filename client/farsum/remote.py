"""The engine on a server, behind the same seam as the one in process.

Arrays are named by the digest of their bytes, taken anew on every call: an array that was changed in
place is another array. Nothing is remembered about an array between two calls.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from farsum.session import Lost, Session
from farsum_kernels.errors import (
    ArrayMissing,
    Cancelled,
    DeadlineExceeded,
    FarsumError,
    QueueFull,
    ServerUnreachable,
    SolverDidNotConverge,
    WireError,
)
from farsum_kernels.job import RANGES, ArrayRef, Options, Outlook, Result, Spec, check_arrays
from farsum_kernels.program import Program
from farsum_proto import tensor, wire

Array = NDArray[Any]

# Above this, hashing with more threads gains more than starting them costs.
PARALLEL_HASH_BYTES = 1 << 20
# Between two asks an array may be evicted; more often than this the store is too small for the job.
MAX_ASKS = 4
# Without a deadline, how long a full queue is tried again.
BUSY_S = 300.0
SUBMIT_THREADS = 32
MAX_PREPARED = 256


def _version() -> str:
    import farsum

    return f"farsum-python/{farsum.__version__}"


class RemoteEngine:
    """Implements farsum_kernels.job.Engine over one connection. Thread-safe, and safe to use after a fork.

    target   "grpc://localhost:50051" or "unix:///path/of/socket"
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.session = Session(target, _version())
        self._prepared: dict[Spec | Program, RemotePrepared] = {}

    def __repr__(self) -> str:
        return f"RemoteEngine({self.target!r})"

    def __enter__(self) -> RemoteEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self.session.closed

    def prepare(self, spec: Spec | Program) -> RemotePrepared:
        """Equal specs give one object: a lazy tensor asks anew for each reduction."""
        found = self._prepared.get(spec)
        if found is None:
            if len(self._prepared) >= MAX_PREPARED:
                self._prepared.clear()
            found = self._prepared[spec] = RemotePrepared(self, spec)
        return found

    def ping(self) -> dict[str, Any]:
        """Version, devices and round-trip time of the server.

        Raises ServerUnreachable and ProtocolMismatch.
        """
        request = wire.encode_info_request()
        self.session.call("Info", request, timeout_s=10.0)  # opens the connection, which is not to be timed
        self.session.stream()  # the handshake, which finds out whether the versions fit
        started = time.perf_counter()
        info = wire.decode_info(self.session.call("Info", request, timeout_s=10.0))
        took = time.perf_counter() - started
        devices = [
            {"name": d.name, "kind": d.kind, "threads": d.threads, "restarts": d.restarts}
            for d in info.devices
        ]
        return {
            "target": self.target,
            "version": info.version,
            "ready": info.ready,
            "devices": devices,
            "protocols": (info.oldest_protocol, info.newest_protocol),
            "round_trip_s": took,
        }

    def close(self) -> None:
        """Close the connection; jobs under way are cancelled."""
        self.session.close()

    @cached_property
    def executor(self) -> ThreadPoolExecutor:
        """The threads of `submit`: each waits for one answer."""
        return ThreadPoolExecutor(SUBMIT_THREADS, thread_name_prefix="farsum-submit")


class Cancellation:
    """Carries the wish to stop from one thread to the call that another one makes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = False
        self._stop: Callable[[], None] | None = None

    def request(self) -> None:
        with self._lock:
            self._wanted = True
            stop = self._stop
        if stop:
            stop()

    def attach(self, stop: Callable[[], None]) -> None:
        """What stops the request that is now under way."""
        with self._lock:
            self._stop = stop
            wanted = self._wanted
        if wanted:
            stop()

    def check(self) -> None:
        if self._wanted:
            raise Cancelled("the job was cancelled")


class RemoteFuture(Future[Result]):
    """A future whose `cancel` reaches the server."""

    def __init__(self) -> None:
        super().__init__()
        self.cancellation = Cancellation()

    def cancel(self) -> bool:
        """Stop the job. When it was under way already, the result is the error Cancelled."""
        if super().cancel():
            return True
        if self.done():
            return False
        self.cancellation.request()
        return True


class RemotePrepared:
    """Implements farsum_kernels.job.Prepared."""

    def __init__(self, engine: RemoteEngine, spec: Spec | Program) -> None:
        self.spec = spec
        self._engine = engine
        self._last: tuple[object, bytes] = None, b""

    def _form(self, arrays: Mapping[int, Array]) -> bytes:
        """The job without its numbers, encoded. Made once for a run of equal shapes.

        The checks are those of the server, made here first, in the user's words.
        """
        faces = [(n, a.shape, a.dtype) for n, a in arrays.items()]
        known, form = self._last
        if faces != known:
            if isinstance(self.spec, Program):
                self.spec.check(arrays)
            else:
                check_arrays(self.spec, arrays)
            form = wire.encode_form(self.spec, {n: a.shape for n, a in arrays.items()})
            self._last = faces, form
        return form

    def _call(self, arrays: Mapping[int, Any], options: Options) -> _Call:
        if isinstance(self.spec, Program):
            own = {n: np.ascontiguousarray(arrays[n]) for n in range(len(self.spec.inputs)) if n in arrays}
            dtypes = tuple(value.dtype for value in self.spec.inputs)
        else:
            own = {n: np.ascontiguousarray(arrays[n]) for n in (*self.spec.inputs, *RANGES) if n in arrays}
            dtypes = tuple("int64" if n in RANGES else self.spec.dtype for n in own)
        return _Call(self._engine.session, self._form(own), tuple(own.values()), dtypes, options)

    def run(self, arrays: Mapping[int, Any], options: Options = Options()) -> Result:
        """Evaluate on the server and wait. Ctrl-C cancels there too.

        Raises what the server raises, ServerUnreachable when the connection is lost and cannot be
        taken up again.
        """
        return self._call(arrays, options).run()

    def outlook(self, arrays: Mapping[int, Any]) -> Outlook:
        """What running on these arrays would take there: its plan, and what it would have to be sent."""
        return self._call(arrays, Options()).outlook()

    def submit(self, arrays: Mapping[int, Any], options: Options = Options()) -> Future[Result]:
        """Evaluate without waiting. The arrays must not change until the future is done."""
        future = RemoteFuture()
        call = self._call(arrays, options)
        self._engine.executor.submit(_fulfil, future, call)
        return future


def _fulfil(future: RemoteFuture, call: _Call) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call.run(future.cancellation))
    except BaseException as error:
        future.set_exception(error)


class _Call:
    """One job from ask to result."""

    def __init__(
        self,
        session: Session,
        form: bytes,
        arrays: tuple[Array, ...],
        dtypes: tuple[str, ...],
        options: Options,
    ) -> None:
        self._session = session
        self._form = form
        self._arrays = arrays
        self._dtypes = dtypes
        self._options = options
        self._digests: list[bytes] = []
        self._cancellation: Cancellation | None = None
        self._end = None if options.deadline_s is None else time.monotonic() + options.deadline_s

    def run(self, cancellation: Cancellation | None = None) -> Result:
        self._cancellation = cancellation
        self._digests = list(map(_digest, self._arrays))
        lost = 0
        busy_until = time.monotonic() + BUSY_S if self._end is None else self._end
        while True:
            try:
                return self._answer()
            except Lost as error:
                # A server that restarted has lost the arrays too; the next round sends them again.
                lost += 1
                if lost > 1 or not isinstance(error.cause, ServerUnreachable):
                    raise error.cause from error
            except DeadlineExceeded as error:
                raise self._late() from error
            except QueueFull as error:
                pause = wire.retry_after(error) or 0.1
                if time.monotonic() + pause > busy_until:
                    raise
                time.sleep(pause)

    def outlook(self) -> Outlook:
        self._digests = list(map(_digest, self._arrays))
        request = wire.Request(self._form, self._contents(frozenset()), outlook=True)
        try:
            reply = self._session.ask(request)
        except Lost as error:
            raise error.cause from error
        if not isinstance(reply, wire.Outlook):
            raise WireError(f"{self._session.target} answered an outlook with {type(reply).__name__}")
        missing = frozenset(reply.missing)
        unsent = {d: a.nbytes for d, a in zip(self._digests, self._arrays, strict=True) if d in missing}
        inline = sum(a.nbytes for d, a in zip(self._digests, self._arrays, strict=True) if not d)
        return Outlook(self._session.target, sum(unsent.values()) + inline, wire.decode_plan(reply.plan))

    def _left(self) -> float | None:
        """The seconds that are left. Raises when there are none, or when nobody waits any more."""
        if self._cancellation:
            self._cancellation.check()
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            raise self._late()
        return left

    def _late(self) -> DeadlineExceeded:
        # The server was told what was left of the deadline; the user knows the whole.
        return DeadlineExceeded(f"the job did not finish within {self._options.deadline_s:g} s")

    def _answer(self) -> Result:
        missing: frozenset[bytes] = frozenset()
        for _ in range(MAX_ASKS):
            request = wire.Request(
                self._form, self._contents(missing), self._left(), self._options.progress is not None
            )
            attach = self._cancellation.attach if self._cancellation else None
            reply = self._session.ask(request, self._options.progress, attach)
            if isinstance(reply, wire.Outputs):
                values = tuple(map(self._fetch, reply.values))
                if self._options.progress:
                    self._options.progress(1.0)
                if reply.stopped:
                    raise _gave_up(reply.stopped, values)
                return Result(values, wire.decode_plan(reply.plan))
            assert isinstance(reply, wire.Need)
            missing = frozenset(reply.digests)
            self._upload(missing)
        raise ArrayMissing(
            f"{self._session.target} dropped arrays of this job {MAX_ASKS} times before it could start: "
            f"its store is too small for what is asked of it"
        )

    def _contents(self, missing: frozenset[bytes]) -> tuple[wire.Content, ...]:
        """Digests; with bytes where they are tiny, or small and missing on the server."""
        contents = []
        for array, digest in zip(self._arrays, self._digests, strict=True):
            inline = not digest or (digest in missing and array.nbytes <= wire.INLINE_BYTES)
            contents.append(wire.Content(digest, array.tobytes() if inline else None))
        return tuple(contents)

    def _upload(self, missing: frozenset[bytes]) -> None:
        rows = zip(self._digests, self._arrays, self._dtypes, strict=True)
        large = {digest: (array, dtype) for digest, array, dtype in rows if array.nbytes > wire.INLINE_BYTES}
        for digest in missing & large.keys():
            self._left()
            upload_array(self._session, *large[digest], digest)

    def _fetch(self, value: wire.Value) -> Array:
        if value.inline is not None:
            # Over a bytearray the result is writable, as a local one is.
            return np.ndarray(value.shape, tensor.held_as(value.dtype), bytearray(value.inline))
        tensor.keep_freed_memory()
        stream = np.empty(value.stream_bytes, np.uint8)
        self._session.download(value.ticket, _bytes_of(stream))
        offset = tensor.body_offset(_bytes_of(stream), ArrayRef(b"", value.dtype, value.shape))
        return np.ndarray(value.shape, tensor.held_as(value.dtype), stream, offset)


def _gave_up(stopped: wire.Stopped, values: tuple[Array, ...]) -> FarsumError:
    """The error of an iteration, with what it had reached."""
    if isinstance(stopped.error, SolverDidNotConverge):
        stopped.error.iterate = values[0] if len(values) == 1 else values
        stopped.error.residuals = list(stopped.residuals)
    return stopped.error


def _digest(array: Array) -> bytes:
    """BLAKE3 of the bytes; nothing for a tiny array, which is sent and not named."""
    if array.nbytes < wire.TINY_BYTES:
        return b""
    threads = blake3.AUTO if array.nbytes >= PARALLEL_HASH_BYTES else 1
    return blake3(_bytes_of(array), max_threads=threads).digest()


def _bytes_of(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # typed from Python 3.12


def upload_array(session: Session, array: Array, dtype: str, digest: bytes) -> None:
    tensor.keep_freed_memory()
    header = tensor.header_of(array)
    body = _bytes_of(array)
    ref = ArrayRef(digest, dtype, array.shape)
    session.upload(wire.Upload(ref, len(header) + len(body)), tensor.chunks_of(header, body))
