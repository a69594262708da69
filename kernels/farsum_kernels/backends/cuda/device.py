"""What is asked of a device: kernels, memory, a queue. CuPy answers it, and in the tests an emulator. Declarations only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from farsum_kernels.backends.cuda.graphs import Call
from farsum_kernels.backends.cuda.layout import Gpu

Array = NDArray[Any]


class Module(Protocol):
    """Compiled kernels."""

    def launch(
        self, name: str, grid: tuple[int, int], block: tuple[int, int], shared: int, args: Sequence[Any]
    ) -> None:
        """Queue a kernel. Buffers and int64 or int32 NumPy scalars are its arguments."""
        ...


class Driver(Protocol):
    """A device with its memory. Buffers are the driver's own and can be sliced; None stands for no memory.

    `upload`, `empty` and `load` raise DeviceFull when there is no room.
    """

    name: str
    gpu: Gpu

    def load(self, source: str) -> Module:
        """Compile kernels, or find them compiled."""
        ...

    def run(self, calls: Sequence[Call]) -> None:
        """Queue kernels one after the other. A series that comes again may be kept as one."""
        ...

    def upload(self, array: Array) -> Any:
        """A copy of a C-ordered array on the device."""
        ...

    def empty(self, count: int, dtype: str) -> Any:
        """Memory for so many numbers, which holds anything."""
        ...

    def download(self, buffer: Any, into: Array) -> None:
        """Wait for all that was queued and copy a buffer into a C-ordered array."""
        ...

    def mark(self) -> Any:
        """A point in the queue of the device."""
        ...

    def wait(self, mark: Any) -> None:
        """Until the device has come to a mark. Raises what went wrong before it."""
        ...

    def timed(self, queue: Callable[[], None]) -> float:
        """Seconds that the device takes for what is queued by a call; waits for it."""
        ...

    def room(self) -> int:
        """Bytes that `empty` can still give."""
        ...

    def release(self) -> None:
        """Give back to the device what no buffer holds any more."""
        ...

    def pinned(self, count: int, dtype: str) -> Array:
        """Memory of the host for so many numbers, that a device copies from by itself."""
        ...

    def send(self, source: Array, buffer: Any, after: Any) -> Any:
        """Copy pinned memory to the front of a buffer while the device computes, once it has come to a mark; or None.

        What is launched later waits for it. Gives a mark: until then the source must not change.
        """
        ...
