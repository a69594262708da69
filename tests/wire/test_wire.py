"""Messages and values: what goes in comes out, and hostile bytes give typed errors in bounded time."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farsum_kernels import errors
from farsum_kernels.errors import (
    FarsumError,
    FormulaTooLarge,
    ProtocolMismatch,
    SolverDidNotConverge,
    WireError,
)
from farsum_kernels.formula.expr import I, J, constant, node, variable
from farsum_kernels.job import ArrayRef, Part, Spec
from farsum_proto import tensor, wire
from farsum_proto.v1 import farsum_pb2 as pb

X, Y = variable(0, 3, I), variable(1, 3, J)
DISTANCE = node("SqDist", X, Y)
SPECS = [
    Spec(DISTANCE, "Sum", 1, "float32"),
    Spec(DISTANCE, "KMin_ArgKMin", 0, "float64", None, 7),
    Spec(node("Pow", node("Add", DISTANCE, constant(0.5)), params=(-3,)), "LogSumExp", 1, "float32"),
    Spec(DISTANCE, "Sum", 1, "float16", None, 0, (Part(X, "Max"), Part(DISTANCE, "ArgMin"))),
]
SHAPES = {0: (10, 3), 1: (20, 3)}


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_forms_round_trip(spec: Spec) -> None:
    data = wire.encode_form(spec, SHAPES)
    form = wire.decode_form(data)
    assert form.spec == spec and form.spec.digest == spec.digest
    assert dict(zip(form.indices, [f.shape for f in form.faces], strict=True)) == SHAPES
    assert wire.encode_form(form.spec, SHAPES) == data


def test_a_form_is_decoded_once() -> None:
    cache, data = wire.FormCache(), wire.encode_form(SPECS[0], SHAPES)
    assert cache.get(data) is cache.get(bytes(bytearray(data)))
    small = wire.FormCache(limit_bytes=len(data))
    first = small.get(data)
    small.get(wire.encode_form(SPECS[1], SHAPES))
    assert small.get(data) is not first


contents = st.builds(wire.Content, st.binary(max_size=40), st.none() | st.binary(max_size=40))
requests = st.builds(
    wire.Request,
    st.binary(max_size=60),
    st.lists(contents, max_size=5).map(tuple),
    st.none() | st.floats(0.001, 1e6),
    st.booleans(),
)
dims = st.lists(st.integers(0, 1000), max_size=4).map(tuple)


@st.composite
def values(draw: st.DrawFn) -> wire.Value:
    dtype, shape = draw(st.sampled_from(["float32", "int64"])), draw(st.lists(st.integers(0, 5), max_size=3))
    nbytes = ArrayRef(b"", dtype, tuple(shape)).nbytes
    if draw(st.booleans()):
        return wire.Value(dtype, tuple(shape), bytes(nbytes))
    return wire.Value(
        dtype, tuple(shape), None, draw(st.binary(max_size=16)), nbytes + draw(st.integers(1, 4096))
    )


replies = st.one_of(
    st.builds(wire.Outputs, st.lists(values(), max_size=3).map(tuple), st.binary(max_size=20)),
    st.builds(wire.Need, st.lists(st.binary(min_size=32, max_size=32), max_size=4).map(tuple)),
)


@given(st.integers(0, 2**64 - 1), requests)
def test_requests_round_trip(id_: int, request: wire.Request) -> None:
    assert wire.decode_client(wire.encode_ask(id_, request)) == (id_, request)
    assert wire.decode_request(wire.encode_request(request)) == request


@given(st.integers(0, 2**64 - 1), replies)
def test_replies_round_trip(id_: int, reply: wire.Reply) -> None:
    assert wire.decode_server(wire.encode_answer(id_, reply)) == (id_, reply)
    assert wire.decode_reply(wire.encode_reply(reply)) == reply


def test_packets_round_trip() -> None:
    ref = ArrayRef(bytes(32), "int64", (3, 2))
    for packet in (
        wire.Window(b"s" * 16, 4, 1 << 20), wire.Upload(ref, 48 + 200, b"h" * 16, 100, True), wire.Download(ref, 40),
        wire.Download(b"ticket"), wire.Ahead(1 << 40), wire.Filled(1 << 20), wire.Taken(), wire.Stored(0),
    ):  # fmt: skip
        assert wire.decode_packet(wire.encode_packet(packet)) == packet
    busy = wire.decode_packet(wire.encode_packet(wire.Failure(wire.busy(errors.QueueFull("full"), 0.5))))
    assert (
        isinstance(busy, wire.Failure) and type(busy.error) is errors.QueueFull and busy.retry_after_s == 0.5
    )
    with pytest.raises(errors.WireError, match="none is so long"):
        wire.decode_packet(bytes(wire.MAX_PACKET_BYTES))
    offer = wire.Passage("/run/socket", b"s" * 16)
    _, welcome = wire.decode_server(wire.encode_welcome(1, "x", offer))
    assert isinstance(welcome, wire.Welcome) and welcome.passage == offer


def test_small_messages_round_trip() -> None:
    assert wire.decode_client(wire.encode_hello("me", 1, 3)) == (0, wire.Hello(1, 3, "me"))
    assert wire.decode_client(wire.encode_cancel(5)) == (5, wire.Cancel())
    assert wire.decode_server(wire.encode_welcome(1, "x")) == (0, wire.Welcome(1, "x", wire.INLINE_BYTES))
    assert wire.decode_server(wire.encode_progress(2, 0.5)) == (2, wire.Progress(0.5))
    assert wire.decode_server(wire.encode_progress(2, 0.5, (b"a", b""))) == (
        2,
        wire.Progress(0.5, (b"a", b"")),
    )
    stopped = wire.Outputs((), b"p", wire.Stopped(SolverDidNotConverge("why"), (1.0, 0.5)))
    _, again = wire.decode_server(wire.encode_answer(3, stopped))
    assert isinstance(again, wire.Outputs) and again.stopped
    assert type(again.stopped.error) is SolverDidNotConverge and again.stopped.residuals == (1.0, 0.5)
    assert wire.decode_server(wire.encode_draining()) == (0, wire.Goodbye())
    assert wire.decode_stored(wire.encode_stored(7)) == 7
    assert wire.decode_download(wire.encode_download(b"t")) == (b"t", 0)
    ref = ArrayRef(bytes(32), "int64", (3, 2))
    assert wire.decode_download(wire.encode_download(ref, 40)) == (ref, 40)
    upload = wire.Upload(ref, 48 + 200, b"h" * 16, 100, True, "lz4")
    assert wire.decode_upload(wire.encode_upload(upload)) == upload
    claims = wire.Residency(((bytes(32), bytes(16)),), ((b"\1" * 32, b"\2" * 16),))
    assert wire.decode_client(wire.encode_residency(6, claims)) == (6, claims)
    need = wire.Need((bytes(32),), ("it was dropped",), (1 << 40,))
    assert wire.decode_server(wire.encode_answer(1, need)) == (1, need)
    plan = {"threads": "2", "tile": "256"}
    assert wire.decode_plan(wire.encode_plan(plan)) == plan
    info = wire.Info("1", True, (wire.Device("cpu", "cpu", 2, 1),))
    assert wire.decode_info(wire.encode_info(info)) == info


@pytest.mark.parametrize(
    "action",
    [
        wire.Start(b"form", (64, b"inline", b""), (128,), digests=(bytes(32), b"", b"")),
        wire.Start(b"", (128,), (64,), digests=(b"\1" * 32,), keep=True),
        wire.Start(b"", (), (), outlook=True),
        wire.Step(),
        wire.Drop(),
        wire.Prepare(3, b"form"),
        wire.Prepare(1 << 40, b"form", 7),
    ],
)
def test_actions_round_trip(action: Any) -> None:
    assert wire.decode_action(wire.encode_action(3, action)) == (3, action)


@pytest.mark.parametrize(
    "event",
    [wire.Compiling(), wire.Ready(wire.Device("a", "cpu", 2)), wire.Progressed(0.25), wire.Progressed(0.5, (b"v",)), wire.Finished((b"", b"x"), b"p"),
     wire.Finished((), b""), wire.Finished((), b"", (bytes(32),)), wire.Prepared(1 << 40, b"plan"), wire.Prepared(1, b"")],
)  # fmt: skip
def test_events_round_trip(event: Any) -> None:
    assert wire.decode_event(wire.encode_event(3, event)) == (3, event)


@pytest.mark.parametrize("kind", [errors._BY_NAME[name] for name in sorted(errors._BY_NAME)])
def test_errors_keep_their_class_and_words(kind: type[FarsumError]) -> None:
    _, failure = wire.decode_server(wire.encode_failure(1, kind("why")))
    assert isinstance(failure, wire.Failure)
    assert type(failure.error) is kind and str(failure.error) == "why"
    again = wire.decode_error(wire.error_metadata(kind("why")), "why")
    assert again and type(again.error) is kind


def test_retry_hint_travels() -> None:
    busy = wire.busy(errors.QueueFull("full"), 1.5)
    _, failure = wire.decode_server(wire.encode_failure(1, busy))
    assert isinstance(failure, wire.Failure) and failure.retry_after_s == 1.5
    assert wire.decode_error(wire.error_metadata(busy), "full") is not None
    assert (
        wire.decode_error((("farsum-error", "QueueFull"), ("farsum-retry-after-s", "soon")), "") is not None
    )
    assert wire.decode_error((), "") is None


def test_long_messages_are_cut() -> None:
    assert len(wire.error_text(FarsumError("x" * 10**6))) < 2100


@pytest.mark.parametrize("oldest, newest, agreed", [(1, 1, 1), (0, 1, 1), (1, 7, 1)])
def test_the_newest_common_protocol(oldest: int, newest: int, agreed: int) -> None:
    assert wire.agree(oldest, newest) == agreed


def test_no_common_protocol() -> None:
    with pytest.raises(
        ProtocolMismatch, match="client speaks protocol 2 to 4, the server 1; upgrade farsum on the server"
    ):
        wire.agree(2, 4)


DECODERS: list[Any] = [
    wire.decode_form, wire.decode_client, wire.decode_server, wire.decode_request, wire.decode_reply,
    wire.decode_upload, wire.decode_stored, wire.decode_download, wire.decode_info, wire.decode_plan,
    wire.decode_action, wire.decode_event, wire.decode_head, wire.decode_packet,
]  # fmt: skip


@pytest.mark.parametrize("decoder", DECODERS, ids=[d.__name__ for d in DECODERS])
@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_a_typed_error(decoder: Any, data: bytes) -> None:
    with contextlib.suppress(FarsumError):
        decoder(data)


params = st.one_of(
    st.builds(pb.Param),
    st.builds(pb.Param, integer=st.integers(-(2**63), 2**63 - 1)),
    st.builds(pb.Param, real=st.floats()),
    st.builds(pb.Param, integers=st.builds(pb.IntegerList, values=st.lists(st.integers(-5, 5), max_size=3))),
)
nodes = st.builds(
    pb.Node,
    op=st.sampled_from(
        ["Var", "Const", "Add", "Exp", "Pow", "SqDist", "Elem", "Extract", "Grad", "nope", ""]
    ),
    args=st.lists(st.integers(0, 6), max_size=3),
    params=st.lists(params, max_size=3),
)
parts = st.builds(
    pb.Part, formula=st.integers(0, 8), weight=st.none() | st.integers(0, 8),
    reduction=st.sampled_from(["Sum", "KMin", "ArgMin", "x"]), k=st.integers(0, 2**32 - 1),
)  # fmt: skip
specs = st.builds(
    pb.Spec, nodes=st.lists(nodes, max_size=6), parts=st.lists(parts, max_size=3),
    axis=st.integers(0, 3), dtype=st.sampled_from(["float32", "object"]),
)  # fmt: skip
faces = st.builds(
    pb.Face, index=st.sampled_from([0, 1, 2, 1024, 2**32 - 1]), dtype=st.sampled_from(["float32", "int64", "void"]),
    shape=st.lists(st.sampled_from([0, 1, 3, 2**40, 2**64 - 1]), max_size=4),
)  # fmt: skip


@given(st.builds(pb.Form, spec=specs, faces=st.lists(faces, max_size=3)))
def test_well_formed_nonsense_gives_a_typed_error(form: pb.Form) -> None:
    with contextlib.suppress(FarsumError):
        wire.decode_form(form.SerializeToString())


@given(st.data())
def test_mutated_forms_give_a_value_or_a_typed_error(data: st.DataObject) -> None:
    encoded = bytearray(wire.encode_form(data.draw(st.sampled_from(SPECS)), SHAPES))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FarsumError):
        wire.decode_form(bytes(encoded))


def bomb(n: int) -> pb.Form:
    """A formula whose tree has 2**n leaves, in n nodes."""
    spec = pb.Spec(axis=1, dtype="float32", parts=[pb.Part(formula=n, reduction="Sum")])
    spec.nodes.add(op="Var", params=[pb.Param(integer=v) for v in (0, 1, 0)])
    for k in range(n):
        spec.nodes.add(op="Add", args=[k, k])
    return pb.Form(spec=spec, faces=[pb.Face(index=0, dtype="float32", shape=[4, 2])])


def test_formulas_that_explode_when_written_out_are_refused_in_time() -> None:
    started = time.monotonic()
    for n in (60, 500, 4000, 5000):
        with pytest.raises(FarsumError) as raised:
            wire.decode_form(bomb(n).SerializeToString())
        assert len(wire.error_text(raised.value)) < 2100
    assert time.monotonic() - started < 5


def test_too_many_bytes() -> None:
    with pytest.raises(FormulaTooLarge):
        wire.decode_form(bytes(wire.MAX_FORM_BYTES + 1))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64"])
@pytest.mark.parametrize("shape", [(5,), (1000, 3), (0, 3), (3, 0, 2), (2, 3, 4, 5)])
def test_tensor_streams(dtype: str, shape: tuple[int, ...]) -> None:
    held = tensor.held_as(dtype)
    array = np.arange(np.prod(shape), dtype="int64").astype(held).reshape(shape)
    body = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    stream = bytearray(b"".join(tensor.chunks_of(tensor.header_of(array), body)))
    ref = ArrayRef(b"", dtype, shape)
    offset = tensor.body_offset(memoryview(stream), ref)
    np.testing.assert_array_equal(np.ndarray(shape, held, stream, offset), array)
    with pytest.raises(WireError):
        tensor.body_offset(memoryview(stream), ArrayRef(b"", dtype, (*shape, 1)))


@given(st.binary(max_size=400))
def test_tensor_streams_of_any_bytes(data: bytes) -> None:
    with pytest.raises(WireError):
        tensor.body_offset(memoryview(data), ArrayRef(b"", "float32", (3, 3)))


@given(st.integers(0, 255), st.integers(0, 255))
def test_tensor_streams_with_one_byte_changed(place: int, value: int) -> None:
    array = np.ones((4, 3), "float32")
    stream = bytearray(tensor.header_of(array) + array.tobytes())
    stream[place] = value
    with contextlib.suppress(WireError):
        assert tensor.body_offset(memoryview(stream), ArrayRef(b"", "float32", (4, 3))) == len(stream) - 48


# ── packets of bare numbers ───────────────────────────────────────────────────────────────────────


def small_form() -> wire.Form:
    """x is tiny, y is named; two results."""
    spec = Spec(DISTANCE, "KMin_ArgKMin", 1, "float32", None, 2)
    return wire.decode_form(wire.encode_form(spec, {0: (5, 3), 1: (100, 3)}))


def test_numbers_round_trip() -> None:
    rooms = wire.Rooms(small_form())
    assert rooms.fit and rooms.tiny == [True, False]
    x, digest = bytes(range(60)), bytes(range(32))
    sent = rooms.ask(3, 1 << 40, [x, digest])
    assert wire.is_numbers(sent) and wire.decode_head(sent) == (1 << 40, 3)
    rooms.check(sent)
    assert rooms.contents(sent) == (wire.Content(b"", x), wire.Content(digest))
    assert rooms.digests(sent) == [digest]
    there = wire.headed(sent, 4, 9, {rooms.places[0]: 4096})
    assert wire.decode_head(there) == (9, 4) and wire.place_in(memoryview(there), rooms.places[0]) == 4096
    assert rooms.contents(there) == rooms.contents(sent)
    assert wire.headed(sent, 4, 9)[24:] == sent[24:]


def test_answers_round_trip() -> None:
    rooms = wire.Rooms(small_form())
    answer = bytearray(rooms.answer_bytes)
    wire.put_head(memoryview(answer), 3, 9)
    values, places = bytes(range(40)), bytes(range(80))
    for start, result in zip(rooms.results, (values, places), strict=True):
        answer[start : start + len(result)] = result
    assert rooms.values(bytes(answer)) == (values, places)
    assert wire.decode_head(bytes(answer)) == (9, 3)
    with pytest.raises(WireError, match=f"an answer of 24 bytes came where {rooms.answer_bytes} were due"):
        rooms.values(bytes(answer[:24]))


def test_a_packet_of_another_length_is_refused() -> None:
    rooms = wire.Rooms(small_form())
    sent = rooms.ask(3, 1, [bytes(60), bytes(32)])
    for wrong in (sent[:-1], sent + b"\0"):
        with pytest.raises(WireError, match=f"a packet of {len(wrong)} bytes came where the job takes"):
            rooms.check(wrong)
    with pytest.raises(WireError, match="has no head"):
        wire.decode_head(sent[:10])


def test_no_message_starts_like_a_packet() -> None:
    with pytest.raises(WireError):
        wire.decode_client(b"\2" + bytes(30))


def test_what_is_too_large_for_a_packet() -> None:
    many = Spec(X, "Sum", 0, "float32")
    assert wire.Rooms(wire.decode_form(wire.encode_form(many, {0: (20_000, 3)}))).fit, "an array is named"
    rows = Spec(DISTANCE, "Sum", 1, "float32")
    assert not wire.Rooms(wire.decode_form(wire.encode_form(rows, {0: (20_000, 3), 1: (5, 3)}))).fit
