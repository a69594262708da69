"""A job as it is asked for and its answer. The form and the plan stay encoded on their way."""

from __future__ import annotations

import math
from dataclasses import dataclass

from farsum_kernels.errors import MessageTooLarge, WireError
from farsum_kernels.job import ITEMSIZE, ArrayRef
from farsum_proto.v1 import farsum_pb2 as pb
from farsum_proto.wire.contents import Content, check_digest, check_token
from farsum_proto.wire.failures import Stopped, agree, fill_stopped, read_stopped
from farsum_proto.wire.limits import MAX_ARRAYS, MAX_HEADER_BYTES, MAX_NDIM, NEWEST_PROTOCOL, parse


@dataclass(frozen=True, slots=True)
class Request:
    """One job as it was asked for. The form stays encoded: see FormCache."""

    form: bytes
    contents: tuple[Content, ...]
    deadline_s: float | None = None
    progress: bool = False
    outlook: bool = False
    keep: bytes = b""  # a token: the results stay on the server, held by it
    watch_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Value:
    """One result array: its bytes, or the ticket that fetches a stream of so many bytes, or its digest if it stays."""

    dtype: str
    shape: tuple[int, ...]
    inline: bytes | None
    ticket: bytes = b""
    stream_bytes: int = 0
    kept: bytes = b""


@dataclass(frozen=True, slots=True)
class Outputs:
    """The results of a job; `plan` stays encoded on its way: see decode_plan."""

    values: tuple[Value, ...]
    plan: bytes = b""
    stopped: Stopped | None = None
    again: int = 0  # the number of the job for packets that ask for it again, if not 0


@dataclass(frozen=True, slots=True)
class Need:
    """The server lacks these arrays; if none, it has to be asked in full.

    reasons    of each: what became of a kept result, in words, or nothing
    received   of each: the bytes of its stream that an upload which was broken off has left there
    """

    digests: tuple[bytes, ...]
    reasons: tuple[str, ...] = ()
    received: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a job would take: its plan, encoded, and the digests of the arrays that the server lacks."""

    plan: bytes
    missing: tuple[bytes, ...]


Reply = Outputs | Need | Outlook


def fill_request(message: pb.ReduceRequest, request: Request) -> None:
    message.form = request.form
    add = message.contents.add
    for content in request.contents:
        made = add()
        if content.digest:
            made.digest = content.digest
        if content.inline is not None:
            made.inline = content.inline
    if request.deadline_s:
        message.deadline_s = request.deadline_s
    if request.progress:
        message.progress = True
    if request.outlook:
        message.outlook = True
    if request.keep:
        message.keep = request.keep
    if request.watch_s:
        message.watch_s = request.watch_s


def encode_request(request: Request) -> bytes:
    """A unary request. There is no handshake, so it carries the protocol it is written in."""
    message = pb.ReduceRequest(protocol=NEWEST_PROTOCOL)
    fill_request(message, request)
    return message.SerializeToString()


def read_request(message: pb.ReduceRequest) -> Request:
    if len(message.contents) > MAX_ARRAYS:
        raise MessageTooLarge(
            f"the job names {len(message.contents)} arrays; at most {MAX_ARRAYS} are allowed"
        )
    deadline = message.deadline_s
    if not 0 <= deadline < math.inf:
        raise WireError(f"a deadline of {deadline} seconds means nothing")
    contents = tuple(
        [Content(c.digest, c.inline if c.HasField("inline") else None) for c in message.contents]
    )
    keep = check_token(message.keep)
    if not 0 <= message.watch_s < math.inf:
        raise WireError(f"to watch every {message.watch_s} seconds means nothing")
    return Request(
        message.form, contents, deadline or None, message.progress, message.outlook, keep, message.watch_s
    )


def decode_request(data: bytes) -> Request:
    message = parse(pb.ReduceRequest(), data)
    agree(message.protocol, message.protocol)
    return read_request(message)


def outcome_of(reply: Reply) -> pb.ReduceReply:
    if isinstance(reply, Need):
        return pb.ReduceReply(
            need=pb.Need(digests=reply.digests, reasons=reply.reasons, received=reply.received)
        )
    if isinstance(reply, Outlook):
        return pb.ReduceReply(outlook=pb.Outlook(plan=reply.plan, missing=reply.missing))
    message = pb.ReduceReply()
    outputs = message.outputs
    for value in reply.values:
        made = outputs.values.add(dtype=value.dtype, shape=value.shape)
        if value.inline is not None:
            made.inline = value.inline
        elif value.kept:
            made.kept = value.kept
        else:
            made.ticket, made.stream_bytes = value.ticket, value.stream_bytes
    outputs.plan = reply.plan
    if reply.again:
        outputs.again = reply.again
    if reply.stopped:
        fill_stopped(outputs.stopped, reply.stopped)
    return message


def encode_reply(reply: Reply) -> bytes:
    """The answer to a unary request."""
    return outcome_of(reply).SerializeToString()


def _value(message: pb.Value) -> Value:
    shape, dtype = tuple(message.shape), message.dtype
    if dtype not in ITEMSIZE or len(shape) > MAX_NDIM:
        raise WireError(f"a result of dtype {dtype!r:.40} and shape {shape} is not understood")
    nbytes = ArrayRef(b"", dtype, shape).nbytes
    where = message.WhichOneof("where")
    if where == "kept":
        check_digest(message.kept)
        return Value(dtype, shape, None, kept=message.kept)
    if where == "ticket":
        if not 0 < message.stream_bytes - nbytes <= MAX_HEADER_BYTES:
            raise WireError(f"a result of {nbytes} bytes does not fit a stream of {message.stream_bytes}")
        return Value(dtype, shape, None, message.ticket, message.stream_bytes)
    if len(message.inline) != nbytes:
        raise WireError(f"a result of shape {shape} and dtype {dtype} came with {len(message.inline)} bytes")
    return Value(dtype, shape, message.inline)


def read_reply(message: pb.ReduceReply) -> Reply:
    match message.WhichOneof("outcome"):
        case "outputs":
            outputs = message.outputs
            stopped = read_stopped(outputs.stopped) if outputs.HasField("stopped") else None
            return Outputs(tuple(map(_value, outputs.values)), outputs.plan, stopped, outputs.again)
        case "need":
            need = message.need
            return Need(tuple(need.digests), tuple(need.reasons), tuple(need.received))
        case "outlook":
            return Outlook(message.outlook.plan, tuple(message.outlook.missing))
    raise WireError("the reply is empty")


def decode_reply(data: bytes) -> Reply:
    return read_reply(parse(pb.ReduceReply(), data))
