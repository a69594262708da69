"""The large arrays that come and go: uploads into the arena, results that wait to be fetched, downloads.

Memory is reserved before a payload and freed whatever happens. Runs on the daemon's event loop; hashing of
large arrays is done on a thread.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
from blake3 import blake3

from farsum_kernels.errors import ArrayMissing, DigestMismatch, HandleGone, TruncatedStream, WireError
from farsum_kernels.job import ArrayRef
from farsum_proto import tensor, wire
from farsum_server.arena import Arena
from farsum_server.clients import Client
from farsum_server.digests import ArrivingDigest
from farsum_server.metrics import Metrics
from farsum_server.store import Held, Store

# An upload that broke off lies in the store under its digest with this in front: no client can name it so,
# and it is evicted like any array that nobody holds.
_PART = b"part of "
# Below this, sending again costs less than remembering.
LEAST_PART = 1 << 20

Chunk = bytes | memoryview


@dataclass(slots=True, eq=False)
class Parcel:
    """A large result that waits to be fetched."""

    ref: ArrayRef
    block: int
    client: Client
    expires: float


class Bulk:
    """Uploads and downloads of one daemon.

    upload_idle_s   an upload that brings nothing for so long is broken off
    ticket_ttl_s    a result that is not fetched for so long is dropped
    on_change       called when less is under way than before
    """

    def __init__(
        self,
        arena: Arena,
        store: Store,
        metrics: Metrics,
        upload_idle_s: float,
        ticket_ttl_s: float,
        on_change: Callable[[], None],
    ) -> None:
        self._arena = arena
        self._store = store
        self._metrics = metrics
        self._idle_s = upload_idle_s
        self._ttl_s = ticket_ttl_s
        self._on_change = on_change
        self._parcels: dict[bytes, Parcel] = {}
        self._downloads = 0
        self.uploads = 0

    @property
    def busy(self) -> bool:
        """Is there something that a client has still to fetch?"""
        return bool(self._parcels or self._downloads)

    @property
    def under_way(self) -> bool:
        """Is an array on its way, in or out?"""
        return bool(self.uploads or self._downloads)

    # ── arrays that come ──────────────────────────────────────────────────────────────────────────

    def keep_inline(self, tenant: str, digest: bytes, data: bytes) -> Held:
        """An array that came within a message, into the store."""
        if blake3(data).digest() != digest:
            raise DigestMismatch(f"{len(data)} bytes that came inline do not have the digest that names them")
        block = self._store.reserve(tenant, len(data))
        self._arena.view[block : block + len(data)] = data
        self._metrics.ingest.labels("inline").inc(len(data))
        return self._store.add(tenant, digest, len(data), block, block)

    async def upload(
        self, tenant: str, upload: wire.Upload, chunks: AsyncIterator[Chunk], transport: str = "bulk"
    ) -> int:
        """Receive one array, or the rest of one. Each chunk is copied before the next is asked for.

        Raises StoreFull, TruncatedStream, DigestMismatch, WireError. Nothing is stored then, but for what a
        resumable upload has brought, which the next one may go on from.
        """
        ref, size = upload.ref, upload.stream_bytes
        if self._store.find(tenant, ref.digest):
            if upload.hold:
                self._store.hold(tenant, ref.digest, upload.hold)
            return ref.nbytes
        block = self._continued(tenant, upload) if upload.offset else self._store.reserve(tenant, size)
        stream = self._arena.view[block : block + size]
        self.uploads += 1
        received, stored = [upload.offset], False
        try:
            arriving = ArrivingDigest(stream[size - ref.nbytes :])
            await self._receive(stream, received, upload.codec, chunks, arriving)
            offset = tensor.body_offset(stream, ref)
            if await arriving.finish() != ref.digest:
                raise DigestMismatch(
                    f"the bytes of an array of shape {ref.shape} do not have the digest that names them"
                )
            stored = True
        finally:
            self.uploads -= 1
            if not stored:
                self._broke_off(tenant, upload, block, received[0])
        self._store.add(tenant, ref.digest, ref.nbytes, block, block + offset, upload.hold)
        self._metrics.ingest.labels(transport).inc(size - upload.offset)
        return ref.nbytes

    def received(self, tenant: str, digest: bytes) -> int:
        """How much of its stream an upload that broke off has left here."""
        part = self._store.find(tenant, _PART + digest)
        return part.received if part else 0

    def _continued(self, tenant: str, upload: wire.Upload) -> int:
        part = self._store.find(tenant, _PART + upload.ref.digest)
        if part is None or (part.received, part.nbytes) != (upload.offset, upload.stream_bytes):
            raise TruncatedStream(
                f"there is no upload of {upload.stream_bytes} bytes here that broke off after {upload.offset}; "
                f"send all of it"
            )
        return self._store.withdraw(part)

    def _broke_off(self, tenant: str, upload: wire.Upload, block: int, received: int) -> None:
        key = _PART + upload.ref.digest
        worth = upload.resumable and LEAST_PART <= received < upload.stream_bytes
        if worth and self._store.find(tenant, key) is None:
            self._store.add(tenant, key, upload.stream_bytes, block, block).received = received
        else:
            self._store.release(block)

    async def _receive(
        self,
        region: memoryview,
        received: list[int],
        codec: str,
        chunks: AsyncIterator[Chunk],
        arriving: ArrivingDigest,
    ) -> None:
        """Fill the region from the offset in `received`, which is kept up to date."""
        size, start = len(region), received[0]
        head = size - arriving.size
        unpack = pa.Codec(codec).decompress if codec else None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._idle_s) as patience:
                async for chunk in chunks:
                    patience.reschedule(loop.time() + self._idle_s)
                    if unpack is not None:
                        chunk = _unpacked(unpack, chunk, min(wire.CHUNK_BYTES, size - start))
                    end = start + len(chunk)
                    if end > size:
                        wire.check_complete(end, size)
                    region[start:end] = chunk
                    received[0] = start = end
                    arriving.advance(end - head)
        except TimeoutError as error:
            raise TruncatedStream(
                f"the upload brought nothing for {self._idle_s:g} s; {start} of {size} bytes came"
            ) from error
        wire.check_complete(start, size)

    # ── results that go ───────────────────────────────────────────────────────────────────────────

    def offer(self, client: Client, ref: ArrayRef, block: int) -> tuple[bytes, int]:
        """A ticket for a result, which from now on owns its region, and the length of its stream."""
        ticket = secrets.token_bytes(16)
        self._parcels[ticket] = Parcel(ref, block, client, time.monotonic() + self._ttl_s)
        client.tickets.add(ticket)
        return ticket, ref.nbytes + len(self._header(ref, block))

    def _header(self, ref: ArrayRef, block: int) -> bytes:
        return tensor.header_at(self._arena.view, block, ref)

    @asynccontextmanager
    async def download(
        self, tenant: str, what: bytes | ArrayRef, transport: str = "bulk"
    ) -> AsyncIterator[tuple[bytes, memoryview]]:
        """The header and the bytes of a result, by its ticket, which is good for once, or of an array that is held.

        Raises ArrayMissing, HandleGone, WireError.
        """
        if isinstance(what, ArrayRef):
            held = self._held(tenant, what)
            ref, block, end = what, held.offset, held.unpin
            held.pins += 1
        else:
            parcel = self._parcels.pop(what, None)
            if parcel is None:
                raise ArrayMissing(
                    "this result is no longer here: it was fetched, its session ended, or it expired"
                )
            ref, block, end = parcel.ref, parcel.block, partial(self._end, what, parcel)
        self._downloads += 1
        try:
            yield self._header(ref, block), self._arena.view[block : block + ref.nbytes]
            self._metrics.egress.labels(transport).inc(ref.nbytes)
        finally:
            self._downloads -= 1
            end()
            self._on_change()

    def _held(self, tenant: str, ref: ArrayRef) -> Held:
        held = self._store.find(tenant, ref.digest)
        if held is None:
            fate = self._store.fate(tenant, ref.digest)
            raise HandleGone(fate or "the server has no such array: it may have been restarted since")
        if held.nbytes != ref.nbytes:
            raise WireError(f"a digest of {held.nbytes} bytes is asked for as an array of shape {ref.shape}")
        return held

    def discard(self, ticket: bytes) -> None:
        """Nobody will fetch this result."""
        self._end(ticket, self._parcels.pop(ticket))
        self._on_change()

    def expire(self, now: float) -> None:
        for ticket in [t for t, parcel in self._parcels.items() if parcel.expires < now]:
            self.discard(ticket)

    def _end(self, ticket: bytes, parcel: Parcel) -> None:
        self._store.release(parcel.block)
        parcel.client.tickets.discard(ticket)
        parcel.client.tell_if_idle()


def _unpacked(unpack: Callable[..., bytes], chunk: Chunk, size: int) -> bytes:
    """A compressed chunk, which says itself how it is packed but not how large it may become."""
    try:
        found = unpack(chunk, decompressed_size=size, asbytes=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise WireError(f"a compressed chunk does not unpack to {size} bytes: {error}") from error
    if len(found) != size:
        raise WireError(f"a compressed chunk unpacks to {len(found)} bytes; {size} were due")
    return found
