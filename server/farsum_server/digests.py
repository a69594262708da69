"""The digest of an array that is still arriving, taken on a thread while more of it comes. Never copies."""

from __future__ import annotations

import asyncio

from blake3 import blake3

# What is handed to a thread at once, and up to where hashing takes less than handing it over.
PIECE_BYTES = 4 << 20
AT_ONCE_BYTES = 256 << 10


class ArrivingDigest:
    """BLAKE3 of a region that is filled from its start on."""

    def __init__(self, body: memoryview) -> None:
        self._body = body
        self.size = len(body)
        self._hasher = blake3()
        self._done = 0
        self._under_way: asyncio.Future[object] | None = None

    def advance(self, filled: int) -> None:
        """So many bytes of the region are there; those that are new may be hashed from now on."""
        idle = self._under_way is None or self._under_way.done()
        if idle and filled - self._done >= PIECE_BYTES:
            piece, self._done = self._body[self._done : filled], filled
            self._under_way = asyncio.get_running_loop().run_in_executor(None, self._hasher.update, piece)

    async def finish(self) -> bytes:
        """The digest, when all of the region is there."""
        await self.rest()
        left = self._body[self._done :]
        if len(left) > AT_ONCE_BYTES:
            await asyncio.to_thread(self._hasher.update, left)
        else:
            self._hasher.update(left)
        return self._hasher.digest()

    async def rest(self) -> None:
        """Return when no thread reads the region."""
        if self._under_way is not None:
            await self._under_way
