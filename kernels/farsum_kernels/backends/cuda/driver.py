"""A CUDA device through CuPy: its memory, its one stream, its modules. The only module that touches a GPU.

Every failure of CUDA is translated here. After a fault nothing on the device works any more for this process.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.backends.cuda import nvrtc
from farsum_kernels.backends.cuda.graphs import Call, Graphs
from farsum_kernels.backends.cuda.installed import device_count, open_cupy
from farsum_kernels.backends.cuda.layout import Gpu
from farsum_kernels.backends.cuda.modules import Modules
from farsum_kernels.errors import DeviceFault, DeviceFull, DeviceMissing

Array = NDArray[Any]

LANES = 128  # multiply-adds of one processor in one cycle
STATE_SHARE = 4  # states of a job take at most this part of the device's memory
MAX_MODULES = 512  # loaded at once

NEVER = 1 << 30

_MEMORY = 2
log = logging.getLogger(__name__)


def _launch(call: Call) -> None:
    call.module.launch(*call[1:])


class CudaModule:
    """Compiled kernels. Loaded when first launched, and again after the driver has dropped them."""

    def __init__(self, driver: CudaDriver, path: Path) -> None:
        self._driver, self._path = driver, path

    def launch(
        self, name: str, grid: tuple[int, int], block: tuple[int, int], shared: int, args: Sequence[Any]
    ) -> None:
        self._driver.launch(self._path, name, grid, block, shared, args)

    def load(self, name: str) -> None:
        """Have a kernel at hand."""
        self._driver.loaded(self._path, name)


class CudaDriver:
    """One GPU.

    Raises EngineMissing without CuPy, DeviceMissing without that GPU, CompilerMissing without NVRTC.
    """

    def __init__(self, number: int = 0) -> None:
        self._cupy = cupy = open_cupy()
        if (count := device_count()) <= number:
            raise DeviceMissing(
                f"cuda:{number} does not exist: this machine has {count} GPU{'s' * (count != 1)} that CUDA can see "
                "(CUDA_VISIBLE_DEVICES chooses); the CPU computes without one: --device cpu"
            )
        self.number = number
        with self._translated():
            device = cupy.cuda.Device(number)
            device.use()
            properties = cupy.cuda.runtime.getDeviceProperties(number)
            self.arch = properties["major"] * 10 + properties["minor"]
            self.name = properties["name"].decode()
            self.total_bytes = int(properties["totalGlobalMem"])
            clock_hz = device.attributes.get("ClockRate", 1_500_000) * 1e3
            processors = int(properties["multiProcessorCount"])
            self._stream = cupy.cuda.Stream(non_blocking=True)
            self._copies = cupy.cuda.Stream(non_blocking=True)
            self._pool = cupy.cuda.MemoryPool()
        self.gpu = Gpu(processors, processors * clock_hz * LANES, self.total_bytes // STATE_SHARE)
        nvrtc.compiler()
        # CuPy loads from a path, and a path that it has seen must never hold other bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="farsum-cubin-")
        self._modules = Modules(lambda path: cupy.RawModule(path=str(path)), self._unload, MAX_MODULES)
        self.graphs = Graphs(_launch, self._record, self._play, lambda buffer: int(buffer.data.ptr))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        cuda = self._cupy.cuda
        try:
            yield
        except cuda.memory.OutOfMemoryError as error:
            raise DeviceFull(f"the GPU is out of memory: {error}") from error
        except (cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError) as error:
            if error.status == _MEMORY:
                raise DeviceFull(f"the GPU is out of memory: {error}") from error
            raise DeviceFault(
                f"a kernel faulted on {getattr(self, 'name', 'the GPU')}, and this process cannot use it any more: "
                f"{error}"
            ) from error

    def memory(self) -> tuple[int, int]:
        """Bytes that are free on the device, and all that it has."""
        with self._translated(), self._cupy.cuda.Device(self.number):
            free, total = self._cupy.cuda.runtime.memGetInfo()
            return int(free), int(total)

    # ── kernels ───────────────────────────────────────────────────────────────────────────────────

    def load(self, source: str) -> CudaModule:
        """Compile kernels for this device, or find them compiled."""
        key, code = nvrtc.cubin(source, self.arch)
        path = Path(self._folder.name, f"{key}.cubin")
        if not path.exists():
            path.write_bytes(code)
        return CudaModule(self, path)

    def _unload(self) -> None:
        # CuPy memoises modules by their path; a kernel must not run when its code goes.
        self._stream.synchronize()
        self.graphs.drop()
        self._cupy.clear_memo()

    def loaded(self, path: Path, name: str) -> Any:
        """A kernel, loaded now if it is new or was dropped."""
        with self._cupy.cuda.Device(self.number):
            return self._modules.function(path, name)

    def launch(
        self,
        path: Path,
        name: str,
        grid: tuple[int, int],
        block: tuple[int, int],
        shared: int,
        args: Sequence[Any],
    ) -> None:
        """Queue a kernel; see `Module.launch`."""
        with self._translated(), self._cupy.cuda.Device(self.number), self._stream:
            pointers = tuple(np.int64(0) if a is None else a for a in args)
            self._modules.function(path, name)(grid, block, pointers, shared_mem=shared)

    def run(self, calls: Sequence[Call]) -> None:
        """Queue kernels one after the other; see `Driver.run`."""
        self.graphs.run(calls)

    def _record(self, calls: Sequence[Call]) -> Any:
        """A series as a CUDA graph; None if it cannot be made, and then none is made any more."""
        cuda, drops = self._cupy.cuda, self._modules.drops
        with self._translated():
            # Nothing may be loaded while the stream is recorded.
            for call in calls:
                call.module.load(call.name)
            if self._modules.drops != drops:
                return None
        try:
            with cuda.Device(self.number), self._stream:
                self._stream.begin_capture()
                try:
                    for call in calls:
                        _launch(call)
                finally:
                    graph = self._stream.end_capture()
        except (cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError, DeviceFault) as error:
            log.warning("launches are not recorded on this device: %s", error)
            self.graphs.least = NEVER
            return None
        return graph

    def _play(self, graph: Any) -> None:
        with self._translated(), self._cupy.cuda.Device(self.number):
            graph.launch(stream=self._stream)

    # ── memory ────────────────────────────────────────────────────────────────────────────────────

    def empty(self, count: int, dtype: str) -> Any:
        """Memory for so many numbers. What earlier jobs left is given back before a job is refused."""
        cupy = self._cupy
        with self._translated(), cupy.cuda.Device(self.number), self._stream:
            size = max(1, count) * np.dtype(dtype).itemsize
            try:
                memory = self._pool.malloc(size)
            except cupy.cuda.memory.OutOfMemoryError:
                self.release()
                memory = self._pool.malloc(size)
            return cupy.ndarray(max(1, count), dtype, memory)

    def timed(self, queue: Callable[[], None]) -> float:
        """Seconds that the device takes for what is queued by a call; waits for it."""
        with self._translated(), self._cupy.cuda.Device(self.number):
            begin, end = (self._cupy.cuda.Event() for _ in range(2))
            begin.record(self._stream)
            queue()
            end.record(self._stream)
            end.synchronize()
            return float(self._cupy.cuda.get_elapsed_time(begin, end)) / 1e3

    def room(self) -> int:
        """Bytes that `empty` can still give: what is free on the device, and what earlier jobs left in the pool."""
        return self.memory()[0] + int(self._pool.free_bytes())

    def release(self) -> None:
        """Give back to the device what no buffer holds any more."""
        with self._translated(), self._cupy.cuda.Device(self.number):
            self._stream.synchronize()
            self._copies.synchronize()
            self._pool.free_all_blocks()

    def upload(self, array: Array) -> Any:
        """A copy of a C-ordered array on the device."""
        buffer = self.empty(array.size, array.dtype.name)
        if array.size:
            with self._translated(), self._cupy.cuda.Device(self.number):
                buffer.set(np.ascontiguousarray(array).reshape(-1), stream=self._stream)
        return buffer

    def download(self, buffer: Any, into: Array) -> None:
        """Wait for all that was queued and copy a buffer into a C-ordered array."""
        with self._translated(), self._cupy.cuda.Device(self.number):
            values = self._cupy.asnumpy(buffer, stream=self._stream, order="C")
            self._stream.synchronize()
        into.reshape(-1)[:] = values[: into.size]

    def mark(self) -> Any:
        """A point in the queue of the device."""
        with self._translated(), self._cupy.cuda.Device(self.number):
            event = self._cupy.cuda.Event(block=True, disable_timing=True)
            event.record(self._stream)
            return event

    def wait(self, mark: Any) -> None:
        """Until the device has come to a mark. Raises what went wrong before it."""
        with self._translated():
            mark.synchronize()

    # ── copies beside computing ───────────────────────────────────────────────────────────────────

    def pinned(self, count: int, dtype: str) -> Array:
        """Page-locked memory of the host for so many numbers; plain memory, from which copies wait, if there is none."""
        size = max(1, count) * np.dtype(dtype).itemsize
        try:
            with self._translated(), self._cupy.cuda.Device(self.number):
                memory = self._cupy.cuda.alloc_pinned_memory(size)
        except DeviceFull:
            return np.empty(max(1, count), dtype)
        return np.frombuffer(memory, dtype, max(1, count))

    def send(self, source: Array, buffer: Any, after: Any) -> Any:
        """Copy pinned memory to the front of a buffer on a stream of its own; see `Driver.send`."""
        with self._translated(), self._cupy.cuda.Device(self.number):
            if after is not None:
                self._copies.wait_event(after)
            buffer.data.copy_from_host_async(source.ctypes.data, source.nbytes, self._copies)
            event = self._cupy.cuda.Event(block=True, disable_timing=True)
            event.record(self._copies)
            self._stream.wait_event(event)
            return event
