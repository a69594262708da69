"""What a worker process does with each action: binds arrays of the arena, runs slices, answers with events.

Knows no socket, and imports no native code: it is given the worker object that has it.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import structlog
from blake3 import blake3
from numpy.typing import NDArray

from farsum_kernels.errors import DeviceFault, FarsumError, InternalError
from farsum_proto import wire
from farsum_proto.tensor import held_as
from farsum_server.arena import Arena
from farsum_server.prepared import Prepared

# Above this, hashing with more threads gains more than starting them costs.
PARALLEL_HASH_BYTES = 1 << 20

log = structlog.get_logger("farsum.worker")


class Run(Protocol):
    """A job on a worker; see farsum_server.worker."""

    @property
    def plan(self) -> Any: ...
    def step(self) -> float: ...
    def finish(self) -> tuple[Any, ...]: ...


class _Started(NamedTuple):
    """A job that was bound: its results go to `outputs`, or back within the message."""

    run: Run
    outputs: list[NDArray[Any]] | None
    keep: bool
    watch_s: float
    seen: list[float]  # when its results were last looked at


class Performer:
    """Performs actions on one worker object and answers with events. Knows no socket."""

    def __init__(self, worker: Any, arena: Arena) -> None:
        self._worker = worker
        self._arena = arena
        self._forms = wire.FormCache()
        self._runs: dict[int, _Started] = {}
        self._compiled: dict[int, wire.Start] = {}  # wait for their first step
        self._prepared: dict[int, Prepared] = {}
        # Where packets of numbers are received, always at the same addresses.
        self.inbox = memoryview(mmap.mmap(-1, wire.PACKET_BYTES + 1))

    def perform(
        self, job: int, action: wire.Action, tell: Callable[[int, wire.Event], None]
    ) -> wire.Event | None:
        """Never raises for what a job does wrong: that is an event too. `tell` sends one ahead of the answer."""
        try:
            match action:
                case wire.Prepare():
                    return self._prepare(action)
                case wire.Drop():
                    self._forget(job)
                    return None
                case wire.Start(outlook=True):
                    return self._outlook(action)
                case wire.Start():
                    spec = self._forms.get(action.form).spec
                    if not self._worker.compiled(spec):
                        tell(job, wire.Compiling())
                        self._worker.compile(spec)
                        # Whoever asked may have left meanwhile, and the memory may be another's.
                        self._compiled[job] = action
                        return wire.Progressed(0.0)
                    self._runs[job] = self._start(action)
                case wire.Step() if job in self._compiled:
                    self._runs[job] = self._start(self._compiled.pop(job))
            return self._slice(job)
        except Exception as error:
            return self._failure(job, error)

    def again(self, job: int, number: int) -> memoryview | wire.Failure:
        """The packet that answers the one in the inbox, for a job of the form that has this number."""
        try:
            return self._prepared[number].run(number, job)
        except Exception as error:
            return self._failure(job, error)

    def _failure(self, job: int, error: Exception) -> wire.Failure:
        if isinstance(error, DeviceFault):
            # Nothing works on that device any more for this process: its successor does this job and all others.
            log.error("the device is lost", request=f"job-{job}", exc_info=error)
            raise error
        self._forget(job)
        if isinstance(error, FarsumError):
            return wire.Failure(error)
        log.error("a job failed in the worker", request=f"job-{job}", exc_info=error)
        return wire.Failure(InternalError(f"internal error; the server's log has it under request job-{job}"))

    def _forget(self, job: int) -> None:
        self._runs.pop(job, None)
        self._compiled.pop(job, None)

    def _start(self, start: wire.Start) -> _Started:
        form = self._forms.get(start.form)
        arrays = self._arrays(form, start.places)
        outputs = list(map(self._array, form.outputs, start.outputs)) if start.outputs else None
        digests = {n: digest for n, digest in zip(form.indices, start.digests, strict=True) if digest}
        run = self._worker.start(form.spec, arrays, outputs, digests)
        return _Started(run, outputs, start.keep, start.watch_s, [time.monotonic()])

    def _arrays(self, form: wire.Form, places: Sequence[int | bytes]) -> dict[int, NDArray[Any]]:
        """The inputs of a job, to be read only: each from its place in the arena, or from the message itself."""
        arrays = {}
        for index, face, place in zip(form.indices, form.faces, places, strict=True):
            if isinstance(place, int):
                arrays[index] = self._array(face, place)
            else:
                arrays[index] = np.ndarray(face.shape, held_as(face.dtype), place)
            arrays[index].setflags(write=False)
        return arrays

    def _prepare(self, prepare: wire.Prepare) -> wire.Prepared:
        """Bind a form, if it can be done at once: nobody counts the time of it as compiling."""
        self._prepared.pop(prepare.forget, None)
        form = self._forms.get(prepare.form)
        if not self._worker.compiled(form.spec):
            return wire.Prepared(prepare.number, b"")
        made = Prepared(self._worker, form, self.inbox, self._arena.view)
        self._prepared[prepare.number] = made
        return wire.Prepared(prepare.number, made.plan, made.alone)

    def _outlook(self, start: wire.Start) -> wire.Finished:
        form = self._forms.get(start.form)
        shapes = {index: face.shape for index, face in zip(form.indices, form.faces, strict=True)}
        return wire.Finished((), wire.encode_plan(self._worker.outlook(form.spec, shapes)))

    def _array(self, face: wire.Face, offset: int) -> NDArray[Any]:
        return np.ndarray(face.shape, held_as(face.dtype), self._arena.view, offset)

    def _slice(self, job: int) -> wire.Progressed | wire.Finished:
        started = self._runs[job]
        if (share := started.run.step()) < 1.0:
            return wire.Progressed(share, _watched(started))
        values = started.run.finish()
        del self._runs[job]
        plan = wire.encode_plan(started.run.plan)
        failure = getattr(started.run, "failure", None)
        stopped = wire.Stopped(failure, tuple(failure.residuals)) if failure else None
        if started.outputs is None:
            return wire.Finished(tuple(v.tobytes() for v in values), plan, stopped=stopped)
        digests = tuple(map(_digest, started.outputs)) if started.keep else ()
        return wire.Finished((), plan, digests, stopped)


def _watched(started: _Started) -> tuple[bytes, ...]:
    """The results as they stand, if somebody watches and it is time; nothing of a job that is no program."""
    peek, now = getattr(started.run, "peek", None), time.monotonic()
    if not started.watch_s or peek is None or now < started.seen[0] + started.watch_s:
        return ()
    started.seen[0] = now
    return tuple(value.tobytes() for value in peek())


def _digest(array: NDArray[Any]) -> bytes:
    threads = blake3.AUTO if array.nbytes >= PARALLEL_HASH_BYTES else 1
    return blake3(array.reshape(-1).view(np.uint8).data, max_threads=threads).digest()
