"""Small jobs without a queue: one goes to an idle worker as it came, and its answer is waited for in place.

For a daemon that has nothing else to do. What takes longer than a moment is the queue's again.
"""

from __future__ import annotations

from collections.abc import Iterable

from farsum_kernels.job import Spec
from farsum_proto import wire
from farsum_server.devices import Device
from farsum_server.jobs import Begun
from farsum_server.store import Store

# A job of fewer node evaluations is waited for in place, for so long at most: the loop stands still meanwhile.
SMALL_NODES, SMALL_S = 1e7, 0.001


class Express:
    """Asks the workers of one daemon. `sent` counts the bytes of the results."""

    def __init__(self, forms: wire.FormCache, store: Store, devices: Iterable[Device]) -> None:
        self._forms = forms
        self._store = store
        self._devices = devices
        self.sent = 0

    def ask(self, job: int, tenant: str, data: bytes) -> bytes | Begun | None:
        """The answer to a message that asks for a small job, if it comes at once.

        None when nothing was done, and Begun when a worker has the job.
        """
        ask = wire.small_ask(data)
        form = self._forms.known(ask.form) if ask else None
        if not ask or not form or not _is_small(form) or not wire.fits(form, ask.contents):
            return None
        device = next((d for d in self._devices if d.about and d.process.free), None)
        offsets = self._places(tenant, form, ask)
        if device is None or offsets is None:
            return None
        said = device.process.exchange(job, wire.encode_small(job, data, offsets), SMALL_S)
        if said is None:
            return Begun(job, device.process.number)
        self.sent += form.results
        return said

    def _places(self, tenant: str, form: wire.Form, ask: wire.SmallAsk) -> list[int] | None:
        """Where the arrays lie that are named; None if one is missing. They stay: nothing else happens meanwhile."""
        offsets = []
        for face, (digest, _) in zip(form.faces, ask.contents, strict=True):
            if digest:
                held = self._store.find(tenant, digest)
                if held is None or held.nbytes != face.nbytes:
                    return None
                offsets.append(held.offset)
        return offsets


def _is_small(form: wire.Form) -> bool:
    return isinstance(form.spec, Spec) and form.cost <= SMALL_NODES and form.results <= wire.INLINE_BYTES
