"""What a server says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from farsum_proto.v1 import farsum_pb2 as pb
from farsum_proto.wire.limits import NEWEST_PROTOCOL, OLDEST_PROTOCOL, parse


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
    message = parse(pb.InfoReply(), data)
    devices = tuple(Device(d.name, d.kind, d.threads, d.restarts) for d in message.devices)
    return Info(message.version, message.ready, devices, message.oldest_protocol, message.newest_protocol)
