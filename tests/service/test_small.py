"""Small jobs that come again: packets of bare numbers over real sockets, and where the threads run that carry them."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
import psutil
import pytest
from blake3 import blake3
from numpy.testing import assert_array_equal

import farsum
from farsum.numpy import Vi, Vj
from farsum.remote import RemoteEngine
from farsum_kernels.errors import DtypeError, ServerUnreachable, ShapeError, WireError
from farsum_kernels.formula.expr import I, J, P, node, variable
from farsum_kernels.job import Options, Spec
from farsum_proto import wire
from farsum_server.engine import LocalEngine
from tests.service.server import Server, engine_on, gaussian_sum, points, raw_channel, running
from tests.service.test_faults import until

X, Y, S = variable(0, 3, I), variable(1, 3, J), variable(2, 1, P)
DISTANCE = node("SqDist", X, Y)
SCALED = node("Exp", node("Minus", node("Mult", S, DISTANCE)))
SPECS = {
    "sum": Spec(node("Mult", SCALED, Y), "Sum", 1, "float32"),
    "over i": Spec(node("Mult", SCALED, X), "Sum", 0, "float64"),
    "log-sum-exp": Spec(node("Minus", DISTANCE), "LogSumExp", 1, "float32", S),
    "softmax": Spec(node("Minus", DISTANCE), "SumSoftMaxWeight", 1, "float64", node("Mult", S, Y)),
    "max and argmax": Spec(node("Mult", S, DISTANCE), "Max_ArgMax", 1, "float32"),
    "neighbours": Spec(node("Mult", S, DISTANCE), "KMin_ArgKMin", 1, "float32", None, 3),
    "half": Spec(node("Mult", S, DISTANCE), "Sum", 1, "float16"),
    "bfloat": Spec(node("Mult", S, DISTANCE), "Min", 1, "bfloat16"),
}
SIZES = {
    "tiny": (5, 40, ()),
    "one side named": (400, 7, ()),
    "both named": (300, 300, ()),
    "batch": (6, 5, (2, 3)),
}


def clouds(spec: Spec, m: int, n: int, batch: tuple[int, ...], seed: int) -> dict[int, Any]:
    rng = np.random.default_rng(seed)
    arrays = {0: rng.random((*batch, m, 3)), 1: rng.random((*batch, n, 3)), 2: rng.random((*batch, 1)) + 0.5}
    held = {"bfloat16": "uint16"}.get(spec.dtype, spec.dtype)
    if held == "uint16":
        return {k: (0x3F00 + 64 * a).astype(held) for k, a in arrays.items()}
    return {k: a.astype(held) for k, a in arrays.items()}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SPECS)
def test_the_numbers_of_the_engine_here(
    engine: RemoteEngine, messages: list[bytes], name: str, size: str
) -> None:
    spec = SPECS[name]
    prepared, local = engine.prepare(spec), LocalEngine().prepare(spec)
    for seed in (0, 0, 0, 1, 2, 1):
        arrays = clouds(spec, *SIZES[size], seed)
        for _ in range(2):  # the second time all of them are there
            before = len(messages)
            got, want = prepared.run(arrays), local.run(arrays)
            assert len(got.values) == len(want.values) and got.plan.keys() == want.plan.keys()
            for one, other in zip(got.values, want.values, strict=True):
                assert (one.dtype, one.shape) == (other.dtype, other.shape) and one.flags.writeable
                assert_array_equal(one, other)
    assert len(messages) == before + 1 and wire.is_numbers(messages[-1])


def test_users_who_write_their_formula_anew(server: Server, messages: list[bytes]) -> None:
    rng = np.random.default_rng(0)
    with farsum.connect(server.target):
        for n in range(5):
            x, y, b = rng.random((50, 3)), rng.random((60, 3)), rng.random((60, 1))
            del messages[:]
            got = (-Vi(x).sqdist(Vj(y))).exp() @ b
            want = np.exp(-((x[:, None] - y[None]) ** 2).sum(-1)) @ b
            np.testing.assert_allclose(got, want, rtol=1e-12)
            assert n < 2 or wire.is_numbers(messages[0])
    farsum.disconnect()


def test_arrays_of_any_kind(engine: RemoteEngine, messages: list[bytes]) -> None:
    arrays = points(20, 30)
    prepared = engine.prepare(gaussian_sum())
    for _ in range(3):
        want = prepared.run(arrays).values[0]
    turned = {0: np.asfortranarray(arrays[0]), 1: np.repeat(arrays[1], 2, axis=0)[::2], 2: arrays[2]}
    assert_array_equal(prepared.run(turned).values[0], want)
    assert wire.is_numbers(messages[-1])
    handles = {n: farsum.put(a) for n, a in arrays.items()}
    assert_array_equal(prepared.run(handles).values[0], want)
    assert not wire.is_numbers(messages[-1])
    arrays[2][...] = 0.0
    assert not prepared.run(arrays).values[0].any(), "an array that was changed in place is another one"


def test_named_arrays_that_are_others_in_each_call(engine: RemoteEngine, messages: list[bytes]) -> None:
    arrays = points(300, 40)  # of which x is named
    prepared, local = engine.prepare(gaussian_sum()), LocalEngine().prepare(gaussian_sum())
    for _ in range(3):
        prepared.run(arrays)
    assert wire.is_numbers(messages[-1])
    del messages[:]
    for n in range(40):
        arrays[0] = arrays[0] + np.float32(n)
        assert_array_equal(prepared.run(arrays).values[0], local.run(arrays).values[0])
    assert len(messages) < 90, "two for each: what is there is asked first"
    for _ in range(70):
        prepared.run(arrays)
    assert wire.is_numbers(messages[-1]), "once they stay, they are named in packets again"


def test_options_ask_in_full(engine: RemoteEngine, messages: list[bytes]) -> None:
    prepared, arrays = engine.prepare(gaussian_sum()), points(20, 31)
    shares: list[float] = []
    for _ in range(3):
        want = prepared.run(arrays, Options(progress=shares.append)).values[0]
    assert wire.is_numbers(messages[-1]) and shares[-1] == 1.0, "a bar is no reason to take longer"
    for options in (Options(deadline_s=9.0), Options(keep=True)):
        (found,) = prepared.run(arrays, options).values
        assert not wire.is_numbers(messages[-1])
        assert_array_equal(found if options.keep is False else engine.fetch(found), want)


def test_wrong_arrays_are_refused_here(engine: RemoteEngine, messages: list[bytes]) -> None:
    prepared, arrays = engine.prepare(gaussian_sum()), points(20, 32)
    for _ in range(3):
        prepared.run(arrays)
    del messages[:]
    for wrong in ({0: arrays[0][:, :2]}, {1: arrays[1].astype("float64")}, {2: arrays[2][:-1]}):
        with pytest.raises((ShapeError, DtypeError)):
            prepared.run(arrays | wrong)
    assert not messages


def test_threads_with_forms_of_their_own(engine: RemoteEngine) -> None:
    def ask(n: int) -> None:
        spec, arrays = gaussian_sum(), points(10 + n, 20, seed=n)
        want = LocalEngine().prepare(spec).run(arrays).values[0]
        for _ in range(60):
            assert_array_equal(engine.prepare(spec).run(arrays).values[0], want)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(6)))


def test_more_forms_than_a_server_has_prepared(engine: RemoteEngine) -> None:
    jobs = {n: points(10, 20 + n) for n in range(80)}
    prepared = engine.prepare(gaussian_sum())
    want = {n: prepared.run(arrays).values[0] for n, arrays in jobs.items()}
    for n in (*range(80), *range(80), 0, 0, 79, 79):
        assert_array_equal(prepared.run(jobs[n]).values[0], want[n])


def test_a_number_that_a_session_has_forgotten(engine: RemoteEngine, messages: list[bytes]) -> None:
    prepared, arrays = engine.prepare(gaussian_sum()), points(20, 33)
    for _ in range(3):
        want = prepared.run(arrays).values[0]
    stream = engine.session.stream()
    for form, known in list(stream.known.items()):
        stream.known[form] = known._replace(number=1 << 50)
    del messages[:]
    assert_array_equal(prepared.run(arrays).values[0], want)
    assert [wire.is_numbers(m) for m in messages] == [True, False], "it asks again in full"
    assert_array_equal(prepared.run(arrays).values[0], want)
    assert wire.is_numbers(messages[-1]) and len(messages) == 3, "and has a number again"


def test_a_worker_s_successor_gives_new_numbers(messages: list[bytes]) -> None:
    with running() as server, engine_on(server, away_s=30.0) as engine:
        prepared, arrays = engine.prepare(gaussian_sum()), points(20, 30)
        for _ in range(3):
            prepared.run(arrays)
        (before,) = engine.session.stream().known.values()
        psutil.Process(server.worker_pid()).kill()
        for _ in range(4):
            prepared.run(arrays)
        (after,) = engine.session.stream().known.values()
        assert after.number > before.number


def test_workers_and_servers_that_die_between_two_calls() -> None:
    spec, arrays, other = gaussian_sum(), points(20, 30), points(21, 30)
    with running() as first, engine_on(first, away_s=30.0) as engine:
        prepared = engine.prepare(spec)
        want = [LocalEngine().prepare(spec).run(each).values[0] for each in (arrays, other)]
        for _ in range(4):
            assert_array_equal(prepared.run(arrays).values[0], want[0])
        psutil.Process(first.worker_pid()).kill()
        for _ in range(4):
            assert_array_equal(prepared.run(arrays).values[0], want[0])
        port = first.address.rpartition(":")[2]
        first.process.kill()
        first.process.wait()
        with running("--port", port):
            # Another form may get the number that this one had.
            for _ in range(3):
                assert_array_equal(prepared.run(other).values[0], want[1])
            for _ in range(3):
                assert_array_equal(prepared.run(arrays).values[0], want[0])


# ── clients that say something else ───────────────────────────────────────────────────────────────


class Talk:
    """A session of a client that says what it likes."""

    def __init__(self, channel: Any) -> None:
        self._out: SimpleQueue[bytes | None] = SimpleQueue()
        self._answers = channel.stream_stream(wire.METHODS["Session"])(iter(self._out.get, None), timeout=30)
        self.ask(wire.encode_hello("test"))

    def ask(self, message: bytes) -> bytes:
        self._out.put(message)
        answer: bytes = next(self._answers)
        return answer

    def close(self) -> None:
        self._out.put(None)


def test_hostile_packets(server: Server) -> None:
    form = wire.encode_form(gaussian_sum(), {0: (5, 3), 1: (100, 3), 2: (100, 1)})
    y = np.ones((100, 3), np.float32).tobytes()
    contents = [
        wire.Content(b"", bytes(60)),
        wire.Content(blake3(y).digest(), y),
        wire.Content(b"", bytes(400)),
    ]
    with raw_channel(server) as channel:
        talk = Talk(channel)
        for n in range(1, 5):
            _, reply = wire.decode_server(talk.ask(wire.encode_ask(n, wire.Request(form, tuple(contents)))))
            assert isinstance(reply, wire.Outputs)
            number = reply.again
        assert number
        rooms = wire.Rooms(wire.decode_form(form))
        good = rooms.ask(number, 9, [bytes(60), blake3(y).digest(), bytes(400)])
        for wrong in (good[:-1], good + b"\0", good[:24]):
            id_, failure = wire.decode_server(talk.ask(wrong))
            assert id_ == 9 and isinstance(failure, wire.Failure) and isinstance(failure.error, WireError)
        unknown = rooms.ask(number + 1, 9, [bytes(60), bytes(32), bytes(400)])
        assert wire.decode_server(talk.ask(unknown)) == (9, wire.Need(()))
        missing = rooms.ask(number, 9, [bytes(60), bytes(32), bytes(400)])
        assert wire.decode_server(talk.ask(missing)) == (9, wire.Need((bytes(32),), ("",), (0,)))
        # What stands where the server writes a place is nothing to it.
        places = bytearray(good)
        places[rooms.places[0] : rooms.places[0] + 8] = b"\xff" * 8
        for sent in (good, bytes(places)):
            answer = talk.ask(sent)
            assert wire.decode_head(answer) == (9, number)
            assert rooms.values(answer) == (bytes(20),)
        talk.close()
    with raw_channel(server) as channel:
        assert wire.decode_server(Talk(channel).ask(good)) == (9, wire.Need(())), (
            "numbers belong to a session"
        )


# ── where the threads run ─────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs of Linux"
)
def test_the_threads_of_small_calls_stay_together_while_they_come() -> None:
    spec, arrays = gaussian_sum(), points(20, 30)
    with running() as server, engine_on(server) as engine:
        worker, daemon = psutil.Process(server.worker_pid()), psutil.Process(server.process.pid)
        everywhere = worker.cpu_affinity()
        prepared = engine.prepare(spec)

        def together() -> bool:
            for _ in range(200):
                prepared.run(arrays)
            return len(worker.cpu_affinity()) == 1 and worker.cpu_affinity() == daemon.cpu_affinity()

        def apart() -> bool:
            return worker.cpu_affinity() == everywhere == daemon.cpu_affinity()

        until(together, "together")
        engine.prepare(spec).run(points(600, 500))
        assert apart(), "before other work"
        until(together, "together")
        until(apart, "apart", 5)  # when no more come
        until(together, "together")
        worker.kill()
        prepared.run(points(21, 30))
        worker = psutil.Process(server.worker_pid())
        assert apart(), "a successor inherits nothing"
        threads = [t.id for p in (worker, daemon) for t in p.threads()]
        assert all(os.sched_getaffinity(t) == set(everywhere) for t in threads)


def test_the_last_word_of_a_closed_session(server: Server) -> None:
    with engine_on(server) as engine:
        prepared, arrays = engine.prepare(gaussian_sum()), points(20, 30)
        for _ in range(3):
            prepared.run(arrays)
    with pytest.raises(ServerUnreachable, match="closed"):
        prepared.run(arrays)
