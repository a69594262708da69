"""What the daemon and its worker processes say to each other. Never leaves the machine."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

from farsum_kernels.errors import WireError, error_named
from farsum_proto.v1 import worker_pb2 as wpb
from farsum_proto.wire.failures import Failure, Stopped, error_message, fill_stopped, read_stopped
from farsum_proto.wire.info import Device
from farsum_proto.wire.limits import parse


@dataclass(frozen=True, slots=True)
class Start:
    """`places` holds for each array its offset in the arena, or its bytes; `outputs` offsets, or nothing.

    digests   of the contents of the arrays, empty for tiny ones
    outlook   there are no places: the answer is the plan alone
    keep      answer with the digests of the results
    """

    form: bytes
    places: tuple[int | bytes, ...]
    outputs: tuple[int, ...]
    outlook: bool = False
    digests: tuple[bytes, ...] = ()
    keep: bool = False
    watch_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    pass


@dataclass(frozen=True, slots=True)
class Drop:
    pass


@dataclass(frozen=True, slots=True)
class Prepare:
    """Get ready for jobs of one form, which come as packets with this number; and forget what had another."""

    number: int
    form: bytes
    forget: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """`plan` is that of each such job, empty where the form is not compiled here; `alone` says that one thread runs them."""

    number: int
    plan: bytes
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    device: Device


@dataclass(frozen=True, slots=True)
class Compiling:
    """The job is new to its worker, which touches none of its memory before its next step."""


@dataclass(frozen=True, slots=True)
class Progressed:
    share: float
    values: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """`values` holds the bytes of each result, or nothing when they were written into the arena."""

    values: tuple[bytes, ...]
    plan: bytes
    digests: tuple[bytes, ...] = ()
    stopped: Stopped | None = None


Action = Start | Step | Drop | Prepare
Event = Ready | Prepared | Compiling | Progressed | Finished | Failure


def encode_action(job: int, action: Action) -> bytes:
    message = wpb.Action(job=job)
    match action:
        case Start():
            start = message.start
            start.form = action.form
            if action.outlook:
                start.outlook = True
            if action.keep:
                start.keep = True
            if action.watch_s:
                start.watch_s = action.watch_s
            if action.outputs:
                start.outputs.extend(action.outputs)
            for place, digest in zip_longest(action.places, action.digests, fillvalue=b""):
                made = start.places.add()
                if isinstance(place, int):
                    made.offset = place
                else:
                    made.inline = place
                if digest:
                    made.digest = digest
        case Prepare(number, form, forget):
            message.prepare.number, message.prepare.form, message.prepare.forget = number, form, forget
        case Step():
            message.step.SetInParent()
        case Drop():
            message.drop.SetInParent()
    return message.SerializeToString()


def decode_action(data: bytes) -> tuple[int, Action]:
    message = parse(wpb.Action(), data)
    match message.WhichOneof("body"):
        case "prepare":
            prepare = message.prepare
            return message.job, Prepare(prepare.number, prepare.form, prepare.forget)
        case "start":
            start = message.start
            places = tuple([p.offset if p.HasField("offset") else p.inline for p in start.places])
            digests = tuple([p.digest for p in start.places])
            return message.job, Start(
                start.form, places, tuple(start.outputs), start.outlook, digests, start.keep, start.watch_s
            )
        case "step":
            return message.job, Step()
        case "drop":
            return message.job, Drop()
    raise WireError("the action is empty")


def encode_event(job: int, event: Event) -> bytes:
    message = wpb.Event(job=job)
    match event:
        case Ready(device):
            ready = message.ready
            ready.name, ready.kind, ready.threads = device.name, device.kind, device.threads
        case Compiling():
            message.compiling.SetInParent()
        case Progressed(share, values):
            message.progressed.share = share
            message.progressed.values.extend(values)
        case Finished(values, plan, digests, stopped):
            message.finished.values.extend(values)
            message.finished.plan = plan
            message.finished.digests.extend(digests)
            if stopped:
                fill_stopped(message.finished.stopped, stopped)
            message.finished.SetInParent()
        case Prepared(number, plan, alone):
            message.prepared.number, message.prepared.plan, message.prepared.alone = number, plan, alone
            message.prepared.SetInParent()
        case Failure(error):
            message.failed.CopyFrom(error_message(error))
    return message.SerializeToString()


def decode_event(data: bytes) -> tuple[int, Event]:
    message = parse(wpb.Event(), data)
    match message.WhichOneof("body"):
        case "progressed":
            return message.job, Progressed(message.progressed.share, tuple(message.progressed.values))
        case "compiling":
            return message.job, Compiling()
        case "finished":
            done = message.finished
            stopped = read_stopped(done.stopped) if done.HasField("stopped") else None
            return message.job, Finished(tuple(done.values), done.plan, tuple(done.digests), stopped)
        case "failed":
            return message.job, Failure(error_named(message.failed.name, message.failed.message))
        case "prepared":
            prepared = message.prepared
            return message.job, Prepared(prepared.number, prepared.plan, prepared.alone)
        case "ready":
            ready = message.ready
            return message.job, Ready(Device(ready.name, ready.kind, ready.threads))
    raise WireError("the event is empty")
