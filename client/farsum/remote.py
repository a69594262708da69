"""The engine on a server, behind the same seam as the one in process.

Makes connections and futures; what happens within a job is in call.py. Nothing is remembered about an array
of the user between two calls.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farsum import spare
from farsum.call import Call, Cancellation, bytes_of, digest_of, from_stream, gone, inline
from farsum.handle import Handle
from farsum.retry import persist
from farsum.session import AWAY_S, Session
from farsum.upload import Item, upload_array
from farsum_kernels.errors import FarsumError, HandleGone, ServerUnreachable
from farsum_kernels.job import RANGES, Options, Outlook, Result, Spec, check_arrays
from farsum_kernels.program import Program
from farsum_proto import tensor, wire

Array = NDArray[Any]

SUBMIT_THREADS = 32
MAX_PREPARED = 256
# How many forms of one formula are known by their numbers, and how many packets in a row are left out at most.
MAX_PACKED, MAX_LEFT_OUT = 8, 64

# The number, shape and dtype of each array of a job.
Faces = list[tuple[int, tuple[int, ...], Any]]


def _version() -> str:
    import farsum

    return f"farsum-python/{farsum.__version__}"


class RemoteEngine:
    """Implements farsum_kernels.job.Engine over one connection. Thread-safe, and safe to use after a fork.

    target   "grpc://localhost:50051" or "unix:///path/of/socket"
    away_s   how long a server that was there and went away is waited for, in seconds
    memory   hand over large arrays through memory, where the server is on this machine and offers it
    """

    def __init__(self, target: str, away_s: float = AWAY_S, memory: bool = False) -> None:
        self.target = target
        self.session = Session(target, _version(), away_s, memory)
        self._prepared: dict[Spec | Program, RemotePrepared] = {}
        self._kinds: frozenset[str] = frozenset()

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
        self._kinds = frozenset(d.kind for d in info.devices)
        return {
            "target": self.target,
            "version": info.version,
            "ready": info.ready,
            "devices": devices,
            "protocols": (info.oldest_protocol, info.newest_protocol),
            "round_trip_s": took,
        }

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of the server's devices, "cpu" and "cuda", as they were when it was asked last."""
        if not self._kinds:
            self.ping()
        return self._kinds

    # ── handles ───────────────────────────────────────────────────────────────────────────────────

    def hold(self, handle: Handle) -> None:
        """Send the array of a handle, if it is not there, and have the server hold it.

        Raises HandleGone for a kept result that is not there.
        """
        if handle.content.local is None:
            self.kept_there(handle)
            return
        ref, token = handle.ref, self.session.token()

        def attempt() -> None:
            need = self.session.claim(ref.digest, token)
            if need.digests:
                array = handle.view(tensor.held_as(ref.dtype)).here()
                upload_array(self.session, Item(array, ref.dtype, ref.digest, token, *need.received))

        persist(self.session, attempt)
        handle.content.held_by(self, token)

    def kept_there(self, handle: Handle) -> bytes:
        """The digest of a kept result. Raises HandleGone if it was kept by another server."""
        engine = handle.content.engine
        if engine is None or engine.target != self.target:
            handle.here()  # which says where it is
        return handle.content.digest

    def fetch(self, handle: Handle) -> Array:
        """The array of a kept result.

        Raises HandleGone if the server no longer has it, ServerUnreachable.
        """
        engine = self if not self.closed else _connected_to(self.target)
        if engine is None:
            raise ServerUnreachable(
                f"the result of shape {handle.shape} is kept on {self.target}, and the connection to it was closed: "
                f"farsum.connect({self.target!r}) opens it again"
            )
        ref, received = handle.ref, [0]
        stream = spare.room(ref.nbytes + wire.MAX_HEADER_BYTES)

        def attempt() -> Array:
            # An array is named by its bytes, so what came before the line broke is good.
            count = engine.session.download(ref, bytes_of(stream), exact=False, received=received)
            return from_stream(stream[:count], ref)

        try:
            found = persist(engine.session, attempt)
        except HandleGone as error:
            raise gone(handle, self.target, str(error)) from error
        return found.view(handle.dtype).reshape(handle.shape)

    def close(self) -> None:
        """Close the connection; jobs under way are cancelled."""
        self.session.close()

    @cached_property
    def executor(self) -> ThreadPoolExecutor:
        """The threads of `submit`: each waits for one answer."""
        return ThreadPoolExecutor(SUBMIT_THREADS, thread_name_prefix="farsum-submit")


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
        self._last: tuple[Faces, bytes] = [], b""
        self._packed: list[Packed] = []  # of the small jobs that came again, the newest first

    def _form(self, arrays: Mapping[int, Any]) -> bytes:
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

    def _call(self, arrays: Mapping[int, Any], options: Options) -> Call:
        if isinstance(self.spec, Program):
            own = {n: _ordered(arrays[n]) for n in range(len(self.spec.inputs)) if n in arrays}
            dtypes = tuple(value.dtype for value in self.spec.inputs)
        else:
            own = {n: _ordered(arrays[n]) for n in (*self.spec.inputs, *RANGES) if n in arrays}
            dtypes = tuple("int64" if n in RANGES else self.spec.dtype for n in own)
        results = self.spec.results if isinstance(self.spec, Program) else ()
        return Call(self._engine, self._form(own), tuple(own.values()), dtypes, options, results)

    def run(self, arrays: Mapping[int, Any], options: Options = Options()) -> Result:
        """Evaluate on the server and wait. Ctrl-C cancels there too.

        Raises what the server raises, ServerUnreachable when the connection is lost and cannot be
        taken up again.
        """
        if options.deadline_s is not None or options.keep or options.watch:
            return self._call(arrays, options).run()
        if found := self.again(arrays):
            if options.progress:
                options.progress(1.0)
            return found
        call = self._call(arrays, options)
        found = call.run()
        self._learn(call.form)
        return found

    def again(self, arrays: Mapping[int, Any]) -> Result | None:
        """The result of a small job that the server knows by a number; None where it has to be asked in full."""
        packed = next((p for p in self._packed if p.fits(arrays)), None)
        if packed is None or packed.left_out():
            return None
        session = self._engine.session
        try:
            stream = session.stream()
        except FarsumError:
            return None  # asked in full, it is tried again
        known = stream.known.get(packed.form)
        if known is None:
            return None
        reply = session.again(stream, packed.form, known.number, packed.rooms, packed.contents(arrays))
        if isinstance(reply, wire.Said):
            packed.went_well()
            return Result(packed.results(reply.packet), wire.decode_plan(known.plan))
        if isinstance(reply, wire.Outputs) and all([value.inline is not None for value in reply.values]):
            packed.went_well()
            return Result(tuple(map(inline, reply.values)), wire.decode_plan(reply.plan))
        if isinstance(reply, wire.Need) and reply.digests:
            packed.missed()
        return None

    def _learn(self, form: bytes) -> None:
        """The server may have a number for this job from now on."""
        faces, last = self._last
        known = any([packed.form == form for packed in self._packed])
        if last is form and not known and self._engine.session.knows(form):
            self._packed = [Packed(form, faces), *self._packed[: MAX_PACKED - 1]]

    def outlook(self, arrays: Mapping[int, Any]) -> Outlook:
        """What running on these arrays would take there: its plan, and what it would have to be sent."""
        return self._call(arrays, Options()).outlook()

    def submit(self, arrays: Mapping[int, Any], options: Options = Options()) -> Future[Result]:
        """Evaluate without waiting. The arrays must not change until the future is done."""
        future = RemoteFuture()
        call = self._call(arrays, options)
        self._engine.executor.submit(_fulfil, future, call)
        return future


class Packed:
    """How the numbers of a small job travel whose arrays have these numbers, shapes and dtypes.

    Where a named array was missing, it may be another one in each call, and is then never there: packets are left out
    once, twice, four times, …
    """

    def __init__(self, form: bytes, faces: Faces) -> None:
        decoded = wire.decode_form(form)
        self.form = form
        self.rooms = wire.Rooms(decoded)
        self._faces = faces
        self._left_out, self._next = 0, 1
        outputs = zip(decoded.outputs, self.rooms.results, strict=True)
        self._results = [(face.shape, tensor.held_as(face.dtype), start) for face, start in outputs]

    def fits(self, arrays: Mapping[int, Any]) -> bool:
        """Are they arrays of NumPy that look like these?"""
        if len(arrays) != len(self._faces):
            return False
        for n, shape, dtype in self._faces:
            array = arrays.get(n)
            if type(array) is not np.ndarray or array.shape != shape or array.dtype != dtype:
                return False
        return True

    def left_out(self) -> bool:
        """Is this attempt to be made without a packet?"""
        if self._left_out:
            self._left_out -= 1
            return True
        return False

    def contents(self, arrays: Mapping[int, Any]) -> list[bytes]:
        """What fills the rooms of a packet."""
        rows = zip(self._faces, self.rooms.tiny, strict=True)
        return [arrays[n].tobytes() if tiny else digest_of(_ordered(arrays[n])) for (n, *_), tiny in rows]

    def went_well(self) -> None:
        self._next = 1

    def missed(self) -> None:
        self._left_out, self._next = self._next, min(2 * self._next, MAX_LEFT_OUT)

    def results(self, packet: bytes | memoryview) -> tuple[Array, ...]:
        """The results, over memory of their own, which is writable."""
        self.rooms.check_answer(packet)
        memory = bytearray(packet)
        return tuple([np.ndarray(shape, dtype, memory, start) for shape, dtype, start in self._results])


def _ordered(array: Any) -> Any:
    return array if isinstance(array, Handle) else np.ascontiguousarray(array)


def _connected_to(target: str) -> RemoteEngine | None:
    """The engine that work goes to now, if it has this target."""
    from farsum.target import remote

    engine = remote()
    return engine if engine is not None and engine.target == target else None


def _fulfil(future: RemoteFuture, call: Call) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call.run(future.cancellation))
    except BaseException as error:
        future.set_exception(error)
