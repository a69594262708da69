"""Small jobs without a queue: one that comes again goes to an idle worker as a packet of bare numbers, and its answer is
waited for in place.

For a daemon that has nothing else to do. What takes longer than a moment is the queue's again.
"""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict

from farsum_kernels.job import RANGES, Spec
from farsum_proto import wire
from farsum_server.devices import Device
from farsum_server.jobs import Begun, Slot
from farsum_server.store import Store

# A job of fewer node evaluations is waited for in place, for so long at most: the loop stands still meanwhile.
SMALL_NODES, SMALL_S = 3e7, 0.001
# After so many jobs in a row that took longer, a form is not waited for during so many seconds.
MISSES, PAUSE_S = 3, 1.0
# How many forms a worker has prepared at once, and how long each may be: sessions keep them too.
SLOTS, FORM_BYTES = 32, 8 << 10


class Express:
    """Asks the workers of one daemon. `sent` counts the bytes of the results."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._numbers = itertools.count(1)
        # Of each worker, by their forms, the one asked for last at the end.
        self._slots: dict[int, OrderedDict[bytes, Slot]] = {}
        self.sent = 0

    def ask(self, slot: Slot, job: int, tenant: str, packet: bytes) -> bytes | Begun | None:
        """The answer to a packet, but for its head, if it comes at once.

        None when nothing was done, and Begun when a worker has the job.
        """
        process = slot.device.process
        if not slot.ready or (slot.misses >= MISSES and time.monotonic() < slot.later):
            return None
        places = None
        if slot.rooms.named and (places := self._places(tenant, slot, packet)) is None:
            return None
        if not process.offer(wire.headed(packet, slot.number, job, places)):
            return None
        said = process.answer(job, SMALL_S)
        if said is None:
            slot.misses += 1
            slot.later = time.monotonic() + PAUSE_S
            return Begun(job, slot)
        slot.misses = 0
        self._slots[process.number].move_to_end(slot.form)
        self.sent += slot.decoded.results
        return said

    def _places(self, tenant: str, slot: Slot, packet: bytes) -> dict[int, int] | None:
        """Where the arrays lie that are named; None if one is missing. They stay: nothing else happens meanwhile."""
        places = {}
        rooms = slot.rooms
        for n, where, digest in zip(rooms.named, rooms.places, rooms.digests(packet), strict=True):
            held = self._store.find(tenant, digest)
            if held is None or held.nbytes != slot.decoded.faces[n].nbytes:
                return None
            places[where] = held.offset
        return places

    def slot(self, form: bytes) -> Slot | None:
        """The slot of a form, if a worker is ready for it."""
        return next((s for slots in self._slots.values() if (s := slots.get(form)) and s.ready), None)

    # ── what is prepared ──────────────────────────────────────────────────────────────────────────

    def prepare(self, device: Device, data: bytes, form: wire.Form) -> None:
        """A form came again and goes to this worker: have it prepared there if it is small."""
        if len(data) > FORM_BYTES or not _is_small(form):
            return
        slots = self._slots.setdefault(device.process.number, OrderedDict())
        slot = slots.get(data)
        if slot is None or slot.lost:
            rooms = wire.Rooms(form)
            if not rooms.fit:
                return
            slot = slots[data] = Slot(next(self._numbers), device, data, form, rooms)
        slots.move_to_end(data)
        forget = 0
        if len(slots) > SLOTS:
            _, last = slots.popitem(last=False)
            last.lost, forget = True, last.number
        if not slot.asked:
            slot.asked = True
            device.process.send(0, wire.Prepare(slot.number, data, forget))

    def prepared(self, device: Device, event: wire.Prepared) -> None:
        """A worker has prepared a form, or has not compiled it any more: then it is asked again later."""
        slots = self._slots.get(device.process.number) or OrderedDict()
        if slot := next((s for s in slots.values() if s.number == event.number), None):
            slot.plan, slot.asked = event.plan, bool(event.plan)
            slot.alone = event.alone

    def lost(self, worker: int) -> None:
        """The process ended, and with it all that it had prepared."""
        for slot in self._slots.pop(worker, {}).values():
            slot.lost = True


def _is_small(form: wire.Form) -> bool:
    return (
        isinstance(form.spec, Spec)
        and form.cost <= SMALL_NODES
        and form.results <= wire.INLINE_BYTES
        and RANGES[0] not in form.indices
    )
