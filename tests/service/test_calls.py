"""What a user sees through a server: the answers of the engine in process, from any number of threads."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from farsum import session as session_module
from farsum.remote import RemoteEngine
from farsum_kernels.errors import Cancelled, DeadlineExceeded, DtypeError, ServerUnreachable, ShapeError
from farsum_kernels.job import RANGES, Options, Spec
from farsum_proto import wire
from farsum_server.engine import LocalEngine
from tests.service.server import (
    Server,
    engine_on,
    expected,
    gaussian_sum,
    medium_job,
    points,
    running,
    slow_job,
)


def same(engine: RemoteEngine, spec: Spec, arrays: dict[int, Any]) -> None:
    """Bit for bit what the engine in process gives."""
    remote, local = engine.prepare(spec).run(arrays), LocalEngine().prepare(spec).run(arrays)
    assert len(remote.values) == len(local.values)
    for got, want in zip(remote.values, local.values, strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        assert got.flags.writeable
        np.testing.assert_array_equal(got, want)
    assert remote.plan.keys() == local.plan.keys()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("m, n", [(1, 1), (7, 300), (1000, 1000), (30_000, 20), (0, 5), (5, 0), (0, 0)])
def test_same_as_in_process(engine: RemoteEngine, dtype: str, m: int, n: int) -> None:
    same(engine, gaussian_sum(dtype), points(m, n, dtype))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_dtypes(engine: RemoteEngine, dtype: str) -> None:
    held = "uint16" if dtype == "bfloat16" else dtype
    small = {k: (a * 0x3F00 if held == "uint16" else a).astype(held) for k, a in points(40_000, 50).items()}
    same(engine, gaussian_sum(dtype), small)


def test_block_sparse_reductions(engine: RemoteEngine) -> None:
    spec, arrays = gaussian_sum(), points(700, 900)
    blocks = [[[0, 300], [300, 700]], [1, 2], [[0, 500], [200, 900]], [[0, 900]], [1], [[0, 700]]]
    ranges = {place: np.array(b, np.int64) for place, b in zip(RANGES, blocks, strict=True)}
    same(engine, spec, arrays | ranges)
    whole = engine.prepare(spec).run(arrays).values[0]
    assert not np.array_equal(engine.prepare(spec).run(arrays | ranges).values[0], whole)
    with pytest.raises(ShapeError, match="redranges_j holds an interval"):
        engine.prepare(spec).run(arrays | ranges | {RANGES[2]: np.array([[0, 901], [0, 1]])})


def test_several_results(engine: RemoteEngine) -> None:
    two = points(9_000, 400)
    del two[2]
    same(engine, gaussian_sum(reduction="KMin_ArgKMin", k=5), two)


def test_batches_and_strides(engine: RemoteEngine) -> None:
    rng = np.random.default_rng(1)
    arrays = {
        0: rng.random((4, 3, 60)).transpose(0, 2, 1),
        1: rng.random((1, 50, 6))[..., ::2],
        2: rng.random((50, 1)),
    }
    same(engine, gaussian_sum("float64"), arrays)


def test_an_array_changed_in_place_gives_the_new_answer(engine: RemoteEngine) -> None:
    arrays, prepared = points(1000, 1000), engine.prepare(gaussian_sum())
    alias = arrays[2][::2]
    for change in (1.0, 2.0, -3.0):
        alias[...] = change
        got = prepared.run(arrays).values[0]
        np.testing.assert_allclose(got, expected(arrays), rtol=2e-4, atol=2e-3)


def test_a_warm_call_is_one_small_message(
    engine: RemoteEngine, messages: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays, prepared = points(1000, 1000, seed=7), engine.prepare(gaussian_sum())
    prepared.run(arrays)
    del messages[:]
    monkeypatch.setattr(
        session_module.Session, "upload", lambda *_: pytest.fail("a warm call uploads nothing")
    )
    prepared.run(arrays)
    assert len(messages) == 1
    assert len(messages[0]) < 1024


def test_unary(engine: RemoteEngine) -> None:
    arrays, spec = points(8, 9), gaussian_sum()
    form = wire.encode_form(spec, {n: a.shape for n, a in arrays.items()})
    request = wire.Request(form, tuple(wire.Content(b"", a.tobytes()) for a in arrays.values()))
    reply = wire.decode_reply(engine.session.call("Reduce", wire.encode_request(request)))
    assert isinstance(reply, wire.Outputs)
    want = engine.prepare(spec).run(arrays).values[0]
    assert reply.values[0].inline == want.tobytes()


def test_many_threads_share_one_stream(engine: RemoteEngine) -> None:
    spec = gaussian_sum()
    jobs = [points(50 + 37 * n, 100, seed=n) for n in range(8)]
    wanted = [LocalEngine().prepare(spec).run(arrays).values[0] for arrays in jobs]

    def ask(n: int) -> None:
        prepared = engine.prepare(spec)
        for _ in range(15):
            np.testing.assert_array_equal(prepared.run(jobs[n]).values[0], wanted[n])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


def test_short_jobs_overtake_long_ones(engine: RemoteEngine) -> None:
    spec, arrays = slow_job()
    long = engine.prepare(spec).submit(arrays)
    short = engine.prepare(gaussian_sum()).run(points(100, 100), Options(deadline_s=30))
    assert short.values[0].shape == (100, 1)
    assert not long.done()
    assert long.cancel()
    with pytest.raises(Cancelled):
        long.result(30)


def test_progress_rises_in_the_waiting_thread(engine: RemoteEngine) -> None:
    spec, arrays = medium_job()
    seen: list[tuple[float, int]] = []
    result = engine.prepare(spec).run(
        arrays, Options(progress=lambda s: seen.append((s, threading.get_ident())))
    )
    shares = [share for share, _ in seen]
    assert shares == sorted(shares) and len(shares) > 2 and shares[-1] == 1.0
    assert {ident for _, ident in seen} == {threading.get_ident()}
    rows = np.arange(0, 40_000, 4_000)
    want = expected({0: arrays[0][rows], 1: arrays[1], 2: arrays[2]})
    np.testing.assert_allclose(result.values[0][rows], want, rtol=1e-4)


def test_deadline(engine: RemoteEngine) -> None:
    spec, arrays = slow_job()
    prepared = engine.prepare(spec)
    prepared.submit(arrays).cancel()  # so that the upload does not count
    with pytest.raises(DeadlineExceeded, match=r"within 0\.5 s|deadline"):
        prepared.run(arrays, Options(deadline_s=0.5))
    assert engine.prepare(gaussian_sum()).run(points(5, 5)).values[0].shape == (5, 1)


def test_close_cancels_what_is_under_way(server: Server) -> None:
    with engine_on(server) as engine:
        spec, arrays = slow_job()
        future = engine.prepare(spec).submit(arrays)
        while server.metric("farsum_inflight_requests") == 0:
            pass
    with pytest.raises(Cancelled):
        future.result(30)
    while server.metric("farsum_inflight_requests"):
        pass
    with pytest.raises(ServerUnreachable, match="closed"):
        engine.prepare(gaussian_sum()).run(points(2, 2))


def test_wrong_arrays_are_refused_before_anything_is_sent(engine: RemoteEngine) -> None:
    prepared, arrays = engine.prepare(gaussian_sum()), points(5, 6)
    with pytest.raises(ShapeError, match="argument 1"):
        prepared.run(arrays | {1: np.zeros((6, 4), "float32")})
    with pytest.raises(DtypeError, match="float64"):
        prepared.run(arrays | {1: np.zeros((6, 3))})
    with pytest.raises(ShapeError, match="missing"):
        prepared.run({0: arrays[0]})


def test_ping(engine: RemoteEngine) -> None:
    answer = engine.ping()
    assert answer["ready"] and answer["devices"][0]["kind"] == "cpu" and answer["round_trip_s"] > 0


def test_a_server_that_restarts_is_found_again() -> None:
    spec, arrays = gaussian_sum(), points(3000, 3000)
    with running() as first, engine_on(first) as engine:
        prepared = engine.prepare(spec)
        want = prepared.run(arrays).values[0]
        first.process.kill()
        first.process.wait()
        port = first.address.rpartition(":")[2]
        with running("--port", port):
            np.testing.assert_array_equal(prepared.run(arrays).values[0], want)
        with pytest.raises(ServerUnreachable, match="farsum serve"):
            prepared.run(arrays)


def test_unix_socket(tmp_path: Any) -> None:
    with running("--host", f"unix:{tmp_path}/farsum.sock") as server, engine_on(server) as engine:
        assert engine.prepare(gaussian_sum()).run(points(5, 5)).values[0].shape == (5, 1)


FORK = """
import os, sys
from farsum.remote import RemoteEngine
from tests.service.server import gaussian_sum, points
engine = RemoteEngine(sys.argv[1])
prepared = engine.prepare(gaussian_sum())
want = prepared.run(points(2000, 50)).values[0].tobytes()
pid = os.fork()
same = prepared.run(points(2000, 50)).values[0].tobytes() == want
if pid == 0:
    os._exit(0 if same else 1)
assert same and os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
print("both")
"""


def test_a_forked_child_opens_its_own_connection(server: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, server.target],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "both\n", done.stderr


def test_an_outlook_computes_nothing_and_says_what_is_missing(engine: RemoteEngine) -> None:
    spec, arrays = gaussian_sum(), points(3_000, 4_000, seed=77)
    prepared = engine.prepare(spec)
    before, local = prepared.outlook(arrays), LocalEngine().prepare(spec).outlook(arrays)
    assert before.where == engine.target
    assert before.plan.keys() == local.plan.keys() and local.bytes_to_send == 0
    assert before.plan["pairs"] == "12000000" and float(before.plan["flops"]) > 12e6
    assert before.bytes_to_send == sum(a.nbytes for a in arrays.values())
    prepared.run(arrays)
    assert prepared.outlook(arrays).bytes_to_send == 0
    with pytest.raises(ShapeError, match="needs shape"):
        prepared.outlook(arrays | {0: arrays[0][:, :2]})
