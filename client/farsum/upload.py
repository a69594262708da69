"""Arrays on their way to a server: from where an earlier upload broke off, compressed where that pays, a few at once.

Knows the bulk stream; what is to be sent, and when again, is decided by call.py and remote.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from farsum.session import Session
from farsum_kernels.errors import DigestMismatch, TruncatedStream
from farsum_kernels.job import ArrayRef
from farsum_proto import tensor, wire

Array = NDArray[Any]

STREAMS = 4
# Smaller arrays are sent as they are, and again from the start.
LEAST_BYTES = 1 << 20
# Compression is tried on so much, from the middle of the array.
SAMPLE_BYTES = 128 << 10
# What a link is taken for until an upload has shown its speed, in bytes per second: 1 Gbit/s.
UNKNOWN_LINK = 125e6
# Compression must save this share of the time, for the server unpacks as well.
WORTH = 0.25


class Item(NamedTuple):
    """An array to send: C-ordered, its dtype and digest, the token that is to hold it, and what is there of it."""

    array: Array
    dtype: str
    digest: bytes
    hold: bytes = b""
    received: int = 0


def upload_arrays(session: Session, items: Sequence[Item]) -> None:
    """Send arrays, a few at once. Raises what `upload_array` raises for one of them, when all have ended."""
    if len(items) == 1:
        upload_array(session, items[0])
        return
    with ThreadPoolExecutor(min(STREAMS, len(items)), thread_name_prefix="farsum-upload") as pool:
        for sent in [pool.submit(upload_array, session, item) for item in items]:
            sent.result()


def upload_array(session: Session, item: Item) -> None:
    """Send one array.

    Raises Lost when the stream broke: what came is of use to the next attempt. Else what the server raises.
    """
    tensor.keep_freed_memory()
    array = item.array
    header, body = tensor.header_of(array), memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    ref, size = ArrayRef(item.digest, item.dtype, array.shape), len(header) + len(body)
    large = size >= LEAST_BYTES
    start = item.received if item.received < size else 0
    try:
        _send(session, wire.Upload(ref, size, item.hold, start, large), header, body)
    except (TruncatedStream, DigestMismatch):
        if not start:
            raise
        # What was there is gone, or was not what it should be.
        _send(session, wire.Upload(ref, size, item.hold, 0, large), header, body)


def _send(session: Session, upload: wire.Upload, header: bytes, body: memoryview) -> None:
    """Through memory where there is such a way, else over gRPC, packed if that pays."""
    with session.link() as link:
        if link:
            link.upload(upload, header, body)
            return
    if upload.stream_bytes >= LEAST_BYTES:
        upload = replace(upload, codec=codec_for(body, session.link_bytes_s or UNKNOWN_LINK))
    sent = 0

    def messages() -> Iterator[bytes]:
        nonlocal sent
        pack = pa.Codec(upload.codec).compress if upload.codec else None
        for chunk in tensor.chunks_of(header, body, upload.offset):
            data = chunk if pack is None else pack(chunk, asbytes=True)
            sent += len(data)
            yield data

    begun = time.perf_counter()
    session.upload(upload, messages())
    if sent >= LEAST_BYTES:
        session.link_bytes_s = sent / (time.perf_counter() - begun)


def codec_for(body: memoryview, link_bytes_s: float) -> str:
    """The codec with which these bytes arrive soonest over a link of this speed; none, if none is worth it.

    Packing and sending overlap, so the slower of the two counts.
    """
    middle = len(body) // 2
    sample = bytes(body[middle : middle + SAMPLE_BYTES])
    best, least_s = "", (1 - WORTH) * len(sample) / link_bytes_s
    for codec in wire.CODECS[1:]:
        begun = time.perf_counter()
        packed = pa.Codec(codec).compress(sample, asbytes=True)
        seconds = max(time.perf_counter() - begun, len(packed) / link_bytes_s)
        if seconds < least_s:
            best, least_s = codec, seconds
    return best
