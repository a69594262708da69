"""The arrays that a server holds, by tenant and content. Never copies, hashes or reads one; see bulk.py for that.

What clients can send again is a cache. A kept result is the only copy: it goes when its last holder lets go
or leaves, or when nobody has used it for long. Single-threaded: only the daemon's event loop calls it.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile

from farsum_kernels.errors import QuotaExceeded, StoreFull
from farsum_proto.wire import HOLDER_BYTES
from farsum_server.arena import Allocator

MAX_HELD = 1 << 16  # arrays of all tenants: an empty array takes no room in the arena, but its name does
MAX_FATES = 4096
MAX_HOLDS = 1024  # of one array
PRESSED_S = 0.5  # when room that jobs and uploads take now may be free again


@dataclass(slots=True, eq=False)
class Held:
    """An array in the arena. While `pins` is above 0, a job or a download uses it and it stays.

    block      where its region starts; `offset` is where its bytes do: an uploaded array keeps the Arrow
               header in front of it
    kept       no client has these bytes: a result that was left here
    holds      the tokens of the handles to it
    used       when it was last used
    received   of an upload that broke off: how much of it is here
    """

    tenant: str
    digest: bytes
    nbytes: int
    block: int
    offset: int
    used: float
    pins: int = 0
    kept: bool = False
    holds: set[bytes] = field(default_factory=set)
    received: int = 0

    def unpin(self) -> None:
        self.pins -= 1


class Store:
    """Regions and named arrays over one allocator, least recently used out first.

    quota_bytes   how much of the memory one tenant may take, regions of jobs and uploads included
    ttl_s         handles to an array that nobody has used for so long are void
    """

    def __init__(
        self,
        allocator: Allocator,
        quota_bytes: int | None = None,
        ttl_s: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allocator = allocator
        self._quota = allocator.capacity if quota_bytes is None else quota_bytes
        self._ttl = ttl_s
        self._clock = clock
        self._held: OrderedDict[tuple[str, bytes], Held] = OrderedDict()
        self._owners: dict[int, str] = {}  # of each region
        self._usage: Counter[str] = Counter()
        self._present: Counter[bytes] = Counter()  # holders, by their open sessions
        self._fates: OrderedDict[tuple[str, bytes], str] = OrderedDict()
        self.evictions = 0
        # Are there jobs or uploads, other than the one that asks, whose memory will be free again?
        self.under_way: Callable[[], bool] = lambda: False

    def __len__(self) -> int:
        return len(self._held)

    @property
    def capacity(self) -> int:
        return self._allocator.capacity

    @property
    def used(self) -> int:
        return self._allocator.used

    @property
    def handles(self) -> int:
        """Tokens that hold an array."""
        return sum(len(held.holds) for held in self._held.values())

    # ── regions ───────────────────────────────────────────────────────────────────────────────────

    def reserve(self, tenant: str, nbytes: int) -> int:
        """The start of a region of so many bytes, evicting what nobody uses if need be.

        Raises StoreFull and QuotaExceeded.
        """
        if nbytes > self.capacity:
            raise StoreFull(
                f"{nbytes} bytes do not fit into a store of {self.capacity} bytes; raise --store-bytes"
            )
        if nbytes > self._quota:
            raise QuotaExceeded(
                f"{nbytes} bytes are more than the {self._quota} that one tenant may use here; see --tenant-bytes"
            )
        while self._usage[tenant] + self._allocator.rounded(nbytes) > self._quota:
            if not self._evict_one(tenant):
                raise self._no_room(QuotaExceeded, nbytes, self._usage[tenant], self._quota, tenant)
        while len(self._held) >= MAX_HELD or (start := self._allocator.take(nbytes)) is None:
            if not self._evict_one():
                raise self._no_room(StoreFull, nbytes, self.used, self.capacity, tenant)
        self._owners[start] = tenant
        self._usage[tenant] += self._allocator.rounded(nbytes)
        return start

    def _no_room(self, kind: type[StoreFull], nbytes: int, used: int, limit: int, tenant: str) -> StoreFull:
        kept = [held.nbytes for held in self._held.values() if held.kept and held.tenant == tenant]
        text = f"no room for {nbytes} bytes: {used} of {limit} are in use by uploads, jobs and kept results"
        if kept:
            text += (
                f"; {len(kept)} kept results of yours take {sum(kept)}: farsum.drop those that are not needed"
            )
        error = kind(text)
        if self.under_way():
            error.retry_after_s = PRESSED_S
        return error

    def release(self, block: int) -> None:
        self._usage[self._owners.pop(block)] -= self._allocator.give(block)

    # ── arrays ────────────────────────────────────────────────────────────────────────────────────

    def add(
        self, tenant: str, digest: bytes, nbytes: int, block: int, offset: int, token: bytes = b"", kept: bool = False
    ) -> Held:  # fmt: skip
        """Name the array in a reserved region. If another upload or job was first, its copy stays."""
        held = self.find(tenant, digest)
        if held is not None:
            self.release(block)
        else:
            held = Held(tenant, digest, nbytes, block, offset, self._clock())
            self._held[tenant, digest] = held
            self._fates.pop((tenant, digest), None)
        held.kept = held.kept or kept
        if token:
            self._add_hold(held, token)
        return held

    def find(self, tenant: str, digest: bytes) -> Held | None:
        key = (tenant, digest)
        if held := self._held.get(key):
            self._held.move_to_end(key)
            held.used = self._clock()
        return held

    def withdraw(self, held: Held) -> int:
        """Take the name off an array; gives its region, which stays reserved."""
        del self._held[held.tenant, held.digest]
        return held.block

    def fate(self, tenant: str, digest: bytes) -> str:
        """What became of a kept result of this tenant, if that is known."""
        return self._fates.get((tenant, digest), "")

    def expire(self) -> None:
        """Void the handles to what nobody has used for long."""
        before = self._clock() - self._ttl
        old = takewhile(lambda held: held.used < before, self._held.values())
        for held in [h for h in old if not h.pins and (h.holds or h.kept)]:
            held.holds.clear()
            if held.kept:
                self._end(held, f"it expired: nobody had used it for {self._ttl:g} s")

    # ── holders ───────────────────────────────────────────────────────────────────────────────────

    def hold(self, tenant: str, digest: bytes, token: bytes) -> bool:
        """Whether the array is here, and is now held by the token."""
        if held := self.find(tenant, digest):
            self._add_hold(held, token)
        return held is not None

    def _add_hold(self, held: Held, token: bytes) -> None:
        if len(held.holds) >= MAX_HOLDS and token not in held.holds:
            raise QuotaExceeded(f"more than {MAX_HOLDS} handles to one array; farsum.drop some")
        held.holds.add(token)

    def let_go(self, tenant: str, digest: bytes, token: bytes) -> None:
        """The token holds the array no more. What nobody holds is freed, once no job uses it."""
        held = self._held.get((tenant, digest))
        if held is None or token not in held.holds:
            return
        held.holds.discard(token)
        if not held.holds and held.pins:
            held.kept = False  # a job reads it still: it becomes an array that may be evicted
        elif not held.holds:
            self._end(held, "it was dropped")

    def arrive(self, holder: bytes) -> None:
        """A session of this holder is open."""
        self._present[holder] += 1

    def leave(self, holder: bytes) -> None:
        """It is closed. What its last session leaves behind may be evicted, if nobody comes back for it."""
        self._present[holder] -= 1
        if self._present[holder] <= 0:
            del self._present[holder]

    # ── eviction ──────────────────────────────────────────────────────────────────────────────────

    def _evict_one(self, tenant: str | None = None) -> bool:
        """Drop the array that is missed least: one that nobody holds, else one that its holder can send again."""
        second: Held | None = None
        for held in self._held.values():
            if held.pins or tenant not in (None, held.tenant):
                continue
            if not any(token[:HOLDER_BYTES] in self._present for token in held.holds):
                break
            if second is None and not held.kept:
                second = held
        else:
            if second is None:
                return False
            held = second
        self._end(held, "the server needed its memory while its owner was not connected")
        self.evictions += 1
        return True

    def _end(self, held: Held, fate: str) -> None:
        del self._held[held.tenant, held.digest]
        self.release(held.block)
        if held.kept:
            self._fates[held.tenant, held.digest] = fate
            if len(self._fates) > MAX_FATES:
                self._fates.popitem(last=False)
