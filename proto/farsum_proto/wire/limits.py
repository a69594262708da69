"""The names, versions and bounds of the wire, and how raw bytes become a message. Knows no message by name."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from farsum_kernels.errors import WireError

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
# Of 1 to 4 MiB the size at which bulk streams are fastest (measured on loopback).
CHUNK_BYTES = 2 << 20
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


def parse(message: M, data: bytes) -> M:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError(f"the bytes are no {type(message).__name__} message: {error}") from error
    return message
