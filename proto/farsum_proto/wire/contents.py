"""What is in the arrays of a job, and the bulk streams that carry large ones. Reads no array."""

from __future__ import annotations

from dataclasses import dataclass

from farsum_kernels.errors import MessageTooLarge, TruncatedStream, WireError
from farsum_kernels.job import ArrayRef
from farsum_proto.v1 import farsum_pb2 as pb
from farsum_proto.wire.forms import Form, checked_face
from farsum_proto.wire.limits import (
    CODECS,
    DIGEST_BYTES,
    INLINE_BYTES,
    MAX_HEADER_BYTES,
    TINY_BYTES,
    TOKEN_BYTES,
    parse,
)


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


def check_digest(digest: bytes) -> None:
    if len(digest) != DIGEST_BYTES:
        raise WireError(f"a digest has {len(digest)} bytes; BLAKE3 digests have {DIGEST_BYTES}")


def check_token(token: bytes) -> bytes:
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
            check_digest(content.digest)
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
            check_digest(content.digest)


def encode_upload(upload: Upload) -> bytes:
    return upload_message(upload).SerializeToString()


def upload_message(upload: Upload) -> pb.UploadHeader:
    ref = upload.ref
    return pb.UploadHeader(
        digest=ref.digest, dtype=ref.dtype, shape=ref.shape, stream_bytes=upload.stream_bytes,
        hold=upload.hold, offset=upload.offset, resumable=upload.resumable, codec=upload.codec,
    )  # fmt: skip


def decode_upload(data: bytes) -> Upload:
    return read_upload(parse(pb.UploadHeader(), data))


def read_upload(message: pb.UploadHeader) -> Upload:
    """Checked before a byte of memory is reserved: shape × dtype is what the stream will carry."""
    check_digest(message.digest)
    face = checked_face(message.dtype, message.shape)
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
        check_token(message.hold),
        message.offset,
        message.resumable,
        message.codec,
    )


def encode_stored(stored_bytes: int) -> bytes:
    return pb.UploadReply(stored_bytes=stored_bytes).SerializeToString()


def decode_stored(data: bytes) -> int:
    return parse(pb.UploadReply(), data).stored_bytes


def encode_download(what: bytes | ArrayRef, offset: int = 0) -> bytes:
    """Asks for a result by its ticket, or for an array that is held there, from an offset of its stream on."""
    return download_message(what, offset).SerializeToString()


def download_message(what: bytes | ArrayRef, offset: int = 0) -> pb.DownloadRequest:
    if isinstance(what, bytes):
        return pb.DownloadRequest(ticket=what)
    return pb.DownloadRequest(digest=what.digest, dtype=what.dtype, shape=what.shape, offset=offset)


def decode_download(data: bytes) -> tuple[bytes | ArrayRef, int]:
    return read_download(parse(pb.DownloadRequest(), data))


def read_download(message: pb.DownloadRequest) -> tuple[bytes | ArrayRef, int]:
    if message.ticket:
        if message.offset:
            raise WireError("a ticket is good for one download, from the start")
        return message.ticket, 0
    check_digest(message.digest)
    face = checked_face(message.dtype, message.shape)
    if message.offset > face.nbytes + MAX_HEADER_BYTES:
        raise WireError(f"a stream of {face.nbytes} bytes cannot go on from byte {message.offset}")
    return ArrayRef(message.digest, face.dtype, face.shape), message.offset


def check_complete(received: int, expected: int) -> None:
    """Raise TruncatedStream unless a bulk stream brought exactly what its header declared."""
    if received != expected:
        word = "ended after" if received < expected else "went on to"
        raise TruncatedStream(f"the stream {word} {received} bytes; its header declared {expected}")
