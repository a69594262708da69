"""What a job needs of the store before it starts, and gives back: its arrays, pinned, and regions for its results.

Everything is taken or nothing. Never reads an array.
"""

from __future__ import annotations

from typing import NamedTuple

from farsum_kernels.errors import FarsumError, WireError
from farsum_kernels.job import ArrayRef
from farsum_proto import wire
from farsum_server.bulk import Bulk
from farsum_server.clients import Client
from farsum_server.jobs import Job
from farsum_server.queue import Impossible
from farsum_server.store import Held, Store


class Supplied(NamedTuple):
    """What a job starts with: the arrays that it reads, pinned, the regions that it writes, and what an outlook misses."""

    start: wire.Start
    pins: list[Held]
    blocks: list[int]
    missing: tuple[bytes, ...] = ()


class Supply:
    """The arrays of jobs. `sent` counts the bytes of results that went within a message."""

    def __init__(self, store: Store, bulk: Bulk) -> None:
        self._store = store
        self._bulk = bulk
        self.sent = 0

    def settle_claims(self, client: Client, residency: wire.Residency) -> wire.Need:
        """Hold arrays and let others go; gives those to hold that are not here."""
        missing = [
            digest for digest, token in residency.hold if not self._store.hold(client.tenant, digest, token)
        ]
        for digest, token in residency.release:
            self._store.let_go(client.tenant, digest, token)
        return self.need(client.tenant, missing)

    def need(self, tenant: str, missing: list[bytes]) -> wire.Need:
        digests = tuple(dict.fromkeys(missing))
        reasons = tuple([self._store.fate(tenant, digest) for digest in digests])
        return wire.Need(digests, reasons, tuple([self._bulk.received(tenant, digest) for digest in digests]))

    def provide(self, tenant: str, form: wire.Form, request: wire.Request) -> wire.Need | Supplied:
        """What the job starts with; or what is missing. An outlook takes nothing, and says itself what is missing.

        Raises StoreFull.
        """
        found = self._find(tenant, form, request.contents)
        if request.outlook:
            start = wire.Start(request.form, (), (), outlook=True)
            if isinstance(found, wire.Need):
                return Supplied(start, [], [], found.digests)
            return Supplied(start, found[1], [])
        if isinstance(found, wire.Need):
            return found
        places, pins = found
        try:
            blocks = self._blocks(tenant, form, bool(request.keep))
        except FarsumError:
            self.unpin(pins)
            raise
        digests = tuple([content.digest for content in request.contents])
        start = wire.Start(
            request.form, places, tuple(blocks), False, digests, bool(request.keep), request.watch_s
        )
        return Supplied(start, pins, blocks)

    def _find(
        self, tenant: str, form: wire.Form, contents: tuple[wire.Content, ...]
    ) -> wire.Need | tuple[tuple[int | bytes, ...], list[Held]]:
        """Where the job's arrays are, pinned in the store; or those that are missing."""
        places: list[int | bytes] = []
        pins: list[Held] = []
        missing: list[bytes] = []
        try:
            for face, content in zip(form.faces, contents, strict=True):
                if not content.digest and content.inline is not None:
                    places.append(content.inline)
                elif held := self._pinned(tenant, face, content):
                    pins.append(held)
                    places.append(held.offset)
                else:
                    missing.append(content.digest)
        except FarsumError:
            self.unpin(pins)
            raise
        if missing:
            self.unpin(pins)
            return self.need(tenant, missing)
        return tuple(places), pins

    def _pinned(self, tenant: str, face: wire.Face, content: wire.Content) -> Held | None:
        """An array, pinned, if it is here or came along."""
        held = self._store.find(tenant, content.digest)
        if held is None and content.inline is not None:
            held = self._bulk.keep_inline(tenant, content.digest, content.inline)
        if held is None:
            return None
        if held.nbytes != face.nbytes:
            raise WireError(f"a digest of {held.nbytes} bytes is used for an array of shape {face.shape}")
        held.pins += 1
        return held

    def _blocks(self, tenant: str, form: wire.Form, keep: bool) -> list[int]:
        """Regions for the results, if they stay or any of them is too large to travel inline."""
        blocks: list[int] = []
        if not keep and max(face.nbytes for face in form.outputs) <= wire.INLINE_BYTES:
            return blocks
        try:
            for face in form.outputs:
                blocks.append(self._store.reserve(tenant, face.nbytes))
        except FarsumError:
            self.free(blocks)
            raise
        return blocks

    def unpin(self, pins: list[Held]) -> None:
        for held in pins:
            held.unpin()

    def free(self, blocks: list[int]) -> None:
        for block in blocks:
            self._store.release(block)

    def collect(self, job: Job, event: wire.Finished) -> wire.Outputs | wire.Outlook:
        """The results: inline, or as tickets that own their regions."""
        if job.start.outlook:
            return wire.Outlook(event.plan, job.missing)
        faces = job.form.outputs
        if not job.blocks:
            if [len(v) for v in event.values] != [face.nbytes for face in faces]:
                raise Impossible(f"the worker gave {[len(v) for v in event.values]} bytes for {faces}")
            self.sent += sum(face.nbytes for face in faces)
            return wire.Outputs(
                tuple([wire.Value(f.dtype, f.shape, v) for f, v in zip(faces, event.values, strict=True)]),
                event.plan,
                event.stopped,
            )
        values = []
        for n, face in enumerate(faces):
            block = job.blocks.pop(0)  # from here on a ticket or the store owns the region
            if job.keep:
                digest = event.digests[n]
                self._store.add(job.client.tenant, digest, face.nbytes, block, block, job.keep, kept=True)
                values.append(wire.Value(face.dtype, face.shape, None, kept=digest))
            else:
                ref = ArrayRef(b"", face.dtype, face.shape)
                values.append(
                    wire.Value(face.dtype, face.shape, None, *self._bulk.offer(job.client, ref, block))
                )
        return wire.Outputs(tuple(values), event.plan, event.stopped)
