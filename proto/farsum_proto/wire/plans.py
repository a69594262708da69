"""How a job was computed, for people: words, encoded once for equal plans."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from farsum_proto.v1 import farsum_pb2 as pb
from farsum_proto.wire.limits import parse


def encode_plan(plan: Mapping[str, str]) -> bytes:
    return _encode_plan(tuple(plan.items()))


@lru_cache(maxsize=256)
def _encode_plan(items: tuple[tuple[str, str], ...]) -> bytes:
    return pb.Plan(entries=dict(items)).SerializeToString(deterministic=True)


@lru_cache(maxsize=256)
def _decode_plan(data: bytes) -> Mapping[str, str]:
    return MappingProxyType(dict(parse(pb.Plan(), data).entries))


def decode_plan(data: bytes) -> dict[str, str]:
    """How a job was computed. A repeated job repeats its plan, so the decoded form is kept."""
    return dict(_decode_plan(data))
