"""What client and server of one machine say beside memory that both map. Reads no array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from farsum_kernels.errors import WireError, error_named
from farsum_kernels.job import ArrayRef
from farsum_proto.v1 import farsum_pb2 as pb
from farsum_proto.wire.contents import Upload, download_message, read_download, read_upload, upload_message
from farsum_proto.wire.failures import Failure, error_message
from farsum_proto.wire.limits import parse

# More than any packet takes: the longest is an error.
MAX_PACKET_BYTES = 32 << 10


class Passage(NamedTuple):
    """Where a server hands over large arrays through memory, and the bytes by which it is known there."""

    path: str
    server: bytes


@dataclass(frozen=True, slots=True)
class Window:
    """The greeting of the server, with which a descriptor comes: memory in so many places of so many bytes."""

    server: bytes
    places: int
    place_bytes: int


@dataclass(frozen=True, slots=True)
class Download:
    """Asks for what a bulk download asks for."""

    what: bytes | ArrayRef
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Ahead:
    """The transfer may begin; its whole stream has so many bytes."""

    stream_bytes: int


@dataclass(frozen=True, slots=True)
class Filled:
    """The next place holds so many bytes."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class Taken:
    """The place that was filled first may be filled again."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The array is there."""

    nbytes: int


Packet = Window | Upload | Download | Ahead | Filled | Taken | Stored | Failure


def encode_packet(packet: Packet) -> bytes:
    message = pb.Packet()
    match packet:
        case Window(server, places, place_bytes):
            message.window.server = server
            message.window.places, message.window.place_bytes = places, place_bytes
        case Upload():
            message.upload.CopyFrom(upload_message(packet))
        case Download(what, offset):
            message.download.CopyFrom(download_message(what, offset))
        case Ahead(stream_bytes):
            message.ahead.stream_bytes = stream_bytes
        case Filled(nbytes):
            message.filled.bytes = nbytes
        case Taken():
            message.taken.SetInParent()
        case Stored(nbytes):
            message.stored.stored_bytes = nbytes
        case Failure(error):
            message.error.CopyFrom(error_message(error))
    return message.SerializeToString()


def decode_packet(data: bytes) -> Packet:
    if len(data) >= MAX_PACKET_BYTES:
        raise WireError(f"a packet of {MAX_PACKET_BYTES} bytes or more came; none is so long")
    message = parse(pb.Packet(), data)
    match message.WhichOneof("body"):
        case "filled":
            return Filled(message.filled.bytes)
        case "taken":
            return Taken()
        case "upload":
            return read_upload(message.upload)
        case "download":
            return Download(*read_download(message.download))
        case "ahead":
            return Ahead(message.ahead.stream_bytes)
        case "stored":
            return Stored(message.stored.stored_bytes)
        case "window":
            window = message.window
            return Window(window.server, window.places, window.place_bytes)
        case "error":
            error = message.error
            return Failure(error_named(error.name, error.message), error.retry_after_s)
    raise WireError("the packet is empty")
