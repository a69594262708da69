"""The arrays that a server holds, by content. A cache: whatever it drops, a client sends again.

Single-threaded: only the daemon's event loop calls it. Never copies or hashes; see daemon.py for that.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from farsum_kernels.errors import StoreFull
from farsum_server.arena import Allocator


@dataclass(slots=True, eq=False)
class Held:
    """An array in the arena. While `pins` is above 0, a job uses it and it stays.

    `block` is where its region starts, `offset` where its bytes do: an uploaded array keeps the
    Arrow header in front of it.
    """

    tenant: str
    digest: bytes
    nbytes: int
    block: int
    offset: int
    pins: int = 0


class Store:
    """Regions and named arrays over one allocator, least recently used out first."""

    def __init__(self, allocator: Allocator) -> None:
        self._allocator = allocator
        self._held: OrderedDict[tuple[str, bytes], Held] = OrderedDict()
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def capacity(self) -> int:
        return self._allocator.capacity

    @property
    def used(self) -> int:
        return self._allocator.used

    def reserve(self, nbytes: int) -> int:
        """The start of a region of so many bytes, evicting what nobody uses if need be.

        Raises StoreFull.
        """
        if nbytes > self.capacity:
            raise StoreFull(
                f"{nbytes} bytes do not fit into a store of {self.capacity} bytes; raise --store-bytes"
            )
        while (start := self._allocator.take(nbytes)) is None:
            idle = next((held for held in self._held.values() if not held.pins), None)
            if idle is None:
                raise StoreFull(
                    f"no room for {nbytes} bytes: {self.used} of {self.capacity} are in use by uploads and jobs"
                )
            self._evict(idle)
        return start

    def release(self, block: int) -> None:
        self._allocator.give(block)

    def add(self, tenant: str, digest: bytes, nbytes: int, block: int, offset: int) -> Held:
        """Name the array in a reserved region. If another upload was first, its copy stays."""
        if found := self.find(tenant, digest):
            self.release(block)
            return found
        held = Held(tenant, digest, nbytes, block, offset)
        self._held[tenant, digest] = held
        return held

    def find(self, tenant: str, digest: bytes) -> Held | None:
        key = (tenant, digest)
        if held := self._held.get(key):
            self._held.move_to_end(key)
        return held

    def _evict(self, held: Held) -> None:
        del self._held[held.tenant, held.digest]
        self._allocator.give(held.block)
        self.evictions += 1
