"""The engine in this process: the worker of the daemon, called directly. No queue, no socket, no hashing.

A small job runs on the calling thread from start to end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING, Any

from farsum_kernels.errors import DeadlineExceeded, EngineMissing
from farsum_kernels.job import Options, Outlook, Result, Spec, check_arrays
from farsum_kernels.program import Program
from farsum_server.programs import ProgramRun
from farsum_server.repeating import Faces, Repeating, faces_of
from farsum_server.worker import Run, Worker

if TYPE_CHECKING:
    from farsum_kernels.compile import Kernel

MAX_PREPARED = 256


class LocalEngine:
    """Implements farsum_kernels.job.Engine with a worker in process.

    device   "cpu", or "cuda:0" and so on; by default FARSUM_DEVICE, else "cpu": never a silent switch

    Raises EngineMissing when its backend is not installed, DeviceMissing when there is no such device.
    """

    def __init__(self, threads: int | None = None, device: str | None = None) -> None:
        try:
            self.worker = Worker(threads, device or os.environ.get("FARSUM_DEVICE") or "cpu")
        except EngineMissing:
            raise
        except ImportError as error:
            raise EngineMissing(
                "no engine in this environment: install one with `pip install 'farsum[cpu]'`, or connect to a "
                "server with farsum.connect('grpc://localhost:50051') or FARSUM_TARGET"
            ) from error

        self._prepared: dict[Spec | Program, LocalPrepared] = {}

    def prepare(self, spec: Spec | Program) -> LocalPrepared:
        """Equal specs give one object, which keeps its kernel at hand."""
        found = self._prepared.get(spec)
        if found is None:
            if len(self._prepared) >= MAX_PREPARED:
                self._prepared.clear()
            found = self._prepared[spec] = LocalPrepared(self, spec)
        return found

    def close(self) -> None:
        """Nothing is held open; here for the protocol."""

    @cached_property
    def executor(self) -> ThreadPoolExecutor:
        """The thread of `submit`. One job at a time: a job already uses all cores."""
        return ThreadPoolExecutor(1, thread_name_prefix="farsum-submit")


class LocalPrepared:
    """Implements farsum_kernels.job.Prepared."""

    def __init__(self, engine: LocalEngine, spec: Spec | Program) -> None:
        self.spec = spec
        self._engine = engine
        self._last: Faces = []
        self._repeating: Repeating | None = None  # once arrays like those of the last call have come

    @cached_property
    def kernel(self) -> Kernel:
        assert isinstance(self.spec, Spec)
        return self._engine.worker.kernel(self.spec)

    def _start(self, arrays: Mapping[int, Any]) -> Run | ProgramRun:
        if isinstance(self.spec, Program):
            return self._engine.worker.start(self.spec, arrays)
        return Run(self.kernel, arrays, check_arrays(self.spec, arrays))

    def run(self, arrays: Mapping[int, Any], options: Options = Options()) -> Result:
        """Evaluate on this thread and the worker's.

        Raises DeadlineExceeded between two slices, once the deadline has passed.
        """
        if options.deadline_s is None and (found := self.again(arrays)):
            if options.progress:
                options.progress(1.0)
            return found
        run = self._start(arrays)
        if options.deadline_s is not None or options.progress or options.watch:
            self._watch(run, options)
        else:
            while run.step() < 1.0:
                pass
        values = run.finish()
        if isinstance(run, ProgramRun) and run.failure:
            run.failure.iterate = values[0] if len(values) == 1 else values
            raise run.failure
        if isinstance(self.spec, Spec):
            self._look_at(self.spec, arrays)
        return Result(values, run.plan)

    def _look_at(self, spec: Spec, arrays: Mapping[int, Any]) -> None:
        """Two in a row that are alike: more may come."""
        faces = faces_of(arrays)
        if faces != self._last:
            self._last = faces
        elif self._repeating is None or self._repeating.faces != faces:
            self._repeating = Repeating(self._engine.worker, spec, arrays)

    def again(self, arrays: Mapping[int, Any]) -> Result | None:
        """The result of a small job that came before, on other numbers; None for any other."""
        return self._repeating.run(arrays) if self._repeating else None

    @staticmethod
    def _watch(run: Run | ProgramRun, options: Options) -> None:
        end = inf if options.deadline_s is None else time.monotonic() + options.deadline_s
        share, watched = 0.0, time.monotonic() + options.watch_s
        while time.monotonic() < end and (share := run.step()) < 1.0:
            if options.progress:
                options.progress(share)
            if options.watch and isinstance(run, ProgramRun) and time.monotonic() >= watched:
                watched = time.monotonic() + options.watch_s
                options.watch(tuple(value.copy() for value in run.peek()))
        gave_up = isinstance(run, ProgramRun) and run.failure is not None
        if share < 1.0 or (gave_up and time.monotonic() > end):
            raise DeadlineExceeded(
                f"{share:.0%} done after {options.deadline_s} s; the rest was not computed"
            )
        if options.progress:
            options.progress(1.0)

    def outlook(self, arrays: Mapping[int, Any]) -> Outlook:
        """What running on these arrays would take. Compiles the kernel, whose plan it is."""
        if isinstance(self.spec, Program):
            self.spec.check(arrays)
        else:
            check_arrays(self.spec, arrays)
        plan = self._engine.worker.outlook(self.spec, {n: a.shape for n, a in arrays.items()})
        return Outlook(f"in this process, on {self._engine.worker.name}", 0, plan)

    def submit(self, arrays: Mapping[int, Any], options: Options = Options()) -> Future[Result]:
        return self._engine.executor.submit(self.run, arrays, options)
