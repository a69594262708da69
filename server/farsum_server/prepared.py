"""A small job in its worker: bound once for its form, and computed again whenever numbers come."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.job import Spec
from farsum_proto import wire
from farsum_proto.tensor import held_as


def address_of(memory: memoryview) -> int:
    start: int = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    return start


class Prepared:
    """Jobs of one form, whose packets lie in `inbox` and whose named arrays lie in `arena`.

    alone   they run on the calling thread and no other
    """

    def __init__(self, worker: Any, form: wire.Form, inbox: memoryview, arena: memoryview) -> None:
        assert isinstance(form.spec, Spec)
        self._worker, self._form, self._spec = worker, form, form.spec
        self._inbox, self._arena = inbox, arena
        self._rooms = rooms = wire.Rooms(form)
        self._outbox = memoryview(bytearray(rooms.answer_bytes))
        self._outputs = [
            np.ndarray(face.shape, held_as(face.dtype), self._outbox, offset)
            for face, offset in zip(form.outputs, rooms.results, strict=True)
        ]
        # Of the named arrays, where their places are in the inbox.
        self._places = dict(zip(rooms.named, rooms.places, strict=True))
        shapes = {n: face.shape for n, face in zip(form.indices, form.faces, strict=True)}
        self._repeated = worker.repeated(form.spec, shapes, self._outputs)
        self.alone = False
        if self._repeated is None:
            self.plan = wire.encode_plan(worker.outlook(form.spec, shapes))
            return
        self.plan = wire.encode_plan(self._repeated.words)
        self.alone = self._repeated.words["threads"] == "1"
        order = [form.indices.index(n) for n in self._repeated.indices]
        here, self._there = address_of(inbox), address_of(arena)
        self._addresses = [here + rooms.starts[n] for n in order]
        self._named = [(slot, self._places[n]) for slot, n in enumerate(order) if n in self._places]

    def run(self, number: int, job: int) -> memoryview:
        """The packet that answers the one in the inbox. It is good until the next one."""
        if self._repeated:
            for place, where in self._named:
                self._addresses[place] = self._there + wire.place_in(self._inbox, where)
            self._repeated.run(self._addresses)
        else:
            run = self._worker.start(self._spec, *self._bound())
            while run.step() < 1.0:
                pass
            run.finish()
        wire.put_head(self._outbox, number, job)
        return self._outbox

    def _bound(self) -> tuple[dict[int, NDArray[Any]], list[NDArray[Any]], dict[int, bytes]]:
        """The arrays of the packet, where the results go, and the digests of the named arrays."""
        rooms, arrays, digests = self._rooms, {}, {}
        for n, (index, face) in enumerate(zip(self._form.indices, self._form.faces, strict=True)):
            memory, offset = self._inbox, rooms.starts[n]
            if n in self._places:
                digests[index] = bytes(memory[offset : offset + wire.DIGEST_BYTES])
                memory, offset = self._arena, wire.place_in(self._inbox, self._places[n])
            arrays[index] = np.ndarray(face.shape, held_as(face.dtype), memory, offset)
            arrays[index].setflags(write=False)
        return arrays, self._outputs, digests
