"""Memory of one connection that two processes map, in places that are filled and emptied in turn.

Whoever made it sealed its size, so that no copy from it can meet its end. Knows no message and no array. Linux only.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os

from farsum_kernels.errors import WireError

# With two places, one side fills while the other empties; the others even out how long each takes.
PLACES = 4
PLACE_BYTES = 1 << 20
_MAX_BYTES = 1 << 30


class Window:
    """`places` places of `place_bytes` bytes. Close it once no copy is under way."""

    def __init__(self, fd: int, places: int, place_bytes: int) -> None:
        self.places = places
        self.place_bytes = place_bytes
        self._map = mmap.mmap(fd, places * place_bytes)
        self._view = memoryview(self._map)

    @classmethod
    def create(cls) -> tuple[Window, int]:
        """A window, and the descriptor with which another process attaches to it: close that once it is sent."""
        fd = os.memfd_create("farsum-window", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, PLACES * PLACE_BYTES)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            return cls(fd, PLACES, PLACE_BYTES), fd
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int, places: int, place_bytes: int) -> Window:
        """The window behind a descriptor that came from another process. Raises WireError for what is none."""
        size = places * place_bytes
        if not 0 < size <= _MAX_BYTES:
            raise WireError(f"a window of {places} places of {place_bytes} bytes is none")
        try:
            sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        except OSError as error:
            raise WireError("the descriptor of a window is no memory") from error
        if not sealed or os.fstat(fd).st_size != size:
            raise WireError(f"the memory of a window is not {size} bytes, sealed against shrinking")
        return cls(fd, places, place_bytes)

    def place(self, number: int) -> memoryview:
        """The place that comes after so many others."""
        start = number % self.places * self.place_bytes
        return self._view[start : start + self.place_bytes]

    def fill(self, number: int, header: bytes, body: memoryview, offset: int) -> int:
        """Copy the stream of a header and a body, from an offset on, into a place; gives how many bytes it took."""
        place, head = self.place(number), b""
        if offset < len(header):
            head = header[offset : offset + len(place)]
            place[: len(head)] = head
        start = max(0, offset - len(header))
        rest = body[start : start + len(place) - len(head)]
        place[len(head) : len(head) + len(rest)] = rest
        return len(head) + len(rest)

    def close(self) -> None:
        self._view.release()
        with contextlib.suppress(
            BufferError
        ):  # a place is still looked into; the memory goes with the last look
            self._map.close()
