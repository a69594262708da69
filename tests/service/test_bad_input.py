"""Hostile and mistaken clients, over real sockets: each gets a typed error, and the server serves on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from blake3 import blake3

from farsum.address import address_of
from farsum.remote import RemoteEngine
from farsum.session import Session
from farsum.stream import rebuilt
from farsum_kernels.errors import (
    ArrayMissing,
    DigestMismatch,
    DimensionError,
    DtypeError,
    FarsumError,
    FormulaTooLarge,
    MessageTooLarge,
    ProtocolMismatch,
    ServerUnreachable,
    ShapeError,
    StoreFull,
    TruncatedStream,
    UnknownOperation,
    WireError,
)
from farsum_kernels.formula.expr import I, J, constant, node, variable
from farsum_kernels.job import ArrayRef, Spec
from farsum_proto import tensor, wire
from farsum_proto.v1 import farsum_pb2 as pb
from farsum_server.engine import LocalEngine
from tests.service.server import Server, gaussian_sum, points, raw_channel


@pytest.fixture(autouse=True)
def still_serves(server: Server) -> Iterator[None]:
    """After every bad message, a good one is answered and no memory is held."""
    before = server.metric("farsum_store_used_bytes")
    yield
    with RemoteEngine(server.target) as engine:
        assert engine.prepare(gaussian_sum()).run(points(4, 4)).values[0].shape == (4, 1)
    assert server.metric("farsum_store_used_bytes") == before
    assert server.metric("farsum_uploads_in_progress") == 0
    assert not [e for e in server.events() if "unhandled" in e or "failed" in e]


def unary(server: Server, method: str, data: bytes) -> bytes:
    with raw_channel(server) as channel:
        try:
            return channel.unary_unary(wire.METHODS[method])(data, timeout=20)
        except grpc.RpcError as error:
            raise rebuilt(error, server.target) from None


def upload(server: Server, header: bytes, *chunks: bytes) -> bytes:
    with raw_channel(server) as channel:
        try:
            return channel.stream_unary(wire.METHODS["Upload"])(iter([header, *chunks]), timeout=20)
        except grpc.RpcError as error:
            raise rebuilt(error, server.target) from None


def session_says(server: Server, *messages: bytes) -> list[Any]:
    """What a session answers to these messages, before it ends."""
    with raw_channel(server) as channel:
        try:
            answers = list(channel.stream_stream(wire.METHODS["Session"])(iter(messages), timeout=20))
        except grpc.RpcError as error:
            raise rebuilt(error, server.target) from None
    return [wire.decode_server(answer) for answer in answers]


def asked(server: Server, form: pb.Form, *contents: bytes) -> FarsumError:
    """The error that the session gives to a request, by its id."""
    request = wire.Request(form.SerializeToString(), tuple(wire.Content(b"", c) for c in contents))
    welcome, (id_, failure) = session_says(server, wire.encode_hello("test"), wire.encode_ask(7, request))
    assert isinstance(welcome[1], wire.Welcome) and id_ == 7
    assert isinstance(failure, wire.Failure), failure
    return failure.error


def good_form() -> pb.Form:
    return pb.Form.FromString(wire.encode_form(gaussian_sum(), {0: (4, 3), 1: (5, 3), 2: (5, 1)}))


CONTENTS = bytes(48), bytes(60), bytes(20)


def test_unknown_operation(server: Server) -> None:
    form = good_form()
    next(n for n in form.spec.nodes if n.op == "Exp").op = "os.system"
    error = asked(server, form, *CONTENTS)
    assert type(error) is UnknownOperation and "os.system" in str(error)


def test_unknown_reduction(server: Server) -> None:
    form = good_form()
    form.spec.parts[0].reduction = "Fold"
    assert type(asked(server, form, *CONTENTS)) is UnknownOperation


def test_operand_that_comes_later(server: Server) -> None:
    form = good_form()
    form.spec.nodes[2].args[0] = 99
    assert "earlier" in str(asked(server, form, *CONTENTS))


def test_dimensions_that_do_not_fit(server: Server) -> None:
    form = good_form()
    next(n for n in form.spec.nodes if n.op == "Var").params[1].integer = 7
    assert isinstance(asked(server, form, *CONTENTS), DimensionError)


def test_wrong_columns(server: Server) -> None:
    form = good_form()
    form.faces[0].shape[1] = 4
    error = asked(server, form, bytes(64), *CONTENTS[1:])
    assert type(error) is ShapeError and "(4, 4)" in str(error)


def test_missing_array(server: Server) -> None:
    form = good_form()
    del form.faces[2]
    assert type(asked(server, form, *CONTENTS[:2])) is ShapeError


def test_mixed_dtypes(server: Server) -> None:
    form = good_form()
    form.faces[1].dtype = "float64"
    error = asked(server, form, CONTENTS[0], bytes(120), CONTENTS[2])
    assert type(error) is DtypeError and "float64" in str(error)


def test_unknown_dtype(server: Server) -> None:
    form = good_form()
    form.faces[1].dtype = "object"
    assert type(asked(server, form, *CONTENTS)) is DtypeError


def test_contents_that_are_not_their_shape(server: Server) -> None:
    assert "48 bytes" in str(asked(server, good_form(), bytes(47), *CONTENTS[1:]))
    assert "contents of 2" in str(asked(server, good_form(), *CONTENTS[:2]))


def test_result_that_no_store_holds(server: Server) -> None:
    form = good_form()
    form.faces[0].shape[:] = [1 << 40, 1, 3]
    form.faces[1].shape[:] = [1, 0, 3]
    form.faces[2].shape[:] = [1, 0, 1]
    error = asked(server, form, *CONTENTS)
    assert isinstance(error, MessageTooLarge | StoreFull | WireError)


def test_inline_array_with_another_digest(server: Server) -> None:
    form = wire.encode_form(gaussian_sum(), {0: (100, 3), 1: (1, 3), 2: (1, 1)})
    contents = (
        wire.Content(bytes(32), bytes(1200)),
        wire.Content(b"", bytes(12)),
        wire.Content(b"", bytes(4)),
    )
    messages = wire.encode_hello("test"), wire.encode_ask(1, wire.Request(form, contents))
    _, (_, failure) = session_says(server, *messages)
    assert type(failure.error) is DigestMismatch


def test_one_bad_request_does_not_end_the_session(server: Server) -> None:
    bad = wire.encode_ask(1, wire.Request(b"\xff\xff", ()))
    form = good_form().SerializeToString()
    good = wire.encode_ask(2, wire.Request(form, tuple(wire.Content(b"", c) for c in CONTENTS)))
    answers = session_says(server, wire.encode_hello("test"), bad, good)
    assert {(i, type(a)) for i, a in answers[1:]} == {(1, wire.Failure), (2, wire.Outputs)}


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"", bytes(1000)])
def test_garbage_in_a_session(server: Server, data: bytes) -> None:
    with pytest.raises(WireError):
        session_says(server, data)
    with pytest.raises(WireError):
        session_says(server, wire.encode_hello("test"), data)


def test_a_session_that_does_not_say_hello(server: Server) -> None:
    with pytest.raises(WireError, match="hello"):
        session_says(server, wire.encode_cancel(3))


@pytest.mark.parametrize("oldest, newest, who", [(0, 0, "client"), (9, 11, "server")])
def test_protocols_without_a_common_version(server: Server, oldest: int, newest: int, who: str) -> None:
    with pytest.raises(ProtocolMismatch, match=rf"upgrade farsum on the {who}"):
        session_says(server, wire.encode_hello("test", oldest, newest))


def test_unary_call_of_another_protocol(server: Server) -> None:
    with pytest.raises(ProtocolMismatch):
        unary(server, "Reduce", pb.ReduceRequest(protocol=9).SerializeToString())


@pytest.mark.parametrize("method", ["Reduce", "Download", "Upload"])
def test_garbage_in_other_calls(server: Server, method: str) -> None:
    with pytest.raises(WireError):
        if method == "Upload":
            upload(server, b"\xff\xff\xff")
        elif method == "Reduce":
            unary(server, method, b"\xff\xff\xff")
        else:
            download(server, b"\xff\xff\xff")


def download(server: Server, data: bytes) -> None:
    with raw_channel(server) as channel:
        try:
            list(channel.unary_stream(wire.METHODS["Download"])(data, timeout=20))
        except grpc.RpcError as error:
            raise rebuilt(error, server.target) from None


def test_a_ticket_that_nobody_gave_out(server: Server) -> None:
    with pytest.raises(ArrayMissing, match="no longer here"):
        download(server, wire.encode_download(bytes(16)))


def test_message_over_the_limit(server: Server) -> None:
    with pytest.raises(MessageTooLarge):
        unary(server, "Reduce", bytes(wire.MAX_MESSAGE_BYTES + 1))


@pytest.fixture
def large() -> tuple[wire.Upload, bytes, bytes]:
    array = np.random.default_rng(5).random((100_000, 3)).astype("float32")
    header, body = tensor.header_of(array), array.tobytes()
    ref = ArrayRef(blake3(body).digest(), "float32", array.shape)
    return wire.Upload(ref, len(header) + len(body)), header, body


Large = tuple[wire.Upload, bytes, bytes]


def test_stream_that_ends_early(server: Server, large: Large) -> None:
    declared, header, body = large
    with pytest.raises(TruncatedStream, match="ended after"):
        upload(server, wire.encode_upload(declared), header + body[:500_000])


def test_stream_that_goes_on(server: Server, large: Large) -> None:
    declared, header, body = large
    with pytest.raises(TruncatedStream, match="went on"):
        upload(server, wire.encode_upload(declared), header + body, b"more")


def test_bytes_that_are_not_their_digest(server: Server, large: Large) -> None:
    declared, header, body = large
    with pytest.raises(DigestMismatch):
        upload(server, wire.encode_upload(declared), header + body[:-1] + b"x")


def test_stream_that_is_no_tensor(server: Server, large: Large) -> None:
    declared, header, body = large
    with pytest.raises(WireError):
        upload(server, wire.encode_upload(declared), bytes(len(header)) + body)


def test_tensor_of_another_shape_than_declared(server: Server, large: Large) -> None:
    declared, header, body = large
    flat = wire.Upload(ArrayRef(declared.ref.digest, "float32", (3, 100_000)), declared.stream_bytes)
    with pytest.raises(WireError, match="declared"):
        upload(server, wire.encode_upload(flat), header + body)


@pytest.mark.parametrize("shape", [(1 << 62, 1 << 62), (100_001, 3), (0, 1 << 63), (1,) * 40])
def test_shape_and_bytes_are_compared_before_memory_is_taken(
    server: Server, large: Large, shape: tuple[int, ...]
) -> None:
    declared, *_ = large
    header = wire.encode_upload(
        wire.Upload(ArrayRef(declared.ref.digest, "float32", shape), declared.stream_bytes)
    )
    with pytest.raises(FarsumError) as raised:
        upload(server, header)
    assert isinstance(raised.value, WireError | ShapeError)


def test_array_that_the_store_cannot_hold(server: Server, large: Large) -> None:
    declared, *_ = large
    ref = ArrayRef(declared.ref.digest, "float32", (1 << 30, 3))
    with pytest.raises(StoreFull, match="store-bytes"):
        upload(server, wire.encode_upload(wire.Upload(ref, ref.nbytes + 256)))


def test_server_that_is_not_running() -> None:
    with RemoteEngine("grpc://127.0.0.1:9") as engine:
        for ask in (engine.ping, lambda: engine.prepare(gaussian_sum()).run(points(2, 2))):
            with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:9.*farsum serve"):
                ask()


@pytest.mark.parametrize(
    "target, says",
    [
        ("grpc://10.0.0.7:50051", "ssh -N -L"),
        ("http://localhost:80", "no target"),
        ("localhost", "no target"),
    ],
)
def test_targets_that_are_none(target: str, says: str) -> None:
    with pytest.raises(ServerUnreachable, match=says):
        address_of(target)


def test_something_else_answers(server: Server) -> None:
    session = Session(server.http.replace("http", "grpc"), "test")
    with pytest.raises(ServerUnreachable):
        session.call("Info", b"")
    session.close()


def test_every_method_of_the_proto_is_served(server: Server) -> None:
    service = pb.DESCRIPTOR.services_by_name["Reductions"]
    assert {f"/{service.full_name}/{m.name}" for m in service.methods} <= set(wire.METHODS.values())


def test_a_formula_that_is_too_deep_to_compile(engine: RemoteEngine) -> None:
    x, y, f = variable(0, 3, I), variable(1, 3, J), variable(2, 1, J)
    distance = node("SqDist", x, y)
    for n in range(600):
        f = node(
            "Add", f, node("Exp", node("Minus", node("Mult", constant(0.01 * n), node("Add", distance, f))))
        )
    spec, arrays = Spec(f, "Sum", 1, "float32", None, 0), points(5, 5)
    for one in (engine, LocalEngine()):
        with pytest.raises(FormulaTooLarge, match="too deeply"):
            one.prepare(spec).run(arrays)
    assert engine.prepare(gaussian_sum()).run(arrays).values[0].shape == (5, 1)
