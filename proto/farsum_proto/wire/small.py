"""Small jobs, which the daemon passes to its worker as they came, and back as they are answered.

What the daemon reads of one is what it must check; the worker reads the rest. Numbers are never copied here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from farsum_proto.v1 import farsum_pb2 as pb
from farsum_proto.v1 import worker_pb2 as wpb
from farsum_proto.wire.forms import Form
from farsum_proto.wire.limits import DIGEST_BYTES, TINY_BYTES, parse

# Longer messages hold arrays that are to stay.
SMALL_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Small:
    """A message of a client, checked, and where in the arena the arrays lie that it names by digest."""

    ask: bytes
    offsets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Said:
    """The message that answers it."""

    message: bytes


class SmallAsk(NamedTuple):
    """`contents` holds the digest of each array, and its bytes if it has none."""

    id: int
    form: bytes
    contents: list[tuple[bytes, bytes]]


def small_ask(data: bytes) -> SmallAsk | None:
    """A job that asks for nothing but its values; None for every other message, and for what must be refused."""
    if len(data) > SMALL_BYTES:
        return None
    message = parse(pb.ClientMessage(), data)
    job = message.reduce
    form = job.form
    if not form or job.deadline_s or job.progress or job.outlook or job.keep or job.watch_s:
        return None
    return SmallAsk(message.id, form, [(c.digest, c.inline) for c in job.contents])


def fits(form: Form, contents: list[tuple[bytes, bytes]]) -> bool:
    """Whether each array is tiny and came along, or is named: all that check_contents asks, and no more."""
    if len(contents) != len(form.faces):
        return False
    for face, (digest, inline) in zip(form.faces, contents, strict=True):
        if digest:
            if inline or len(digest) != DIGEST_BYTES:
                return False
        elif len(inline) != face.nbytes or face.nbytes >= TINY_BYTES:
            return False
    return True


def encode_small(job: int, ask: bytes, offsets: Sequence[int]) -> bytes:
    message = wpb.Action(job=job)
    message.small.ask = ask
    if offsets:
        message.small.offsets.extend(offsets)
    return message.SerializeToString()


def encode_said(id_: int, form: Form, values: Sequence[bytes], plan: bytes) -> bytes:
    """The answer to a small job, as the client gets it."""
    message = pb.ServerMessage(id=id_)
    outputs = message.reply.outputs
    outputs.plan = plan
    for face, value in zip(form.outputs, values, strict=True):
        outputs.values.add(dtype=face.dtype, shape=face.shape, inline=value)
    return message.SerializeToString()


def decode_said(job: int, data: bytes) -> bytes | None:
    """The answer in an event, if it is one to this job."""
    event = parse(wpb.Event(), data)
    return event.said if event.job == job and event.said else None
