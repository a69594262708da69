"""What client and server say on a kept stream. A message that somebody could be told about never raises."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from farsum_kernels.errors import FarsumError, WireError, error_named
from farsum_proto.v1 import farsum_pb2 as pb
from farsum_proto.wire.contents import check_digest, check_token
from farsum_proto.wire.failures import Failure, error_message
from farsum_proto.wire.jobs import Reply, Request, fill_request, outcome_of, read_reply, read_request
from farsum_proto.wire.limits import HOLDER_BYTES, INLINE_BYTES, NEWEST_PROTOCOL, OLDEST_PROTOCOL, parse
from farsum_proto.wire.packets import Passage


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of a session: the versions that the client speaks, and who it is."""

    oldest: int
    newest: int
    client: str
    holder: bytes = b""


@dataclass(frozen=True, slots=True)
class Welcome:
    protocol: int
    server: str
    inline_bytes: int
    passage: Passage | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the request with this message's id."""


Claim = tuple[bytes, bytes]  # the digest of an array, and the token that holds it


@dataclass(frozen=True, slots=True)
class Residency:
    """Arrays to hold and arrays to let go."""

    hold: tuple[Claim, ...] = ()
    release: tuple[Claim, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is, and if they are watched and it is time, the bytes of its results as they stand."""

    share: float
    values: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The server drains: it answers what it has and takes nothing new."""


def encode_hello(
    client: str, oldest: int = OLDEST_PROTOCOL, newest: int = NEWEST_PROTOCOL, holder: bytes = b""
) -> bytes:
    hello = pb.Hello(oldest_protocol=oldest, newest_protocol=newest, client=client, holder=holder)
    return pb.ClientMessage(hello=hello).SerializeToString()


def encode_ask(id_: int, request: Request) -> bytes:
    message = pb.ClientMessage(id=id_)
    fill_request(message.reduce, request)
    return message.SerializeToString()


def encode_cancel(id_: int) -> bytes:
    return pb.ClientMessage(id=id_, cancel=pb.Cancel()).SerializeToString()


def encode_residency(id_: int, residency: Residency) -> bytes:
    message = pb.ClientMessage(id=id_)
    message.residency.SetInParent()
    for claims, field in (
        (residency.hold, message.residency.hold),
        (residency.release, message.residency.release),
    ):
        for digest, token in claims:
            field.add(digest=digest, token=token)
    return message.SerializeToString()


def _claims(message: Iterable[pb.Claim]) -> tuple[Claim, ...]:
    claims = tuple([(claim.digest, claim.token) for claim in message])
    for digest, token in claims:
        check_digest(digest)
        if not token:
            raise WireError("a claim without a token holds nothing")
        check_token(token)
    return claims


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that decodes as a message but not as a job: its sender, who has an id, is told why."""

    error: FarsumError


def decode_client(data: bytes) -> tuple[int, Hello | Request | Residency | Cancel | Refused]:
    """One message of a session. Raises only where nobody could be answered by id."""
    message = parse(pb.ClientMessage(), data)
    match message.WhichOneof("body"):
        case "reduce":
            try:
                return message.id, read_request(message.reduce)
            except FarsumError as error:
                return message.id, Refused(error)
        case "residency":
            try:
                found = message.residency
                return message.id, Residency(_claims(found.hold), _claims(found.release))
            except FarsumError as error:
                return message.id, Refused(error)
        case "cancel":
            return message.id, Cancel()
        case "hello":
            hello = message.hello
            if len(hello.holder) not in (0, HOLDER_BYTES):
                raise WireError(f"a holder has {HOLDER_BYTES} bytes, not {len(hello.holder)}")
            return message.id, Hello(
                hello.oldest_protocol, hello.newest_protocol, hello.client[:100], hello.holder
            )
    raise WireError("the session message is empty")


def encode_welcome(protocol: int, server: str, passage: Passage | None = None) -> bytes:
    welcome = pb.Welcome(protocol=protocol, server=server, inline_bytes=INLINE_BYTES)
    if passage:
        welcome.passage.path, welcome.passage.server = passage
    return pb.ServerMessage(welcome=welcome).SerializeToString()


def encode_answer(id_: int, reply: Reply) -> bytes:
    return pb.ServerMessage(id=id_, reply=outcome_of(reply)).SerializeToString()


def encode_progress(id_: int, share: float, values: tuple[bytes, ...] = ()) -> bytes:
    return pb.ServerMessage(id=id_, progress=pb.Progress(share=share, values=values)).SerializeToString()


def encode_failure(id_: int, error: FarsumError) -> bytes:
    return pb.ServerMessage(id=id_, error=error_message(error)).SerializeToString()


def encode_draining() -> bytes:
    return pb.ServerMessage(draining=pb.Draining()).SerializeToString()


def decode_server(data: bytes) -> tuple[int, Welcome | Reply | Progress | Failure | Goodbye]:
    message = parse(pb.ServerMessage(), data)
    match message.WhichOneof("body"):
        case "reply":
            return message.id, read_reply(message.reply)
        case "progress":
            return message.id, Progress(message.progress.share, tuple(message.progress.values))
        case "error":
            error = message.error
            return message.id, Failure(error_named(error.name, error.message), error.retry_after_s)
        case "draining":
            return message.id, Goodbye()
        case "welcome":
            welcome = message.welcome
            passage = Passage(welcome.passage.path, welcome.passage.server) if welcome.passage.path else None
            return message.id, Welcome(welcome.protocol, welcome.server, welcome.inline_bytes, passage)
    raise WireError("the session message is empty")
