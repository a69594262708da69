"""Workers for the daemon's own tests: each misbehaves in one way that the real one never should."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from farsum_kernels.job import Spec


def odd(rows: Any) -> bool:
    """Are these the rows with which a worker misbehaves?"""
    return len(rows) == 13 or rows.reshape(-1)[:1].tolist() == [13.0]


class Run:
    """Two slices, then zeros."""

    def __init__(self, shape: tuple[int, ...], outputs: Sequence[Any] | None, slices: int = 2) -> None:
        self.plan: Mapping[str, str] = {"path": "stand-in"}
        self._shape, self._outputs, self._steps, self._slices = shape, outputs, 0, slices

    def step(self) -> float:
        self._steps += 1
        return self._steps / self._slices

    def finish(self) -> tuple[Any, ...]:
        if self._outputs:
            self._outputs[0][...] = 1.0
            return tuple(self._outputs)
        return (np.zeros(self._shape, "float32"),)


class Worker:
    """The contract, without arithmetic."""

    name, kind, threads = "stand-in", "cpu", 1

    def __init__(self, threads: int | None = None, device: str = "cpu") -> None:
        pass

    def compiled(self, spec: Spec) -> bool:
        return True

    def repeated(self, spec: Spec, shapes: Mapping[int, tuple[int, ...]], into: Sequence[Any]) -> None:
        """Each job is bound anew."""

    def outlook(self, spec: Spec, shapes: Mapping[int, tuple[int, ...]]) -> Mapping[str, str]:
        return {"path": "stand-in"}

    def start(
        self,
        spec: Spec,
        arrays: Mapping[int, Any],
        outputs: Sequence[Any] | None = None,
        digests: Mapping[int, bytes] | None = None,
    ) -> Run:
        return self.begin(arrays[0], outputs)

    def begin(self, rows: Any, outputs: Sequence[Any] | None) -> Run:
        return Run((len(rows), 1), outputs)


class Quick(Worker):
    """One slice; with odd rows it takes longer than anybody waits in place."""

    def begin(self, rows: Any, outputs: Sequence[Any] | None) -> Run:
        if odd(rows):
            time.sleep(0.05)
        return Run((len(rows), 1), outputs, 1)


class SlowCompiler(Worker):
    def begin(self, rows: Any, outputs: Sequence[Any] | None) -> Run:
        if odd(rows):
            time.sleep(600)
        return super().begin(rows, outputs)


class LateCompiler(SlowCompiler):
    """Compiles, and does so again when a job is bound."""

    def compiled(self, spec: Spec) -> bool:
        return False

    def compile(self, spec: Spec) -> None:
        pass


class LongCompiler(Worker):
    """Compiles each reduction for a while, once; a job with 5000 rows must not be bound afterwards."""

    def __init__(self, threads: int | None = None, device: str = "cpu") -> None:
        self._compiled: set[bytes] = set()

    def compiled(self, spec: Spec) -> bool:
        return spec.digest in self._compiled

    def compile(self, spec: Spec) -> None:
        time.sleep(0.4)
        self._compiled.add(spec.digest)

    def begin(self, rows: Any, outputs: Sequence[Any] | None) -> Run:
        if len(rows) == 5000:
            os._exit(4)
        return super().begin(rows, outputs)


class Buggy(Quick):
    def begin(self, rows: Any, outputs: Sequence[Any] | None) -> Run:
        if odd(rows):
            raise RuntimeError("the secret of the server")
        return super().begin(rows, outputs)


class Unprepared(Quick):
    """Cannot bind a form ahead of its jobs."""

    def repeated(self, spec: Spec, shapes: Mapping[int, tuple[int, ...]], into: Sequence[Any]) -> None:
        raise RuntimeError("the secret of the server")


class Crashing(Worker):
    def begin(self, rows: Any, outputs: Sequence[Any] | None) -> Run:
        if odd(rows):
            os._exit(3)
        return super().begin(rows, outputs)


class Writing(Worker):
    """Tries to change an array that other jobs read too."""

    def begin(self, rows: Any, outputs: Sequence[Any] | None) -> Run:
        rows[...] = 0
        return super().begin(rows, outputs)


class Unable(Worker):
    def __init__(self, threads: int | None = None, device: str = "cpu") -> None:
        raise ImportError("no native code here")
