"""The engine in this process: the worker of the daemon, called directly. No queue, no socket, no hashing.

A small job runs on the calling thread from start to end.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np

from farsum_kernels.errors import DeadlineExceeded, EngineMissing
from farsum_kernels.job import Options, Result, Spec
from farsum_server.worker import Worker


class LocalEngine:
    """Implements farsum_kernels.job.Engine with a worker in process.

    Raises EngineMissing when the CPU backend is not installed.
    """

    def __init__(self, threads: int | None = None) -> None:
        try:
            self.worker = Worker(threads)
        except ImportError as error:
            raise EngineMissing(
                "no engine in this environment: install one with `pip install 'farsum[cpu]'`, or connect to a "
                "server with farsum.connect('grpc://localhost:50051') or FARSUM_TARGET"
            ) from error

    def prepare(self, spec: Spec) -> LocalPrepared:
        return LocalPrepared(self, spec)

    def close(self) -> None:
        """Nothing is held open; here for the protocol."""

    @cached_property
    def executor(self) -> ThreadPoolExecutor:
        """The thread of `submit`. One job at a time: a job already uses all cores."""
        return ThreadPoolExecutor(1, thread_name_prefix="farsum-submit")


class LocalPrepared:
    """Implements farsum_kernels.job.Prepared."""

    def __init__(self, engine: LocalEngine, spec: Spec) -> None:
        self.spec = spec
        self._engine = engine

    def run(self, arrays: Mapping[int, Any], options: Options = Options()) -> Result:
        """Evaluate on this thread and the worker's.

        Raises DeadlineExceeded between two slices, once the deadline has passed.
        """
        end = None if options.deadline_s is None else time.monotonic() + options.deadline_s
        run = self._engine.worker.start(self.spec, {n: np.asarray(a) for n, a in arrays.items()})
        while (share := run.step()) < 1.0:
            if options.progress:
                options.progress(share)
            if end is not None and time.monotonic() > end:
                raise DeadlineExceeded(
                    f"{share:.0%} done after {options.deadline_s} s; the rest was not computed"
                )
        values = run.finish()
        if options.progress:
            options.progress(1.0)
        return Result(values, run.plan)

    def submit(self, arrays: Mapping[int, Any], options: Options = Options()) -> Future[Result]:
        return self._engine.executor.submit(self.run, arrays, options)
