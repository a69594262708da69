"""The CUDA backend on the host: its launches go to the emulator instead of a device. Everything else is the real thing."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.backends.cuda.graphs import Call, Graphs
from farsum_kernels.backends.cuda.layout import Gpu
from farsum_kernels.errors import DeviceFull
from tests.cuda import emulate

Pace = Literal["at once", "early copies", "late copies"]


class EmulatedModule:
    def __init__(self, module: emulate.Module, driver: EmulatedDriver) -> None:
        self._module, self._driver = module, driver

    def launch(
        self, name: str, grid: tuple[int, int], block: tuple[int, int], shared: int, args: Sequence[Any]
    ) -> None:
        driver = self._driver
        driver.launches.append(name)
        driver.queue(
            lambda: emulate.launch(self._module, name, grid, block, shared, args, order=driver.order)
        )


class _Memory:
    """Memory of the device; arrays of it keep it from being given out again."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__


def _recorded(calls: Sequence[Call]) -> list[Call]:
    """The calls with addresses for buffers: like a graph it keeps no memory from being given out again."""

    def bare(arg: Any) -> Any:
        if not isinstance(arg, np.ndarray):
            return arg
        memory: Any = (ctypes.c_char * arg.nbytes).from_address(arg.ctypes.data)
        return np.frombuffer(memory, arg.dtype)

    return [call._replace(args=[bare(arg) for arg in call.args]) for call in calls]


class EmulatedDriver:
    """A small device: few processors, so that small jobs are cut into splits and slices too.

    budget   bytes of its memory, None for all there is; past them `empty` raises DeviceFull
    claims   bytes that `room` says there are, where that is not the truth
    pace     when things happen: each when it is asked for; or kernels only when somebody waits, and copies beside
             them as soon, or as late, as they may
    """

    name, arch = "an emulated device", 90

    def __init__(
        self,
        order: emulate.Order = "forward",
        processors: int = 2,
        rate: float = 1e15,
        budget: int | None = None,
        claims: int | None = None,
        pace: Pace = "at once",
    ) -> None:
        self.total_bytes = budget or 1 << 32
        self.gpu = Gpu(processors, rate, self.total_bytes // 4)
        self.order, self.pace = order, pace
        self.budget, self.claims = budget or 1 << 62, claims
        self.held = self.peak = self.uploaded = 0
        self.launches: list[str] = []
        self.seconds: Callable[[list[str]], float] = len
        self.graphs = Graphs(
            lambda call: call.module.launch(*call[1:]),
            _recorded,
            self._play,
            lambda buffer: buffer.ctypes.data,
        )
        self._free_memory: dict[int, list[NDArray[np.uint8]]] = {}
        self._queue: list[Callable[[], None]] = []
        self._begun = 0  # tasks of the queue that are done, since the beginning
        self._copies: list[
            tuple[int, Callable[[], None]]
        ] = []  # not yet made, by the place where they are waited for

    # ── kernels ───────────────────────────────────────────────────────────────────────────────────

    def load(self, source: str) -> EmulatedModule:
        return EmulatedModule(emulate.compile(source), self)

    def run(self, calls: Sequence[Call]) -> None:
        self.graphs.run(calls)

    def _play(self, series: Sequence[Call]) -> None:
        for call in series:
            call.module.launch(*call[1:])

    def queue(self, task: Callable[[], None]) -> None:
        self._queue.append(task)
        if self.pace == "at once":
            self._run()

    def _run(self, upto: int | None = None) -> None:
        """What is queued, in order, up to a mark."""
        while self._queue and (upto is None or self._begun < upto):
            self._copy(self._begun)
            self._queue.pop(0)()
            self._begun += 1

    def _copy(self, before: int) -> None:
        while self._copies and self._copies[0][0] <= before:
            self._copies.pop(0)[1]()

    # ── memory ────────────────────────────────────────────────────────────────────────────────────

    def empty(self, count: int, dtype: str) -> NDArray[Any]:
        size = max(1, count) * np.dtype(dtype).itemsize
        if self.held + size > self.budget:
            raise DeviceFull(f"{size} bytes, {self.budget - self.held} of {self.budget} are free")
        # What was given back is given out again, so that equal jobs find the same places, as they do on a device.
        free = self._free_memory.setdefault(size, [])
        memory = free.pop() if free else np.empty(size, np.uint8)
        memory[:] = 0xFF  # NaN, or indices that no array has
        self.held += size
        self.peak = max(self.peak, self.held)
        held = _Memory(memory)
        weakref.finalize(held, self._give_back, memory)
        return np.asarray(held).view(dtype)

    def _give_back(self, memory: NDArray[np.uint8]) -> None:
        self.held -= memory.nbytes
        self._free_memory[memory.nbytes].append(memory)

    def timed(self, queue: Callable[[], None]) -> float:
        before = len(self.launches)
        queue()
        self._run()
        # What a kernel takes here says nothing of a device: a test says it.
        return self.seconds(self.launches[before:])

    def room(self) -> int:
        return self.budget - self.held if self.claims is None else self.claims

    def release(self) -> None:
        self._run()

    def upload(self, array: NDArray[Any]) -> NDArray[Any]:
        made = self.empty(array.size, array.dtype.name)
        made[: array.size] = array.reshape(-1)
        self.uploaded += array.nbytes
        return made

    def download(self, buffer: NDArray[Any], into: NDArray[Any]) -> None:
        self._run()
        into.reshape(-1)[:] = buffer[: into.size]

    def mark(self) -> int:
        return self._begun + len(self._queue)

    def wait(self, mark: int) -> None:
        self._run(mark)
        self._copy(mark)

    def pinned(self, count: int, dtype: str) -> NDArray[Any]:
        return np.full(max(1, count), 0xFF, np.uint8).repeat(np.dtype(dtype).itemsize).view(dtype)

    def send(self, source: NDArray[Any], buffer: NDArray[Any], after: int | None) -> int:
        def copy() -> None:
            buffer[: source.size] = source
            self.uploaded += source.nbytes

        if after is not None and self.pace != "late copies":
            self._run(after)
        if self.pace == "late copies":
            self._copies.append((self.mark(), copy))
        else:
            copy()
        return self.mark()
