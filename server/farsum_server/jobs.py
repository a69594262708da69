"""What the daemon knows of a job, and what it allows. Values; they decide nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from farsum_kernels.errors import FarsumError
from farsum_proto import wire
from farsum_server.clients import Client
from farsum_server.devices import Device
from farsum_server.store import Held

OnProgress = Callable[[float, tuple[bytes, ...]], None]
Answer = Callable[["wire.Reply | FarsumError"], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a daemon allows; see settings.py for the words."""

    store_bytes: int
    store_warm_bytes: int = 0
    queue_limit: int = 256
    compile_deadline_s: float = 30.0
    upload_idle_s: float = 60.0
    ticket_ttl_s: float = 120.0
    tenant_bytes: int | None = None
    handle_ttl_s: float = 3600.0


@dataclass(slots=True, eq=False)
class Job:
    id: int
    client: Client
    form: wire.Form
    start: wire.Start
    blocks: list[int]  # regions of the results, when they are kept or too large to travel inline
    pins: list[Held]
    answer: Answer
    on_progress: OnProgress | None
    asked: float
    began: float | None = None
    timer: asyncio.TimerHandle | None = None
    settled: bool = False
    missing: tuple[bytes, ...] = ()  # of an outlook: the arrays that are not here
    keep: bytes = b""  # the token that is to hold the results
    slot: Slot | None = None  # by which its worker has it
    known: bool = False  # its form has come before
    untouched: bool = False  # its worker compiles it, or has, and waits: nothing reads or writes its memory


@dataclass(slots=True, eq=False)
class Slot:
    """A form that a worker process was asked to prepare.

    number   what workers and clients call it; never used again
    asked    the worker knows of it, and has it ready once there is a plan
    alone    its jobs run on one thread
    misses   so many in a row took too long to be waited for
    later    when the next one may be waited for all the same
    lost     the worker has it no more
    """

    number: int
    device: Device
    form: bytes
    decoded: wire.Form
    rooms: wire.Rooms
    asked: bool = False
    plan: bytes = b""
    alone: bool = False
    misses: int = 0
    later: float = 0.0
    lost: bool = False

    @property
    def ready(self) -> bool:
        return bool(self.plan) and not self.lost


class Begun(NamedTuple):
    """A small job that is on a worker and was not answered at once."""

    job: int
    slot: Slot
