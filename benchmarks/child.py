"""A process of its own for each library that farsum is measured against; see benchmarks/peers.py."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from benchmarks.measure import Times, timed
from benchmarks.peers import LIBRARIES, PEERS
from benchmarks.peers_blocks import Call
from benchmarks.workloads import Array, Workload, points, rows_of


class Made(NamedTuple):
    """What a peer did when it was made ready: seconds of its first call, and rows of its answer."""

    first_s: float
    rows: Array


class Failed(Exception):
    """A peer that is installed and does not do the workload here. The message says why."""


class Child:
    """A library in a process of its own, with an empty cache of compiled code."""

    def __init__(self, library: str) -> None:
        self._cache = tempfile.TemporaryDirectory()
        folder = self._cache.name
        caches = {
            name: folder for name in ("KEOPS_CACHE_FOLDER", "TORCHINDUCTOR_CACHE_DIR", "NUMBA_CACHE_DIR")
        }
        # Threads that spin while they wait would be billed as CPU time, and disturb whoever is next.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **caches, **LIBRARIES[library].environment}
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(theirs,), daemon=False
        )
        with _environment(environment):
            self._process.start()
        theirs.close()

    def make(self, name: str, w: Workload) -> Made:
        made: Made = self._ask("make", name, w)
        return made

    def call(self, name: str) -> Times:
        times: Times = self._ask("call", name, None)
        return times

    def forget(self) -> None:
        self._ask("forget", "", None)

    def _ask(self, *request: Any) -> Any:
        try:
            self._pipe.send(request)
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise Failed("its process ended") from None
        if isinstance(answer, str):
            raise Failed(answer)
        return answer

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()
        self._cache.cleanup()


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """For what a child must find already when its interpreter starts."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(pipe: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what compilers say is no part of the table
    makers = {peer.name: peer.make for peer in PEERS}
    calls: dict[str, Call] = {}
    while True:
        try:
            what, name, w = pipe.recv()
        except EOFError:
            return
        answer: Any
        try:
            if what == "make":
                calls[name] = makers[name](w, points(w))
                first_s, _ = timed(calls[name])
                answer = Made(first_s, rows_of(w, calls[name]()))
            elif what == "call":
                answer = timed(calls[name])
            else:
                calls.clear()
                answer = None
        except Exception as error:
            answer = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        pipe.send(answer)
