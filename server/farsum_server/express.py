"""Small jobs without a queue: one that comes again goes to an idle worker as a packet of bare numbers, and its answer is
waited for in place.

For a daemon that has nothing else to do. What takes longer than a moment is the queue's again.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from farsum_kernels.job import RANGES, Spec
from farsum_proto import wire
from farsum_server.devices import Device
from farsum_server.jobs import Begun
from farsum_server.store import Store

# A job of fewer node evaluations is waited for in place, for so long at most: the loop stands still meanwhile.
SMALL_NODES, SMALL_S = 1e7, 0.001
# How many forms a worker has prepared at once.
SLOTS = 32


@dataclass(slots=True, eq=False)
class Slot:
    """A form that a worker process was asked to prepare.

    key      what clients call it; never used again
    number   what the worker calls it; another's once this one is not the one that was used last
    start    which process of its device that is
    plan     of each of its jobs; empty before it is ready
    alone    they run on one thread
    """

    key: int
    number: int
    start: int
    device: Device
    form: bytes
    decoded: wire.Form
    packets: wire.Packets
    asked: bool = False
    evicted: bool = False
    plan: bytes = b""
    alone: bool = False

    @property
    def ready(self) -> bool:
        return bool(self.plan) and not self.evicted and self.start == self.device.process.starts


class Slots:
    """The forms of one worker process, least recently asked for out first."""

    def __init__(self, start: int) -> None:
        self.start = start
        self._forms: OrderedDict[bytes, Slot] = OrderedDict()

    def get(self, form: bytes) -> Slot | None:
        if slot := self._forms.get(form):
            self._forms.move_to_end(form)
        return slot

    def room(self) -> int:
        """A number for a slot more."""
        if len(self._forms) < SLOTS:
            return len(self._forms)
        _, last = self._forms.popitem(last=False)
        last.evicted = True
        return last.number

    def add(self, slot: Slot) -> None:
        self._forms[slot.form] = slot

    def numbered(self, number: int) -> Slot:
        return next(slot for slot in self._forms.values() if slot.number == number)


class Express:
    """Asks the workers of one daemon. `sent` counts the bytes of the results."""

    def __init__(self, store: Store, devices: Iterable[Device]) -> None:
        self._store = store
        self._devices = devices
        self._keys = itertools.count(1)
        self._slots: dict[int, Slots] = {}
        self.sent = 0

    def ask(self, slot: Slot, job: int, tenant: str, packet: bytes) -> bytes | Begun | None:
        """The answer to a packet, but for its head, if it comes at once.

        None when nothing was done, and Begun when a worker has the job.
        """
        process = slot.device.process
        if not slot.ready or not process.free:
            return None
        places = None
        if slot.packets.named and (places := self._places(tenant, slot, packet)) is None:
            return None
        said = process.exchange(job, wire.headed(packet, slot.number, job, places), SMALL_S)
        if said is None:
            return Begun(job, process.number)
        self.sent += slot.decoded.results
        return said

    def _places(self, tenant: str, slot: Slot, packet: bytes) -> dict[int, int] | None:
        """Where the arrays lie that are named; None if one is missing. They stay: nothing else happens meanwhile."""
        places = {}
        packets = slot.packets
        for n, where, digest in zip(packets.named, packets.places, packets.digests(packet), strict=True):
            held = self._store.find(tenant, digest)
            if held is None or held.nbytes != slot.decoded.faces[n].nbytes:
                return None
            places[where] = held.offset
        return places

    # ── what is prepared ──────────────────────────────────────────────────────────────────────────

    def _of(self, device: Device) -> Slots:
        """The slots of the process that runs now: with another one all are new."""
        number, start = device.process.number, device.process.starts
        slots = self._slots.get(number)
        if slots is None or slots.start != start:
            slots = self._slots[number] = Slots(start)
        return slots

    def prepare(self, data: bytes, form: wire.Form) -> None:
        """A form came again: have it prepared if it is small."""
        device = next((d for d in self._devices if d.about and d.process.free), None)
        if device is None or not _is_small(form):
            return
        slots = self._of(device)
        slot = slots.get(data)
        if slot is None:
            packets = wire.Packets(form)
            if not packets.fit:
                return
            slot = Slot(next(self._keys), slots.room(), slots.start, device, data, form, packets)
            slots.add(slot)
        if not slot.asked:
            slot.asked = True
            device.process.send(0, wire.Prepare(slot.number, data))

    def prepared(self, device: Device, event: wire.Prepared) -> None:
        """A worker has prepared a form, or has not compiled it any more: then it is asked again later."""
        slot = self._of(device).numbered(event.slot)
        slot.plan, slot.asked = event.plan, bool(event.plan)
        slot.alone = wire.decode_plan(event.plan).get("threads", "1") == "1"

    def slot(self, form: bytes) -> Slot | None:
        """The slot of a form, if a worker is ready for it."""
        for device in self._devices:
            if (slot := self._of(device).get(form)) and slot.ready:
                return slot
        return None

    def late(self, device: Device, said: wire.Said) -> wire.Finished:
        """An answer that was not waited for any more."""
        _, number = wire.decode_again(said.packet)
        slot = self._of(device).numbered(number)
        return wire.Finished(slot.packets.values(said.packet), slot.plan)


def _is_small(form: wire.Form) -> bool:
    return (
        isinstance(form.spec, Spec)
        and form.cost <= SMALL_NODES
        and form.results <= wire.INLINE_BYTES
        and RANGES[0] not in form.indices
    )
