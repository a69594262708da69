"""Packets of bare numbers: how a small job that was asked before is asked again, and answered.

A client that was told the number of a job, see Outputs, sends a head and what fills the rooms behind it: the bytes of each tiny
array, the digest of each other one. A worker that has prepared the form gets the same packet, with the place in the
arena behind each digest. The answer is a head and the results. What lies where is settled by the form, so nobody
looks for it, and a worker reads and writes its numbers where they lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from struct import Struct

from farsum_kernels.errors import WireError
from farsum_proto.wire.contents import Content
from farsum_proto.wire.forms import Form
from farsum_proto.wire.limits import DIGEST_BYTES, TINY_BYTES

# A packet must fit the buffer of a socket (208 KiB by default).
PACKET_BYTES = 60_000
# The first byte, with which no protobuf message starts.
NUMBERS = 2
_FIRST = bytes([NUMBERS])
ALIGN = 64
_HEAD = Struct("<B7xQQ")
_PLACE = Struct("<q")


@dataclass(frozen=True, slots=True)
class Said:
    """The packet that answers a job."""

    packet: bytes


class Rooms:
    """Where the numbers of a form lie in its packets.

    starts    the offset of each array
    tiny      whether its bytes lie there, or its name
    results   the offset of each result in the answer
    """

    def __init__(self, form: Form) -> None:
        self.tiny = [face.nbytes < TINY_BYTES for face in form.faces]
        sizes = [
            face.nbytes if tiny else DIGEST_BYTES + _PLACE.size
            for face, tiny in zip(form.faces, self.tiny, strict=True)
        ]
        self.starts, ask = _laid_out(sizes)
        self.results, answer = _laid_out([face.nbytes for face in form.outputs])
        self._ask, self._answer = Struct(ask), Struct(answer)
        self.ask_bytes, self.answer_bytes = self._ask.size, self._answer.size
        # Of the arrays that are named: which, and where their places are.
        self.named = [n for n, tiny in enumerate(self.tiny) if not tiny]
        self.places = [self.starts[n] + DIGEST_BYTES for n in self.named]

    @property
    def fit(self) -> bool:
        """Are both of them packets?"""
        return max(self.ask_bytes, self.answer_bytes) <= PACKET_BYTES

    def ask(self, number: int, id_: int, contents: Sequence[bytes]) -> bytes:
        """The packet of a job: the bytes of each tiny array, the digest of each other one."""
        return self._ask.pack(NUMBERS, number, id_, *contents)

    def check(self, packet: bytes) -> None:
        """Raise WireError unless it is as long as it has to be."""
        if len(packet) != self.ask_bytes:
            raise WireError(f"a packet of {len(packet)} bytes came where the job takes {self.ask_bytes}")

    def check_answer(self, packet: bytes | memoryview) -> None:
        """Raise WireError unless it is as long as it has to be."""
        if len(packet) != self.answer_bytes:
            raise WireError(f"an answer of {len(packet)} bytes came where {self.answer_bytes} were due")

    def contents(self, packet: bytes) -> tuple[Content, ...]:
        """The same as a message would have them."""
        found = self._ask.unpack(packet)[3:]
        return tuple(
            Content(b"", each) if tiny else Content(each[:DIGEST_BYTES], None)
            for each, tiny in zip(found, self.tiny, strict=True)
        )

    def digests(self, packet: bytes) -> list[bytes]:
        """Of the arrays that are named."""
        return [packet[place - DIGEST_BYTES : place] for place in self.places]

    def values(self, packet: bytes | memoryview) -> tuple[bytes, ...]:
        """The results in an answer. Raises WireError."""
        self.check_answer(packet)
        return self._answer.unpack(packet)[3:]


def _laid_out(sizes: Sequence[int]) -> tuple[list[int], str]:
    """The offsets of byte strings of these sizes behind a head, and the format of it all."""
    offsets, text, end = [], _HEAD.format, _HEAD.size
    for size in sizes:
        start = -(-end // ALIGN) * ALIGN
        text += f"{start - end}x{size}s"
        offsets.append(start)
        end = start + size
    return offsets, text


def is_numbers(data: bytes) -> bool:
    """Is it a packet, and no message of protobuf?"""
    return data[:1] == _FIRST


def decode_head(packet: bytes | memoryview) -> tuple[int, int]:
    """The head of a packet: its id, and the number by which its reader knows the job. Raises WireError."""
    if len(packet) < _HEAD.size:
        raise WireError(f"a packet of {len(packet)} bytes has no head")
    _, number, id_ = _HEAD.unpack_from(packet)
    return id_, number


def headed(packet: bytes, number: int, id_: int, places: Mapping[int, int] | None = None) -> bytes:
    """The packet with another head, and offsets into the arena at these offsets of it."""
    if not places:
        return _HEAD.pack(NUMBERS, number, id_) + packet[_HEAD.size :]
    made = bytearray(packet)
    put_head(memoryview(made), number, id_)
    for where, place in places.items():
        _PLACE.pack_into(made, where, place)
    return bytes(made)


def put_head(packet: memoryview, number: int, id_: int) -> None:
    _HEAD.pack_into(packet, 0, NUMBERS, number, id_)


def place_in(packet: memoryview, where: int) -> int:
    """The offset into the arena that is written there."""
    found: int = _PLACE.unpack_from(packet, where)[0]
    return found
