"""Messages <-> values. With specs.py and programs.py, the only one that names message fields; no I/O, no state.

Every decoder checks everything it is given, in time and memory bounded by the length of its input,
and raises nothing but a FarsumError. Encoders trust their caller, who is us.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from types import MappingProxyType
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from farsum_kernels.errors import (
    DtypeError,
    FarsumError,
    FormulaTooLarge,
    MessageTooLarge,
    ProtocolMismatch,
    QueueFull,
    ShapeError,
    TruncatedStream,
    WireError,
    error_named,
)
from farsum_kernels.job import (
    ITEMSIZE,
    RANGES,
    ArrayRef,
    Spec,
    extent_of,
    output_dtypes,
    output_shapes,
)
from farsum_kernels.program import Program, cost_of
from farsum_proto.programs import decode_program, encode_program
from farsum_proto.specs import decode_spec, encode_spec
from farsum_proto.v1 import farsum_pb2 as pb
from farsum_proto.v1 import worker_pb2 as wpb

OLDEST_PROTOCOL = 1
NEWEST_PROTOCOL = 1

SERVICE = "farsum.v1.Reductions"
BULK = "farsum.v1.Bulk"
METHODS = {"Info": f"/{SERVICE}/Info", "Reduce": f"/{SERVICE}/Reduce", "Session": f"/{SERVICE}/Session",
           "Upload": f"/{BULK}/Upload", "Download": f"/{BULK}/Download"}  # fmt: skip

# Trailing metadata of a failed call.
ERROR_KEY = "farsum-error"
RETRY_KEY = "farsum-retry-after-s"

MAX_MESSAGE_BYTES = 8 << 20
CHUNK_BYTES = 1 << 20
INLINE_BYTES = 64 << 10
# Below this an array costs less to send than to name.
TINY_BYTES = 1 << 10
MAX_FORM_BYTES = 1 << 20
MAX_ARRAYS = 1024
MAX_NDIM = 16
MAX_ARRAY_BYTES = 1 << 46
# Arrow's framing in front of the bytes of a tensor.
MAX_HEADER_BYTES = 4096
# gRPC refuses metadata above 8 KiB, and the message of a status travels there, percent-encoded.
MAX_ERROR_CHARS = 2000
# The last so many norms go with an iteration that gave up.
MAX_RESIDUALS = 1 << 16
# Results that are watched come whole in one message.
MAX_WATCHED_BYTES = 4 << 20
DIGEST_BYTES = 32
# A token holds arrays on a server: the holder that a client named in its Hello, and a number of its own.
HOLDER_BYTES = 8
TOKEN_BYTES = 16
CODECS = ("", "lz4", "zstd")

M = TypeVar("M", bound=Message)


def _parse(message: M, data: bytes) -> M:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError(f"the bytes are no {type(message).__name__} message: {error}") from error
    return message


# ── forms ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Face:
    """What an array is: dtype, shape, and the number of bytes that follows."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """A job without its numbers, checked: the spec or program, the faces of its arrays, what comes out.

    cost     a rough number of node evaluations
    nbytes   what a program holds between its steps
    """

    spec: Spec | Program
    indices: tuple[int, ...]
    faces: tuple[Face, ...]
    outputs: tuple[Face, ...]
    cost: float
    nbytes: int = 0


def _face(dtype: str, shape: tuple[int, ...]) -> Face:
    return Face(dtype, shape, ArrayRef(b"", dtype, shape).nbytes)


def encode_form(spec: Spec | Program, shapes: Mapping[int, tuple[int, ...]]) -> bytes:
    """A job without its numbers, as bytes that are equal for equal jobs of one process.

    A program says itself which shapes it is for.
    """
    if isinstance(spec, Program):
        return pb.Form(program=encode_program(spec)).SerializeToString(deterministic=True)
    faces = [
        pb.Face(index=n, dtype="int64" if n in RANGES else spec.dtype, shape=shape)
        for n, shape in shapes.items()
    ]
    return pb.Form(spec=encode_spec(spec), faces=faces).SerializeToString(deterministic=True)


def decode_form(data: bytes) -> Form:
    """The inverse, with every check that needs no array: formula, dtypes, shapes, sizes."""
    if len(data) > MAX_FORM_BYTES:
        raise FormulaTooLarge(f"the formula takes {len(data)} bytes; at most {MAX_FORM_BYTES} are allowed")
    message = _parse(pb.Form(), data)
    if message.HasField("program"):
        return _program_form(message)
    if len(message.faces) > MAX_ARRAYS:
        raise MessageTooLarge(f"the job names {len(message.faces)} arrays; at most {MAX_ARRAYS} are allowed")
    spec = decode_spec(message.spec)
    faces = {face.index: _checked_face(face.dtype, face.shape) for face in message.faces}
    if len(faces) != len(message.faces):
        raise WireError("the job names one argument twice")
    for n, face in faces.items():
        if n not in spec.inputs and n not in RANGES:
            raise WireError(f"the job brings an argument {n} that its formula does not use")
        wanted = "int64" if n in RANGES else spec.dtype
        if face.dtype != wanted:
            raise DtypeError(f"argument {n} is {face.dtype} where the job takes {wanted}")
    extent = extent_of(spec, {n: face.shape for n, face in faces.items() if n not in RANGES})
    outputs = tuple(map(_checked_face, output_dtypes(spec), output_shapes(spec, extent)))
    nodes = len(message.spec.nodes) + sum(v.dim for v in spec.inputs.values())
    return Form(spec, tuple(faces), tuple(faces.values()), outputs, float(extent.pairs) * nodes)


def _program_form(message: pb.Form) -> Form:
    if message.HasField("spec") or message.faces:
        raise WireError("a form holds a formula or a program, not both")
    program = decode_program(message.program)
    faces = [_checked_face(value.dtype, value.shape) for value in program.inputs]
    outputs = tuple(_checked_face(value.dtype, value.shape) for value in program.results)
    return Form(
        program, tuple(range(len(faces))), tuple(faces), outputs, cost_of(program), program.layout.nbytes
    )


class FormCache:
    """Decoded forms by their bytes, least recently used out first.

    Bounded by bytes rather than by count: nodes in memory are about fifty times their encoding.
    """

    def __init__(self, limit_bytes: int = 2 << 20) -> None:
        self._limit = limit_bytes
        self._size = 0
        self._forms: OrderedDict[bytes, Form] = OrderedDict()

    def get(self, data: bytes) -> Form:
        if form := self._forms.get(data):
            self._forms.move_to_end(data)
            return form
        form = decode_form(data)
        self._forms[data] = form
        self._size += len(data)
        while self._size > self._limit:
            self._size -= len(self._forms.popitem(last=False)[0])
        return form


# ── arrays ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Content:
    """What is in one array of a request: its digest, and its bytes when they travel inline.

    A tiny array has bytes and no digest.
    """

    digest: bytes
    inline: bytes | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """The header of an upload: which array follows, in a stream of how many bytes.

    hold        a token that holds the array once it is there, or nothing
    offset      the stream goes on from here; what is before came with an upload that was broken off
    resumable   what comes is of use even if the stream breaks off
    codec       what each chunk is compressed with, one of CODECS
    """

    ref: ArrayRef
    stream_bytes: int
    hold: bytes = b""
    offset: int = 0
    resumable: bool = False
    codec: str = ""


def _checked_face(dtype: str, dims: Iterable[int]) -> Face:
    shape = tuple(dims)
    if dtype not in ITEMSIZE:
        raise DtypeError(f"arrays of dtype {dtype!r:.40} do not travel; allowed are {', '.join(ITEMSIZE)}")
    if len(shape) > MAX_NDIM:
        raise ShapeError(f"an array has {len(shape)} axes; at most {MAX_NDIM} are allowed")
    face = _face(dtype, shape)
    # Zero times anything is zero, so a zero must not hide a dimension that no machine can index.
    if face.nbytes > MAX_ARRAY_BYTES or (shape and max(shape) > MAX_ARRAY_BYTES):
        raise MessageTooLarge(f"an array of shape {shape} is larger than {MAX_ARRAY_BYTES} bytes")
    return face


def _check_digest(digest: bytes) -> None:
    if len(digest) != DIGEST_BYTES:
        raise WireError(f"a digest has {len(digest)} bytes; BLAKE3 digests have {DIGEST_BYTES}")


def _check_token(token: bytes) -> bytes:
    if token and len(token) != TOKEN_BYTES:
        raise WireError(f"a token that holds an array has {TOKEN_BYTES} bytes, not {len(token)}")
    return token


def check_contents(form: Form, contents: tuple[Content, ...]) -> None:
    """Raise unless each content fits its face: shape × dtype is the number of bytes, a name is a digest."""
    if len(contents) != len(form.faces):
        raise WireError(f"the job has {len(form.faces)} arrays; the contents of {len(contents)} came")
    for face, content in zip(form.faces, contents, strict=True):
        inline = content.inline
        if inline is None:
            _check_digest(content.digest)
            continue
        if len(inline) != face.nbytes:
            raise WireError(
                f"shape {face.shape} of {face.dtype} is {face.nbytes} bytes; {len(inline)} came inline"
            )
        if face.nbytes > INLINE_BYTES:
            raise MessageTooLarge(
                f"{face.nbytes} bytes came inline; above {INLINE_BYTES} an array is uploaded"
            )
        if face.nbytes >= TINY_BYTES or content.digest:
            _check_digest(content.digest)


def check_watched(form: Form) -> None:
    """Raise MessageTooLarge for results that are too large to be watched."""
    nbytes = sum(face.nbytes for face in form.outputs)
    if nbytes > MAX_WATCHED_BYTES:
        raise MessageTooLarge(
            f"the results take {nbytes} bytes; up to {MAX_WATCHED_BYTES} can be watched while they are computed"
        )


def encode_upload(upload: Upload) -> bytes:
    ref = upload.ref
    return pb.UploadHeader(
        digest=ref.digest, dtype=ref.dtype, shape=ref.shape, stream_bytes=upload.stream_bytes,
        hold=upload.hold, offset=upload.offset, resumable=upload.resumable, codec=upload.codec,
    ).SerializeToString()  # fmt: skip


def decode_upload(data: bytes) -> Upload:
    """Checked before a byte of memory is reserved: shape × dtype is what the stream will carry."""
    message = _parse(pb.UploadHeader(), data)
    _check_digest(message.digest)
    face = _checked_face(message.dtype, message.shape)
    ref = ArrayRef(message.digest, face.dtype, face.shape)
    if not 0 < message.stream_bytes - ref.nbytes <= MAX_HEADER_BYTES:
        raise WireError(
            f"shape {ref.shape} of {ref.dtype} is {ref.nbytes} bytes, which a stream of "
            f"{message.stream_bytes} bytes does not carry"
        )
    if message.offset >= message.stream_bytes:
        raise WireError(f"an upload of {message.stream_bytes} bytes cannot go on from byte {message.offset}")
    if message.codec not in CODECS:
        raise WireError(f"chunks compressed with {message.codec!r:.40} are not understood; use lz4 or zstd")
    return Upload(
        ref,
        message.stream_bytes,
        _check_token(message.hold),
        message.offset,
        message.resumable,
        message.codec,
    )


def encode_stored(stored_bytes: int) -> bytes:
    return pb.UploadReply(stored_bytes=stored_bytes).SerializeToString()


def decode_stored(data: bytes) -> int:
    return _parse(pb.UploadReply(), data).stored_bytes


def encode_download(what: bytes | ArrayRef) -> bytes:
    """Asks for a result by its ticket, or for an array that is held there."""
    if isinstance(what, bytes):
        return pb.DownloadRequest(ticket=what).SerializeToString()
    return pb.DownloadRequest(digest=what.digest, dtype=what.dtype, shape=what.shape).SerializeToString()


def decode_download(data: bytes) -> bytes | ArrayRef:
    message = _parse(pb.DownloadRequest(), data)
    if message.ticket:
        return message.ticket
    _check_digest(message.digest)
    face = _checked_face(message.dtype, message.shape)
    return ArrayRef(message.digest, face.dtype, face.shape)


# ── jobs ──────────────────────────────────────────────────────────────────────────────────────────


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
class Stopped:
    """Why an iteration gave up, and the norms of its residuals. The values beside it are what it had reached."""

    error: FarsumError
    residuals: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Outputs:
    """The results of a job; `plan` stays encoded on its way: see decode_plan."""

    values: tuple[Value, ...]
    plan: bytes = b""
    stopped: Stopped | None = None


@dataclass(frozen=True, slots=True)
class Need:
    """The server lacks these arrays.

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


def _fill(message: pb.ReduceRequest, request: Request) -> None:
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
    _fill(message, request)
    return message.SerializeToString()


def _request(message: pb.ReduceRequest) -> Request:
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
    keep = _check_token(message.keep)
    if not 0 <= message.watch_s < math.inf:
        raise WireError(f"to watch every {message.watch_s} seconds means nothing")
    return Request(
        message.form, contents, deadline or None, message.progress, message.outlook, keep, message.watch_s
    )


def decode_request(data: bytes) -> Request:
    message = _parse(pb.ReduceRequest(), data)
    agree(message.protocol, message.protocol)
    return _request(message)


def _outcome(reply: Reply) -> pb.ReduceReply:
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
    if reply.stopped:
        _fill_stopped(outputs.stopped, reply.stopped)
    return message


def _fill_stopped(message: pb.Stopped, stopped: Stopped) -> None:
    message.error.CopyFrom(_error(stopped.error))
    message.residuals.extend(stopped.residuals[-MAX_RESIDUALS:])


def _stopped(message: pb.Stopped) -> Stopped:
    return Stopped(error_named(message.error.name, message.error.message), tuple(message.residuals))


def encode_plan(plan: Mapping[str, str]) -> bytes:
    return _encode_plan(tuple(plan.items()))


@lru_cache(maxsize=256)
def _encode_plan(items: tuple[tuple[str, str], ...]) -> bytes:
    return pb.Plan(entries=dict(items)).SerializeToString(deterministic=True)


@lru_cache(maxsize=256)
def _decode_plan(data: bytes) -> Mapping[str, str]:
    return MappingProxyType(dict(_parse(pb.Plan(), data).entries))


def decode_plan(data: bytes) -> dict[str, str]:
    """How a job was computed. A repeated job repeats its plan, so the decoded form is kept."""
    return dict(_decode_plan(data))


def encode_reply(reply: Reply) -> bytes:
    """The answer to a unary request."""
    return _outcome(reply).SerializeToString()


def _value(message: pb.Value) -> Value:
    shape, dtype = tuple(message.shape), message.dtype
    if dtype not in ITEMSIZE or len(shape) > MAX_NDIM:
        raise WireError(f"a result of dtype {dtype!r:.40} and shape {shape} is not understood")
    nbytes = ArrayRef(b"", dtype, shape).nbytes
    where = message.WhichOneof("where")
    if where == "kept":
        _check_digest(message.kept)
        return Value(dtype, shape, None, kept=message.kept)
    if where == "ticket":
        if not 0 < message.stream_bytes - nbytes <= MAX_HEADER_BYTES:
            raise WireError(f"a result of {nbytes} bytes does not fit a stream of {message.stream_bytes}")
        return Value(dtype, shape, None, message.ticket, message.stream_bytes)
    if len(message.inline) != nbytes:
        raise WireError(f"a result of shape {shape} and dtype {dtype} came with {len(message.inline)} bytes")
    return Value(dtype, shape, message.inline)


def _reply(message: pb.ReduceReply) -> Reply:
    match message.WhichOneof("outcome"):
        case "outputs":
            outputs = message.outputs
            stopped = _stopped(outputs.stopped) if outputs.HasField("stopped") else None
            return Outputs(tuple(map(_value, outputs.values)), outputs.plan, stopped)
        case "need":
            need = message.need
            return Need(tuple(need.digests), tuple(need.reasons), tuple(need.received))
        case "outlook":
            return Outlook(message.outlook.plan, tuple(message.outlook.missing))
    raise WireError("the reply is empty")


def decode_reply(data: bytes) -> Reply:
    return _reply(_parse(pb.ReduceReply(), data))


# ── sessions ──────────────────────────────────────────────────────────────────────────────────────


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


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that ends one request. `retry_after_s` is above 0 when trying again may help."""

    error: FarsumError
    retry_after_s: float = 0.0


def agree(oldest: int, newest: int) -> int:
    """The newest protocol that both sides speak.

    Raises ProtocolMismatch, which names both ranges and who should upgrade.
    """
    if oldest <= NEWEST_PROTOCOL and newest >= OLDEST_PROTOCOL:
        return min(newest, NEWEST_PROTOCOL)
    who = "client" if newest < OLDEST_PROTOCOL else "server"
    raise ProtocolMismatch(
        f"the client speaks protocol {_range(oldest, newest)}, the server {_range(OLDEST_PROTOCOL, NEWEST_PROTOCOL)}; "
        f"upgrade farsum on the {who}"
    )


def _range(oldest: int, newest: int) -> str:
    return str(oldest) if oldest == newest else f"{oldest} to {newest}"


def encode_hello(
    client: str, oldest: int = OLDEST_PROTOCOL, newest: int = NEWEST_PROTOCOL, holder: bytes = b""
) -> bytes:
    hello = pb.Hello(oldest_protocol=oldest, newest_protocol=newest, client=client, holder=holder)
    return pb.ClientMessage(hello=hello).SerializeToString()


def encode_ask(id_: int, request: Request) -> bytes:
    message = pb.ClientMessage(id=id_)
    _fill(message.reduce, request)
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
        _check_digest(digest)
        if not token:
            raise WireError("a claim without a token holds nothing")
        _check_token(token)
    return claims


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that decodes as a message but not as a job: its sender, who has an id, is told why."""

    error: FarsumError


def decode_client(data: bytes) -> tuple[int, Hello | Request | Residency | Cancel | Refused]:
    """One message of a session. Raises only where nobody could be answered by id."""
    message = _parse(pb.ClientMessage(), data)
    match message.WhichOneof("body"):
        case "reduce":
            try:
                return message.id, _request(message.reduce)
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


def encode_welcome(protocol: int, server: str) -> bytes:
    welcome = pb.Welcome(protocol=protocol, server=server, inline_bytes=INLINE_BYTES)
    return pb.ServerMessage(welcome=welcome).SerializeToString()


def encode_answer(id_: int, reply: Reply) -> bytes:
    return pb.ServerMessage(id=id_, reply=_outcome(reply)).SerializeToString()


def encode_progress(id_: int, share: float, values: tuple[bytes, ...] = ()) -> bytes:
    return pb.ServerMessage(id=id_, progress=pb.Progress(share=share, values=values)).SerializeToString()


def encode_failure(id_: int, error: FarsumError) -> bytes:
    return pb.ServerMessage(id=id_, error=_error(error)).SerializeToString()


def encode_draining() -> bytes:
    return pb.ServerMessage(draining=pb.Draining()).SerializeToString()


def decode_server(data: bytes) -> tuple[int, Welcome | Reply | Progress | Failure | Goodbye]:
    message = _parse(pb.ServerMessage(), data)
    match message.WhichOneof("body"):
        case "reply":
            return message.id, _reply(message.reply)
        case "progress":
            return message.id, Progress(message.progress.share, tuple(message.progress.values))
        case "error":
            error = message.error
            return message.id, Failure(error_named(error.name, error.message), error.retry_after_s)
        case "draining":
            return message.id, Goodbye()
        case "welcome":
            welcome = message.welcome
            return message.id, Welcome(welcome.protocol, welcome.server, welcome.inline_bytes)
    raise WireError("the session message is empty")


# ── errors ────────────────────────────────────────────────────────────────────────────────────────


def busy(error: QueueFull, retry_after_s: float) -> QueueFull:
    """The error with a hint when to try again."""
    error.retry_after_s = retry_after_s
    return error


def retry_after(error: FarsumError) -> float:
    return error.retry_after_s


def error_text(error: FarsumError) -> str:
    """The message as it crosses the wire: formulas in it may be long, metadata may not."""
    text = str(error)
    return text if len(text) <= MAX_ERROR_CHARS else text[:MAX_ERROR_CHARS] + "…"


def _error(error: FarsumError) -> pb.Error:
    return pb.Error(name=type(error).__name__, message=error_text(error), retry_after_s=retry_after(error))


def error_metadata(error: FarsumError) -> tuple[tuple[str, str], ...]:
    """The trailing metadata from which the client rebuilds an error of a unary or bulk call."""
    return (ERROR_KEY, type(error).__name__), (RETRY_KEY, repr(retry_after(error)))


def decode_error(metadata: Iterable[tuple[str, Any]], details: str) -> Failure | None:
    """The inverse; None when the failure did not come from a farsum server."""
    found = {key: value for key, value in metadata if key in (ERROR_KEY, RETRY_KEY)}
    if ERROR_KEY not in found:
        return None
    try:
        pause = float(found.get(RETRY_KEY, 0.0))
    except ValueError:
        pause = 0.0
    return Failure(error_named(str(found[ERROR_KEY]), details), pause if math.isfinite(pause) else 0.0)


# ── info ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    kind: str
    threads: int
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Info:
    """What a server says of itself."""

    version: str
    ready: bool
    devices: tuple[Device, ...]
    oldest_protocol: int = OLDEST_PROTOCOL
    newest_protocol: int = NEWEST_PROTOCOL


def encode_info_request() -> bytes:
    return pb.InfoRequest().SerializeToString()


def encode_info(info: Info) -> bytes:
    return pb.InfoReply(
        version=info.version,
        oldest_protocol=info.oldest_protocol,
        newest_protocol=info.newest_protocol,
        ready=info.ready,
        devices=[
            pb.Device(name=d.name, kind=d.kind, threads=d.threads, restarts=d.restarts) for d in info.devices
        ],
    ).SerializeToString()


def decode_info(data: bytes) -> Info:
    message = _parse(pb.InfoReply(), data)
    devices = tuple(Device(d.name, d.kind, d.threads, d.restarts) for d in message.devices)
    return Info(message.version, message.ready, devices, message.oldest_protocol, message.newest_protocol)


# ── daemon <-> worker process ─────────────────────────────────────────────────────────────────────


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
class Ready:
    device: Device


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


def encode_action(job: int, action: Start | Step | Drop) -> bytes:
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
        case Step():
            message.step.SetInParent()
        case Drop():
            message.drop.SetInParent()
    return message.SerializeToString()


def decode_action(data: bytes) -> tuple[int, Start | Step | Drop]:
    message = _parse(wpb.Action(), data)
    match message.WhichOneof("body"):
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


def encode_event(job: int, event: Ready | Progressed | Finished | Failure) -> bytes:
    message = wpb.Event(job=job)
    match event:
        case Ready(device):
            ready = message.ready
            ready.name, ready.kind, ready.threads = device.name, device.kind, device.threads
        case Progressed(share, values):
            message.progressed.share = share
            message.progressed.values.extend(values)
        case Finished(values, plan, digests, stopped):
            message.finished.values.extend(values)
            message.finished.plan = plan
            message.finished.digests.extend(digests)
            if stopped:
                _fill_stopped(message.finished.stopped, stopped)
            message.finished.SetInParent()
        case Failure(error):
            message.failed.CopyFrom(_error(error))
    return message.SerializeToString()


def decode_event(data: bytes) -> tuple[int, Ready | Progressed | Finished | Failure]:
    message = _parse(wpb.Event(), data)
    match message.WhichOneof("body"):
        case "progressed":
            return message.job, Progressed(message.progressed.share, tuple(message.progressed.values))
        case "finished":
            done = message.finished
            stopped = _stopped(done.stopped) if done.HasField("stopped") else None
            return message.job, Finished(tuple(done.values), done.plan, tuple(done.digests), stopped)
        case "failed":
            return message.job, Failure(error_named(message.failed.name, message.failed.message))
        case "ready":
            ready = message.ready
            return message.job, Ready(Device(ready.name, ready.kind, ready.threads))
    raise WireError("the event is empty")


def check_complete(received: int, expected: int) -> None:
    """Raise TruncatedStream unless a bulk stream brought exactly what its header declared."""
    if received != expected:
        word = "ended after" if received < expected else "went on to"
        raise TruncatedStream(f"the stream {word} {received} bytes; its header declared {expected}")
