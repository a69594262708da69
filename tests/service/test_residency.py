"""Handles on a real server: what stays there, what is sent again without a word, and what says that it is gone."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import farsum
from farsum.handle import Handle
from farsum.numpy import Vi, Vj
from farsum.remote import RemoteEngine
from farsum_kernels.errors import (
    ArrayMissing,
    DigestMismatch,
    HandleGone,
    QuotaExceeded,
    ServerUnreachable,
    StoreFull,
    WireError,
)
from farsum_kernels.job import ArrayRef
from farsum_proto import wire
from tests.service.clouds import B, X, Y, kernel
from tests.service.relay import Relay
from tests.service.server import Server, gaussian_sum, running
from tests.service.test_faults import until


@pytest.fixture
def connected(server: Server) -> Iterator[RemoteEngine]:
    with farsum.connect(server.target, away_s=1.0) as engine:
        yield engine
    farsum.disconnect()


@pytest.fixture
def own(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of the test's own, connected to, with the flags that it is parametrised with."""
    with running(*getattr(request, "param", ())) as server, farsum.connect(server.target, away_s=20.0):
        yield server
    farsum.disconnect()


def used(server: Server) -> float:
    return server.metric("farsum_store_used_bytes")


def handles(server: Server) -> float:
    return server.metric("farsum_store_handles")


def port_of(server: Server) -> int:
    return int(server.address.rpartition(":")[2])


WANT = kernel(X, Y) @ B


def test_the_same_as_in_process(connected: RemoteEngine) -> None:
    x, y, b = map(farsum.put, (X, Y, B))
    np.testing.assert_array_equal(kernel(x, y) @ b, WANT)
    kept = kernel(x, y).matvec(b, keep=True)
    assert isinstance(kept, Handle) and "only copy" in repr(kept) and connected.target in repr(kept)
    back = kernel(x, y).T.matvec(kept, keep=True)
    np.testing.assert_array_equal(farsum.get(kept), WANT)
    np.testing.assert_array_equal(farsum.get(back), kernel(X, Y).T @ WANT)
    assert farsum.get(back).flags.writeable
    values, indices = Vi(x).sqdist(Vj(y)).Kmin_argKmin(3, axis=1, keep=True)
    for found, want in zip((values, indices), Vi(X).sqdist(Vj(Y)).Kmin_argKmin(3, axis=1), strict=True):
        assert found.dtype == want.dtype
        np.testing.assert_array_equal(farsum.get(found), want)
    z = (WANT[:7] + 1j).astype("complex64")
    np.testing.assert_array_equal(farsum.get(farsum.put(z)), z)
    tiny = kernel(x, y).T[:2, :].matvec(WANT, keep=True)
    np.testing.assert_array_equal(kernel(Y[:2], Y[:2]) @ tiny, kernel(Y[:2], Y[:2]) @ farsum.get(tiny))
    np.testing.assert_array_equal(
        kernel(x, y).sum(axis=1, mask="causal", keep=True), kernel(X, Y).sum(axis=1, mask="causal")
    )


def test_each_array_travels_once(server: Server) -> None:
    with Relay(port_of(server)) as relay, farsum.connect(relay.target):
        rng = np.random.default_rng(3)
        arrays = [rng.random(a.shape).astype("float32") for a in (X, Y, B)]
        x, y, b = map(farsum.put, arrays)
        assert relay.sent > sum(a.nbytes for a in arrays)
        kernel(x, y) @ b
        sent, received = relay.sent, relay.received
        for _ in range(10):
            b = kernel(y, y).matvec(b, keep=True)
        assert relay.sent - sent < 10 * 1000 and relay.received - received < 10 * 1000
    farsum.disconnect()


def test_the_example_moves_each_array_once(own: Server) -> None:
    root = Path(__file__).resolve().parents[2]
    script = [sys.executable, str(root / "examples" / "residency.py")]
    done = subprocess.run(
        script, env=os.environ | {"FARSUM_TARGET": own.target}, capture_output=True, text=True
    )
    assert done.returncode == 0 and f"on {own.target}, and here" in done.stdout, done.stderr
    with urllib.request.urlopen(f"{own.http}/metrics") as page:
        counted = re.findall(r"^farsum_ingest_bytes_total{.*} (.+)$", page.read().decode(), re.MULTILINE)
    assert (
        1000 * 4 * 8 <= sum(map(float, counted)) < 1000 * 4 * 8 + 1024
    )  # the points and the vector, with headers
    assert used(own) == 0 and handles(own) == 0


def test_memory_is_counted_and_freed(connected: RemoteEngine, server: Server) -> None:
    before, there = used(server), handles(server)
    array = np.random.default_rng(4).random((100_000, 3))
    first, second = farsum.put(array), farsum.put(array.copy())
    assert used(server) - before < array.nbytes + 4096 and handles(server) == there + 2
    farsum.drop(first)
    assert used(server) > before, "another handle shows the same array"
    np.testing.assert_array_equal(farsum.get(second), array)
    farsum.drop(second)
    assert used(server) == before and handles(server) == there
    kept = kernel(X, Y).matvec(B, keep=True)
    view = kept.reshape(-1)
    held = used(server)
    del kept
    gc.collect()
    kernel(X[:5], Y[:5]).sum(axis=1)
    assert used(server) == held, "a view holds it too"
    del view
    gc.collect()
    kernel(X[:5], Y[:5]).sum(axis=1)  # the message that lets go travels with the next one
    until(lambda: used(server) < held, "the result is still held")


def test_equal_results_are_held_each_for_itself(connected: RemoteEngine) -> None:
    first, second = (kernel(X, Y).matvec(B, keep=True) for _ in range(2))
    farsum.drop(first)
    np.testing.assert_array_equal(farsum.get(second), WANT)
    one, other = Vi(X).sqdist(Vj(X)).min_argmin(axis=1, keep=True)
    farsum.drop(one)
    assert not farsum.get(other)[0, 0]


def test_a_dropped_result_is_gone(connected: RemoteEngine) -> None:
    kept = kernel(X, Y).matvec(B, keep=True)
    stray = Handle(type(kept.content)(None, kept.nbytes, kept.content.digest), kept.dtype, kept.shape)
    stray.content.engine = connected
    farsum.drop(kept)
    with pytest.raises(HandleGone, match="was dropped"):
        kernel(X, Y).T @ kept
    for use in (lambda: kernel(X, Y).T @ stray, lambda: farsum.get(stray)):
        with pytest.raises(HandleGone, match=r"it was dropped.*compute it again"):
            use()


def test_a_server_that_restarts_in_the_middle_of_a_loop_is_not_noticed() -> None:
    servers = [Server()]
    try:
        with farsum.connect(servers[0].target, away_s=60.0) as engine, ThreadPoolExecutor(1) as pool:
            x, y, b = map(farsum.put, (X, Y, B))
            kept = kernel(x, y).matvec(b, keep=True)
            for step in range(6):
                if step == 3:
                    servers[0].process.kill()
                    servers[0].process.wait()
                    pool.submit(lambda: servers.append(Server("--port", str(port_of(servers[0])))))
                np.testing.assert_array_equal(kernel(x, y) @ b, WANT)
            assert engine.target in repr(x)
            with pytest.raises(HandleGone, match="restarted since"):
                kernel(x, y).T @ kept
            with pytest.raises(HandleGone, match="only copy"):
                farsum.get(kept)
            again = farsum.put(X)
            np.testing.assert_array_equal(kernel(again, y).matvec(b, keep=True), WANT)
    finally:
        farsum.disconnect()
        for server in servers:
            server.stop()


def test_handles_of_another_server(server: Server, own: Server) -> None:
    x, kept = farsum.put(X), kernel(X, Y).matvec(B, keep=True)
    with farsum.connect(server.target):
        np.testing.assert_array_equal(
            kernel(x, Y) @ B, WANT
        )  # its bytes are here, so it goes where it is needed
        with pytest.raises(HandleGone, match=rf"kept on {own.target}.*goes elsewhere"):
            kernel(X, Y).T @ kept
        with pytest.raises(ServerUnreachable, match="was closed"):
            farsum.get(kept)
    farsum.disconnect()
    with pytest.raises(HandleGone, match="goes elsewhere"):
        kernel(X, Y).T @ kept
    np.testing.assert_array_equal(kernel(x, Y) @ B, WANT)
    with farsum.connect(own.target):
        np.testing.assert_array_equal(farsum.get(kept), WANT)  # the same server, over another connection
        np.testing.assert_array_equal(kernel(X, Y).T @ kept, kernel(X, Y).T @ WANT)
    farsum.disconnect()


@pytest.mark.parametrize("own", [("--handle-ttl-s", "0.3")], indirect=True)
def test_handles_that_nobody_uses_expire(own: Server) -> None:
    x, kept = farsum.put(X), kernel(X, Y).matvec(B, keep=True)
    until(lambda: handles(own) == 0, "the handles are still held")
    with pytest.raises(HandleGone, match=r"it expired: nobody had used it for 0\.3 s"):
        kernel(X, Y).T @ kept
    np.testing.assert_array_equal(kernel(x, Y) @ B, WANT)


@pytest.mark.parametrize("own", [("--store-bytes", str(8 << 20))], indirect=True)
def test_kept_results_stay_until_they_are_let_go(own: Server) -> None:
    kept = kernel(X, Y).matvec(B, keep=True)
    x = farsum.put(X)
    for seed in range(5):  # 4.8 MB each
        many = np.random.default_rng(seed).random((400_000, 3)).astype("float32")
        assert Vi(many).sqdist(Vj(Y[:2])).min(axis=1).shape == (400_000, 1)
    np.testing.assert_array_equal(farsum.get(kept), WANT)
    np.testing.assert_array_equal(kernel(x, Y) @ B, WANT)  # evicted meanwhile, and sent again
    large = Vi(many).sqdist(Vj(Y[:2]))
    first = large.Kmin(1, axis=1, keep=True)
    with pytest.raises(StoreFull, match=r"2 kept results of yours take 1616000: farsum\.drop"):
        large.Kmin(2, axis=1, keep=True)
    farsum.drop(first, kept)
    assert large.min(axis=1, keep=True).shape == (400_000, 1)


def test_what_a_client_leaves_behind_makes_room() -> None:
    script = (
        "import sys, farsum\nfrom tests.service.clouds import *\nfarsum.connect(sys.argv[1])\n"
        "kept = [kernel(X + n, Y).matvec(B, keep=True) for n in range(3)]\n"
        "print(kept[0].content.digest.hex(), flush=True)\ninput()\n"
    )
    with running("--store-bytes", str(1 << 20)) as server:
        client = subprocess.Popen(
            [sys.executable, "-c", script, server.target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert client.stdout and client.stdin
        digest = bytes.fromhex(client.stdout.readline())
        assert handles(server) == 3
        client.kill()
        client.wait()
        client.stdout.close()
        client.stdin.close()
        killed = time.monotonic()
        with farsum.connect(server.target) as engine:
            array = np.zeros(1_000_000, "uint8").view("float32")
            while True:
                try:
                    farsum.put(array)
                    break
                except StoreFull:
                    assert time.monotonic() < killed + 1.5
            with pytest.raises(HandleGone, match="while its owner was not connected"):
                engine.session.download(ArrayRef(digest, "float32", (4000, 1)), memoryview(bytearray(20_000)))
        farsum.disconnect()


@pytest.mark.parametrize("own", [("--tenant-bytes", str(1 << 20))], indirect=True)
def test_a_tenant_has_its_share(own: Server) -> None:
    with pytest.raises(QuotaExceeded, match="--tenant-bytes"):
        farsum.put(np.zeros(1 << 18))
    big = [farsum.put(np.full(100_000, n, "float32")) for n in range(4)]
    assert used(own) <= 1 << 20, "older ones make room, and are sent again when needed"
    for n, handle in enumerate(big):
        assert Vi(handle.reshape(-1, 1)).sum(axis=0)[0, 0] == 100_000 * n
    results = []
    with pytest.raises(QuotaExceeded, match=r"farsum\.drop"):
        for n in range(20):
            results.append(
                Vi(np.full((100_000, 1), n, "float32")).sqdist(Vj(Y[:1, :1])).min(axis=1, keep=True)
            )
    assert results
    farsum.drop(*results)
    assert kernel(X, Y).matvec(B, keep=True).shape == (4000, 1)


def test_pickles_hold_the_numbers(connected: RemoteEngine) -> None:
    import pickle

    kept = kernel(X, Y).matvec(B, keep=True)
    data = pickle.dumps(kept)
    farsum.drop(kept)
    np.testing.assert_array_equal(farsum.get(pickle.loads(data)), WANT)


def test_what_a_forked_child_forgets_its_parent_still_has(connected: RemoteEngine) -> None:
    kept = kernel(X, Y).matvec(B, keep=True)
    script = (
        "import gc, os, sys, warnings, farsum\nwarnings.simplefilter('ignore')\n"
        "from tests.service.clouds import *\nfarsum.connect(sys.argv[1])\nwant = kernel(X, Y) @ B\n"
        "kept = kernel(X, Y).matvec(B, keep=True)\npid = os.fork()\n"
        "if pid == 0:\n    del kept\n    gc.collect()\n    kernel(X, Y) @ B\n    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\nfarsum.drop(kernel(X, Y).matvec(B, keep=True))\n"
        "assert (farsum.get(kept) == want).all()\nprint('still there')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, connected.target],
        env=os.environ | {"GRPC_ENABLE_FORK_SUPPORT": "1"},  # gRPC's own care for forks does not meet ours
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "still there\n", done.stderr
    np.testing.assert_array_equal(farsum.get(kept), WANT)


# ── messages that no client of ours sends ─────────────────────────────────────────────────────────


def test_an_array_of_another_size_than_its_digest(connected: RemoteEngine) -> None:
    kept = kernel(X, Y).matvec(B, keep=True)
    with pytest.raises(WireError, match="16000 bytes"):
        connected.session.download(
            ArrayRef(kept.content.digest, "float64", kept.shape), memoryview(bytearray(40_000))
        )
    form = wire.encode_form(gaussian_sum(), {0: (4, 3), 1: (5, 3), 2: (5, 1)})
    digest = kept.content.digest
    request = wire.Request(
        form, (wire.Content(digest), wire.Content(b"", bytes(60)), wire.Content(b"", bytes(20)))
    )
    with pytest.raises(WireError, match="16000 bytes"):
        connected.session.ask(request)


@pytest.mark.parametrize("digest, token", [(b"short", bytes(16)), (bytes(32), b"short"), (bytes(32), b"")])
def test_claims_that_are_none(connected: RemoteEngine, digest: bytes, token: bytes) -> None:
    with pytest.raises(WireError):
        connected.session.claim(digest, token)
    assert connected.session.claim(bytes(32), connected.session.token()).digests == (bytes(32),)


def test_arrays_that_nobody_holds_here(connected: RemoteEngine) -> None:
    connected.session.let_go(bytes(32), bytes(16))
    connected.session.flush()
    with pytest.raises(HandleGone, match="no such array"):
        connected.session.download(ArrayRef(os.urandom(32), "float32", (3,)), memoryview(bytearray(4096)))
    assert issubclass(HandleGone, ArrayMissing)


def test_bytes_that_are_not_their_digest_are_not_held(connected: RemoteEngine, server: Server) -> None:
    from farsum.upload import Item, upload_array

    before = used(server)
    with pytest.raises(DigestMismatch):
        upload_array(connected.session, Item(X, "float32", bytes(32), connected.session.token()))
    assert used(server) == before
