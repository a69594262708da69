"""One job from ask to result: digests in place of arrays, the bytes that the server lacks, its answer.

Arrays of the user are hashed anew on every call: one that was changed in place is another array. Handles
are not, their bytes never change.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from farsum import spare
from farsum.handle import Content, Handle
from farsum.retry import persist
from farsum.upload import Item, upload_arrays
from farsum_kernels.errors import (
    ArrayMissing,
    Cancelled,
    DeadlineExceeded,
    FarsumError,
    HandleGone,
    SolverDidNotConverge,
    WireError,
)
from farsum_kernels.job import ArrayRef, Options, Outlook, Result
from farsum_kernels.program import Value
from farsum_proto import tensor, wire

if TYPE_CHECKING:
    from farsum.remote import RemoteEngine

Array = NDArray[Any]

# Above this, hashing with more threads gains more than starting them costs.
PARALLEL_HASH_BYTES = 1 << 20
# Between two asks an array may be evicted; more often than this the store is too small for the job.
MAX_ASKS = 4


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


class Call:
    """A job with its arrays or handles, of the dtypes that are named. `run` it once."""

    def __init__(
        self,
        engine: RemoteEngine,
        form: bytes,
        arrays: tuple[Array | Handle, ...],
        dtypes: tuple[str, ...],
        options: Options,
        results: tuple[Value, ...] = (),
    ) -> None:
        self._engine = engine
        self._session = engine.session
        self.form = form
        self._arrays = arrays
        self._dtypes = dtypes
        self._options = options
        self._results = results  # of a program, to be watched
        self._keep = self._session.token() if options.keep else b""
        self._digests: list[bytes] = []
        self._cancellation: Cancellation | None = None
        self._end = None if options.deadline_s is None else time.monotonic() + options.deadline_s

    def run(self, cancellation: Cancellation | None = None) -> Result:
        """The result. A server that restarted has lost the arrays too; they are then sent again."""
        self._cancellation = cancellation
        self._digests = list(map(self._name, self._arrays))
        try:
            return persist(self._session, self._answer, self._left)
        except DeadlineExceeded as error:
            raise self._late() from error

    def outlook(self) -> Outlook:
        """What the job would take."""
        self._digests = list(map(self._name, self._arrays))
        request = wire.Request(self.form, self._contents(frozenset()), outlook=True)
        reply = persist(self._session, lambda: self._session.ask(request))
        if not isinstance(reply, wire.Outlook):
            raise WireError(f"{self._session.target} answered an outlook with {type(reply).__name__}")
        missing = frozenset(reply.missing)
        unsent = {d: a.nbytes for d, a in zip(self._digests, self._arrays, strict=True) if d in missing}
        inline = sum(a.nbytes for d, a in zip(self._digests, self._arrays, strict=True) if not d)
        return Outlook(self._session.target, sum(unsent.values()) + inline, wire.decode_plan(reply.plan))

    def _name(self, array: Array | Handle) -> bytes:
        """The digest of an array; nothing for a tiny one, which is sent and not named."""
        if isinstance(array, Handle):
            array.check()
            if array.content.local is None:
                return self._engine.kept_there(array)
            return b"" if array.nbytes < wire.TINY_BYTES else array.content.digest
        return b"" if array.nbytes < wire.TINY_BYTES else digest_of(array)

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
                self.form,
                self._contents(missing),
                self._left(),
                self._options.progress is not None or self._options.watch is not None,
                keep=self._keep,
                watch_s=0.0 if self._options.watch is None else self._options.watch_s,
            )
            attach = self._cancellation.attach if self._cancellation else None
            reply = self._session.ask(request, self._tell if request.progress else None, attach)
            if isinstance(reply, wire.Outputs):
                values = self._kept(reply.values) if self._keep else tuple(map(self._fetch, reply.values))
                if self._options.progress:
                    self._options.progress(1.0)
                if reply.stopped:
                    raise _gave_up(reply.stopped, values)
                return Result(values, wire.decode_plan(reply.plan))
            assert isinstance(reply, wire.Need)
            missing = frozenset(reply.digests)
            self._upload(reply)
        raise ArrayMissing(
            f"{self._session.target} dropped arrays of this job {MAX_ASKS} times before it could start: "
            f"its store is too small for what is asked of it"
        )

    def _tell(self, progress: wire.Progress) -> None:
        if self._options.progress:
            self._options.progress(progress.share)
        if self._options.watch and len(progress.values) == len(self._results) > 0:
            self._options.watch(
                tuple(
                    np.frombuffer(data, value.dtype).reshape(value.shape)
                    for value, data in zip(self._results, progress.values, strict=True)
                )
            )

    def _contents(self, missing: frozenset[bytes]) -> tuple[wire.Content, ...]:
        """Digests; with bytes where they are tiny, or small and missing on the server."""
        contents = []
        for array, digest in zip(self._arrays, self._digests, strict=True):
            inline = not digest or (
                digest in missing and array.nbytes <= wire.INLINE_BYTES and _is_here(array)
            )
            contents.append(wire.Content(digest, _numbers(array).tobytes() if inline else None))
        return tuple(contents)

    def _upload(self, need: wire.Need) -> None:
        """Send what is too large to go with the job."""
        rows = zip(self._digests, self._arrays, self._dtypes, strict=True)
        named = {digest: (array, dtype) for digest, array, dtype in rows if digest}
        items = []
        for digest, reason, received in zip(need.digests, need.reasons, need.received, strict=True):
            if digest not in named:
                raise WireError(f"{self._session.target} asks for an array that the job does not name")
            array, dtype = named[digest]
            if not _is_here(array):
                raise gone(array, self._session.target, reason)
            if array.nbytes > wire.INLINE_BYTES:
                items.append(Item(_numbers(array), dtype, digest, received=received))
        if items:
            self._left()
            upload_arrays(self._session, items)

    def _kept(self, values: tuple[wire.Value, ...]) -> tuple[Handle, ...]:
        """Handles to results that stay there. Equal results are one array there, and one content here."""
        contents: dict[bytes, Content] = {}
        handles = []
        for value in values:
            ref = ArrayRef(value.kept, value.dtype, value.shape)
            if value.kept not in contents:
                content = contents[value.kept] = Content(None, ref.nbytes, value.kept)
                content.held_by(self._engine, self._keep)
            handles.append(Handle(contents[value.kept], tensor.held_as(value.dtype), value.shape))
        return tuple(handles)

    def _fetch(self, value: wire.Value) -> Array:
        if value.inline is not None:
            return inline(value)
        tensor.keep_freed_memory()
        stream = spare.room(value.stream_bytes)
        self._session.download(value.ticket, bytes_of(stream))
        return from_stream(stream, ArrayRef(b"", value.dtype, value.shape))


def inline(value: wire.Value) -> Array:
    """A result that came within a message. Over a bytearray it is writable, as a local one is."""
    return np.ndarray(value.shape, tensor.held_as(value.dtype), bytearray(value.inline or b""))


def _gave_up(stopped: wire.Stopped, values: tuple[Any, ...]) -> FarsumError:
    """The error of an iteration, with what it had reached."""
    if isinstance(stopped.error, SolverDidNotConverge):
        stopped.error.iterate = values[0] if len(values) == 1 else values
        stopped.error.residuals = list(stopped.residuals)
    return stopped.error


def from_stream(stream: Array, ref: ArrayRef) -> Array:
    """The array in a complete bulk stream, over the same memory."""
    offset = tensor.body_offset(bytes_of(stream), ref)
    return np.ndarray(ref.shape, tensor.held_as(ref.dtype), stream, offset)


def gone(handle: Array | Handle, target: str, reason: str) -> HandleGone:
    """The error for a kept result that the server no longer has."""
    what = f"the result of shape {handle.shape} that was kept on {target} is gone"
    why = reason or "the server has no such array of yours: it was restarted since, or never had it"
    return HandleGone(
        f"{what}: {why}. It was the only copy: compute it again, or farsum.get what must survive"
    )


def _is_here(array: Array | Handle) -> bool:
    return not isinstance(array, Handle) or array.content.local is not None


def _numbers(array: Array | Handle) -> Array:
    return array.here() if isinstance(array, Handle) else array


def digest_of(array: Array) -> bytes:
    """BLAKE3 of the bytes of a C-ordered array."""
    threads = blake3.AUTO if array.nbytes >= PARALLEL_HASH_BYTES else 1
    return blake3(bytes_of(array), max_threads=threads).digest()


def bytes_of(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # typed from Python 3.12
