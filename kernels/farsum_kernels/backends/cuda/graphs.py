"""Launches that come again and again, as one: decides which are recorded, and when a record goes. Knows no CUDA.

A record holds kernels with their arguments, addresses among them. It is played only where all of that is equal, so
playing it is the same as launching them; what lies at the addresses may change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

# Kernels below which one launch of a record takes the host about as long as the launches that it stands for: it must
# be looked up by all their arguments first.
LEAST = 4
MOST = 64  # records at once, those used last
ONCE = 256  # series that are remembered because they came once


class Call(NamedTuple):
    """One launch: the module's name and the kernel's, sizes of the grid and of a block, bytes of shared memory, arguments."""

    module: Any
    name: str
    grid: tuple[int, int]
    block: tuple[int, int]
    shared: int
    args: Sequence[Any]


class Graphs:
    """Series of launches.

    launch    queues one
    record    makes something that can be played of a series, without running it; None where that is not possible
    play      queues what was recorded
    address   of a buffer
    """

    def __init__(
        self,
        launch: Callable[[Call], None],
        record: Callable[[Sequence[Call]], Any],
        play: Callable[[Any], None],
        address: Callable[[Any], int],
    ) -> None:
        self._launch, self._record, self._play, self._address = launch, record, play, address
        self._records: OrderedDict[Hashable, Any] = OrderedDict()
        self._once: OrderedDict[Hashable, None] = OrderedDict()
        self.least = LEAST  # of a test or a measurement
        self.played = 0

    def run(self, calls: Sequence[Call]) -> None:
        """Queue a series: played if it was recorded, recorded if it came before, else launch by launch."""
        if len(calls) < self.least:
            self._each(calls)
            return
        key = tuple(self._key(call) for call in calls)
        if key in self._records:
            self._records.move_to_end(key)
        elif key not in self._once:
            self._remember(key)
            self._each(calls)
            return
        else:
            del self._once[key]
            made = self._record(calls)
            if made is None:
                self._each(calls)
                return
            self._records[key] = made
            if len(self._records) > MOST:
                self._records.popitem(last=False)
        self._play(self._records[key])
        self.played += 1

    def drop(self) -> None:
        """Forget every record: the code that they run is about to go. Nothing of them may be running."""
        self._records.clear()
        self._once.clear()

    def _each(self, calls: Sequence[Call]) -> None:
        for call in calls:
            self._launch(call)

    def _remember(self, key: Hashable) -> None:
        self._once[key] = None
        if len(self._once) > ONCE:
            self._once.popitem(last=False)

    def _key(self, call: Call) -> Hashable:
        args = tuple(
            arg.item() if hasattr(arg, "item") and not getattr(arg, "shape", True) else self._of_buffer(arg)
            for arg in call.args
        )
        return call[:-1], args

    def _of_buffer(self, arg: Any) -> tuple[int]:
        return (0 if arg is None else self._address(arg),)
