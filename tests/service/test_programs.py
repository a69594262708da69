"""Programs on a real server: the answers of the engine in process, one round trip, and every way to be cut off."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from farsum.remote import RemoteEngine
from farsum_kernels.errors import (
    Cancelled,
    DeadlineExceeded,
    FormulaError,
    ServerUnreachable,
    SolverDidNotConverge,
    StoreFull,
)
from farsum_kernels.formula.expr import I, constant, node, variable
from farsum_kernels.job import Options
from farsum_kernels.program import Carried, Loop, Program, Value
from farsum_proto import wire
from farsum_proto.v1 import farsum_pb2 as pb
from farsum_server.engine import LocalEngine
from tests.programs.recipes import doubling, endless, power_arrays, power_iteration, step
from tests.service.server import Server, engine_on, gaussian_sum, points, running
from tests.service.test_faults import until


@pytest.mark.parametrize("n, below", [(50, None), (20_000, None), (400, 1e-6)])
def test_same_as_in_process(engine: RemoteEngine, n: int, below: float | None) -> None:
    program, arrays = power_iteration(n, 3 if n > 1000 else 30, "float32", below), power_arrays(n, "float32")
    remote, local = (e.prepare(program).run(arrays) for e in (engine, LocalEngine()))
    for got, want in zip(remote.values, local.values, strict=True):
        assert got.dtype == want.dtype and got.flags.writeable
        assert_array_equal(got, want)
    assert remote.plan == local.plan


def test_a_hundred_rounds_are_one_message(engine: RemoteEngine, messages: list[bytes]) -> None:
    program, arrays = power_iteration(500, 100), power_arrays(500)
    prepared = engine.prepare(program)
    prepared.run(arrays)
    messages.clear()
    result = prepared.run(arrays)
    assert result.plan["rounds"] == "100"
    assert len(messages) == 1 and len(messages[0]) < 2048


def test_short_jobs_overtake_a_long_program(engine: RemoteEngine) -> None:
    program, arrays = endless()
    long = engine.prepare(program).submit(arrays)
    for _ in range(5):
        short = engine.prepare(gaussian_sum()).run(points(100, 100), Options(deadline_s=20))
        assert short.values[0].shape == (100, 1)
    assert not long.done()
    assert long.cancel()
    with pytest.raises(Cancelled):
        long.result(30)


def test_deadline_in_the_middle_of_a_loop(engine: RemoteEngine, server: Server) -> None:
    program, arrays = endless()
    with pytest.raises(DeadlineExceeded, match=r"within 0\.5 s"):
        engine.prepare(program).run(arrays, Options(deadline_s=0.5))
    until(lambda: server.metric("farsum_inflight_requests") == 0, "the program still runs")


def test_progress_comes_in_the_middle_of_a_loop(engine: RemoteEngine) -> None:
    seen: list[float] = []
    engine.prepare(power_iteration(3000, 200)).run(power_arrays(3000), Options(progress=seen.append))
    assert len(seen) > 3 and seen == sorted(seen) and seen[-1] == 1.0


CLIENT = """
import sys
from farsum.remote import RemoteEngine
from tests.programs.recipes import endless
program, arrays = endless()
RemoteEngine(sys.argv[1]).prepare(program).run(arrays)
"""


def test_client_killed_in_the_middle_of_a_loop(engine: RemoteEngine, server: Server) -> None:
    """What it held is free within a second; only the compiler, which cannot be interrupted, may take longer."""
    program, arrays = endless()
    compiled = threading.Event()
    first = engine.prepare(program).submit(arrays, Options(progress=lambda share: compiled.set()))
    assert compiled.wait(60) and first.cancel()
    until(lambda: server.metric("farsum_inflight_requests") == 0, "the first program still runs")
    client = subprocess.Popen([sys.executable, "-c", CLIENT, server.target])
    until(lambda: server.metric("farsum_inflight_requests") == 1, "the program never came")
    time.sleep(0.3)
    client.kill()
    client.wait()
    until(lambda: server.metric("farsum_inflight_requests") == 0, "its program still runs", seconds=1)


def test_server_killed_in_the_middle_of_a_loop() -> None:
    """The client asks the server that takes its place, which begins anew and gives the same answer."""
    program, arrays = power_iteration(4000, 60, "float32"), power_arrays(4000, "float32")
    with running() as first, engine_on(first, away_s=60.0) as engine:
        prepared = engine.prepare(program)
        want = prepared.run(arrays).values
        seen = threading.Event()
        future = prepared.submit(arrays, Options(progress=lambda share: seen.set()))
        assert seen.wait(30)
        first.process.kill()
        first.process.wait()
        with running("--port", first.address.rpartition(":")[2]):
            for got, wanted in zip(future.result(60).values, want, strict=True):
                assert_array_equal(got, wanted)


def test_server_killed_in_the_middle_of_a_loop_for_good() -> None:
    program, arrays = endless()
    with running() as first, engine_on(first) as engine:
        seen = threading.Event()
        future = engine.prepare(program).submit(arrays, Options(progress=lambda share: seen.set()))
        assert seen.wait(30)
        first.process.kill()
        with pytest.raises(ServerUnreachable, match="farsum serve"):
            future.result(30)


def test_worker_killed_in_the_middle_of_a_loop() -> None:
    import os
    import signal

    program, arrays = power_iteration(3000, 100), power_arrays(3000)
    with running() as server, engine_on(server) as engine:
        seen = threading.Event()
        future = engine.prepare(program).submit(arrays, Options(progress=lambda share: seen.set()))
        assert seen.wait(30)
        os.kill(server.worker_pid(), signal.SIGKILL)
        assert future.result(60).values[0].shape == (3000, 1)


def not_a_number(n: int) -> Program:
    x = variable(0, 1, I)
    body = (
        step("less", node("Subtract", x, constant(1)), 1, "float64", v0="x"),
        step("root", node("Sqrt", x), 0, "float64", v0="x"),
    )
    loop = Loop((Carried("x", "start", "less"),), body, 1000, "root", 0.0)
    return Program((Value("start", "float64", (n, 1)),), (loop,), ("x",))


@pytest.mark.parametrize("n", [1, 50_000])
def test_a_measure_that_is_not_a_number(engine: RemoteEngine, n: int) -> None:
    with pytest.raises(SolverDidNotConverge, match="NaN in round 4 of 1000") as raised:
        engine.prepare(not_a_number(n)).run({0: np.full((n, 1), 2.0)})
    assert_array_equal(raised.value.iterate, np.full((n, 1), -2.0))
    assert len(raised.value.residuals) == 4 and np.isnan(raised.value.residuals[-1])


# ── programs that no client of ours would send ────────────────────────────────────────────────────


def ask(engine: RemoteEngine, message: pb.Program, arrays: int = 1) -> None:
    form = pb.Form(program=message).SerializeToString()
    request = wire.Request(form, tuple(wire.Content(b"", bytes(32)) for _ in range(arrays)))
    engine.session.call("Reduce", wire.encode_request(request))


def message_of(program: Program) -> pb.Program:
    return pb.Form.FromString(wire.encode_form(program, {})).program


def test_what_a_server_refuses_whatever_the_client_checked(engine: RemoteEngine) -> None:
    too_long = message_of(doubling(1))
    for n in range(300):
        copy = too_long.body[0].loop.body.add()
        copy.CopyFrom(too_long.body[0].loop.body[0])
        copy.outputs[0] = f"more{n}"
    unknown = message_of(doubling(3))
    unknown.body[0].loop.body[0].arguments[0].name = "elsewhere"
    shape = message_of(doubling(3))
    shape.inputs[0].shape[1] = 2
    forever = message_of(doubling(3))
    forever.body[0].loop.times = 4_000_000_000
    nothing = message_of(doubling(3))
    nothing.body.add()
    for message, words in (
        (too_long, "at most 256 steps"),
        (unknown, "names 'elsewhere'"),
        (shape, "Var"),
        (forever, "runs 1 to 1000000 times"),
        (nothing, "neither a step nor a loop"),
    ):
        with pytest.raises((FormulaError, ValueError), match=words):
            ask(engine, message)
    ask(engine, message_of(doubling(3)))


def test_values_that_no_server_could_hold(engine: RemoteEngine) -> None:
    """Sixteen numbers come, and 64 GB would be kept."""
    x = variable(0, 1, I)
    wide = node("SumT", x, params=(1 << 16,))
    steps = [step(f"wide{n}", wide, 1, "float64", v0="x") for n in range(30)]
    program = Program((Value("x", "float64", (4096, 1)),), tuple(steps), ("wide0",))
    with pytest.raises(StoreFull, match="bytes between its steps; this server allows"):
        engine.prepare(program).run({0: np.ones((4096, 1))})
