"""What the wire costs, on loopback, against a real server in a process of its own, next to bare gRPC in the same run.

small    a prepared reduction at M = N = 64, D = 3, next to a bare ping-pong, in turn: a sync client, a grpc.aio echo, a
         kept stream. The pauses of the paused ping-pong are as long as the small call is longer: what idling costs
call     a reduction at M = N = 1,000, D = 3, from plain arrays that are hashed on every call: over gRPC with
         the arrays resident, and in process; the difference is what the server costs
bytes    what such a call sends and receives, counted by a TCP relay in between
up       256 MB into the store of a server, its digest checked there, next to the same number of bytes on a bare stream
down     the same array back, likewise: into memory of the client that is in use, and into a new array, made as
         those of results are: where the last one was, as it was dropped
memory   the same up and down through memory that both processes map, in the same rounds; and 128 KiB both ways

    python -m benchmarks.wire [--rounds 15] [--calls 200] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import farsum
from benchmarks.echo import Echo, bare_server
from benchmarks.measure import Others, daemon, machine_line, median, save, table, warn_if_disturbed
from farsum import spare
from farsum.call import bytes_of, digest_of
from farsum.numpy import Vi, Vj
from farsum.remote import RemoteEngine
from farsum.session import Session
from farsum.upload import Item, upload_array
from farsum_kernels.job import ArrayRef
from farsum_proto import wire

SMALL_BAR, CALL_BAR_US, SENT_BAR, STREAM_BAR = 1.5, 400.0, 2048, 0.85
WARM_UP_S = 3.0
# What the server may take to be done with a download: before that, an array that is dropped stays for a while, and the
# next one goes into cold memory.
DONE_S = 0.02
MIB, LITTLE_BYTES = 1 << 20, 128 << 10


def main() -> None:
    parser = argparse.ArgumentParser(description="What a call over gRPC costs on loopback.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=200, help="calls per round")
    parser.add_argument("--quick", action="store_true", help="small and few: only that it runs")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/wire.json")
    options = parser.parse_args()
    rounds, calls = (7, 20) if options.quick else (max(7, options.rounds), options.calls)
    size = (16 if options.quick else 256) * MIB

    os.environ.pop("FARSUM_TARGET", None)
    print(f"wire: {rounds} rounds\n  {machine_line()}")
    others = Others()
    with ExitStack() as opened:
        folder = opened.enter_context(TemporaryDirectory())
        port = opened.enter_context(daemon("--memory-socket", f"{folder}/socket"))
        bare = opened.enter_context(bare_server())
        target = f"grpc://localhost:{port}"
        small = small_times(target, bare, rounds, calls)
        remote_s, embedded_s = call_times(target, rounds, calls)
        sent, received = bytes_of_a_call(port)
        shares = stream_shares(target, bare, size, 3 if options.quick else 7)
        little = little_times(target, rounds)
        disturbed = others.cores()  # while the server is our child, or its time would count as theirs

    overhead_us = 1e6 * (remote_s - embedded_s)
    figures = {
        "workload": "wire",
        "rounds": rounds,
        "others_cores": round(disturbed, 3),
        "small": {**small, "bar": SMALL_BAR},
        "call": {
            "m": 1000,
            "n": 1000,
            "d": 3,
            "remote_us": 1e6 * remote_s,
            "embedded_us": 1e6 * embedded_s,
            "overhead_us": overhead_us,
            "bar_us": CALL_BAR_US,
        },
        "bytes": {"sent": sent, "received": received, "bar_sent": SENT_BAR},
        "stream": {"bytes": size, **shares, "bar": STREAM_BAR},
        "little": {"bytes": LITTLE_BYTES, **little},
    }
    up, down, new = shares["up"], shares["down"], shares["new"]
    mib, bar = f"{size // MIB} MiB", f"of a bare stream; the bar is {STREAM_BAR:.0%}"
    # fmt: off
    table([
        ("small call",                f"{small['call_us']:.0f} µs",      "M=N=64, D=3, prepared"),
        ("bare ping-pong",            f"{small['ping_us']:.0f} µs",      f"{small['ratio']:.2f}× in turn; the bar is {SMALL_BAR}"),
        ("ping-pong with pauses",     f"{small['paused_us']:.0f} µs",    f"each after {small['pause_us']:.0f} µs of sleep"),
        ("call over gRPC",            f"{1e6 * remote_s:.0f} µs",   "M=N=1,000, D=3, hashed each time"),
        ("call in process",           f"{1e6 * embedded_s:.0f} µs",  "the same lines"),
        ("overhead",                  f"{overhead_us:.0f} µs",       f"the bar is {CALL_BAR_US:.0f}"),
        ("sent per call",             f"{sent:.0f} B",               f"the bar is {SENT_BAR}"),
        ("received per call",         f"{received:.0f} B",           "4,000 of them the result"),
        (f"{mib} up",                 f"{up['share']:.0%}",          f"{bar}; {up['gb_s']:.2f} GB/s"),
        (f"{mib} down",               f"{down['share']:.0%}",        f"{bar}; {down['gb_s']:.2f} GB/s"),
        (f"{mib} down, new array",    f"{new['share']:.0%}",         f"{bar}; {new['gb_s']:.2f} GB/s"),
        (f"{mib} up, memory",         f"{up['memory_gb_s']:.2f} GB/s",   f"{up['memory_times']:.1f}× gRPC; digests taken there"),
        (f"{mib} down, memory",       f"{new['memory_gb_s']:.2f} GB/s", f"{new['memory_times']:.1f}× gRPC, a new array each"),
        ("128 KiB up, memory",        f"{little['memory_up_us']:.0f} µs",   f"{little['up_us']:.0f} µs over gRPC"),
        ("128 KiB down, memory",      f"{little['memory_down_us']:.0f} µs", f"{little['down_us']:.0f} µs over gRPC"),
    ])
    # fmt: on
    warn_if_disturbed(disturbed)
    if options.json:
        print(f"  wrote {save('wire', figures)}")


# ── small ───────────────────────────────────────────────────────────────────────────────────────


def small_times(target: str, bare: Echo, rounds: int, calls: int) -> dict[str, float]:
    """Medians over rounds of median calls, and of the ratio within each round, in turn."""
    rng = np.random.default_rng(0)
    x, y, b = (rng.random((64, d), dtype=np.float32) for d in (3, 3, 1))
    ours: list[float] = []
    theirs: list[float] = []
    paused: list[float] = []
    with farsum.connect(target):
        job = ((-Vi(0, 3).sqdist(Vj(1, 3))).exp() * Vj(2, 1)).sum(axis=1)
        for _ in range(rounds):
            theirs.append(median_call(bare.ping_pong, calls))
            ours.append(median_call(lambda: job(x, y, b), calls))
        pause_s = max(0.0, median(ours) - median(theirs))
        for _ in range(rounds):
            paused.append(median_call(bare.ping_pong, calls // 4, pause_s))
    farsum.disconnect()
    ratio = median([a / b for a, b in zip(ours, theirs, strict=True)])
    return {
        "call_us": 1e6 * median(ours),
        "ping_us": 1e6 * median(theirs),
        "ratio": ratio,
        "paused_us": 1e6 * median(paused),
        "pause_us": 1e6 * pause_s,
    }


# ── call ────────────────────────────────────────────────────────────────────────────────────────


def job_of_a_thousand() -> Callable[[], Any]:
    rng = np.random.default_rng(0)
    x, y, b = (rng.random((1000, d), dtype=np.float32) for d in (3, 3, 1))
    return lambda: (-Vi(x).sqdist(Vj(y))).exp() @ b


def call_times(target: str, rounds: int, calls: int) -> tuple[float, float]:
    """The median over rounds of the median call, remote and embedded, in turn."""
    job = job_of_a_thousand()
    far: list[float] = []
    near: list[float] = []
    for _ in range(rounds):
        with farsum.connect(target):
            far.append(median_call(job, calls))
        farsum.disconnect()
        near.append(median_call(job, calls))
    return median(far), median(near)


def median_call(job: Callable[[], Any], calls: int, pause_s: float = 0.0) -> float:
    """Each call after so much sleep, which is not counted."""
    for _ in range(5):
        job()
    times = []
    for _ in range(calls):
        if pause_s:
            time.sleep(pause_s)
        begun = time.perf_counter()
        job()
        times.append(time.perf_counter() - begun)
    return median(times)


# ── bytes ───────────────────────────────────────────────────────────────────────────────────────


class Relay:
    """A TCP relay to a loopback port that counts what passes, each way."""

    def __init__(self, port: int) -> None:
        self.sent = self.received = 0
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._to))
            for s in (near, far):
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._pump, args=(near, far, "sent"), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, "received"), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counter: str) -> None:
        try:
            while data := source.recv(1 << 16):
                # One thread per direction adds to each counter.
                setattr(self, counter, getattr(self, counter) + len(data))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for s in (source, sink):
                s.close()

    def close(self) -> None:
        self._listener.close()


def bytes_of_a_call(port: int, calls: int = 50) -> tuple[float, float]:
    """Sent and received by one warm call, TCP payload with all framing of HTTP/2, on average."""
    job = job_of_a_thousand()
    relay = Relay(port)
    with farsum.connect(f"grpc://localhost:{relay.port}"):
        for _ in range(5):
            job()
        time.sleep(0.2)
        before = relay.sent, relay.received
        for _ in range(calls):
            job()
        time.sleep(0.2)
        after = relay.sent, relay.received
    farsum.disconnect()
    relay.close()
    return (after[0] - before[0]) / calls, (after[1] - before[1]) / calls


# ── up and down ─────────────────────────────────────────────────────────────────────────────────


def stream_shares(target: str, bare: Echo, size: int, rounds: int) -> dict[str, dict[str, float]]:
    """What share of the speed of a bare stream an array of so many bytes has, up and down, in turn; and through memory.

    Each is another array, as far as its digest says, and goes where the last one was dropped: into warm memory.
    """
    array = np.random.default_rng(0).random((size // 256, 64), dtype=np.float32)
    times: dict[str, list[float]] = {}
    with RemoteEngine(target) as plain, RemoteEngine(target, memory=True) as near:
        for engine in (plain, near):
            engine.ping()  # opens the stream by which arrays are dropped, and says where the socket is
        time.sleep(WARM_UP_S)
        for number in range(rounds + 1):  # the first makes the memory warm
            for name, engine in (("", plain), ("memory ", near)):
                array[0, 0] = 2 * number + bool(name)
                if not name:
                    times.setdefault("bare up", []).append(bare.up(size // MIB))
                    times.setdefault("bare down", []).append(bare.down(size // MIB))
                for way, took in up_and_down(engine.session, array).items():
                    times.setdefault(name + way, []).append(took)
    found = {}
    for way, alike in (("up", "up"), ("down", "down"), ("new", "down")):
        own, theirs, memory = times[way][1:], times[f"bare {alike}"][1:], times[f"memory {way}"][1:]
        found[way] = {
            "share": median([b / a for a, b in zip(own, theirs, strict=True)]),
            "gb_s": size / median(own) / 1e9,
            "bare_gb_s": size / median(theirs) / 1e9,
            "memory_gb_s": size / median(memory) / 1e9,
            "memory_times": median(own) / median(memory),
        }
    return found


def little_times(target: str, rounds: int) -> dict[str, float]:
    """Medians of an array that is just too large to ride in a message, by both ways, in turn."""
    array = np.random.default_rng(1).random((LITTLE_BYTES // 4, 1), dtype=np.float32)
    times: dict[str, list[float]] = {}
    with RemoteEngine(target) as plain, RemoteEngine(target, memory=True) as near:
        for engine in (plain, near):
            engine.ping()
        for number in range(4 * rounds):
            for name, engine in (("", plain), ("memory_", near)):
                array[0, 0] = 2 * number + bool(name)
                took = up_and_down(engine.session, array)
                times.setdefault(f"{name}up_us", []).append(1e6 * took["up"])
                times.setdefault(f"{name}down_us", []).append(1e6 * took["new"])
    return {name: median(found) for name, found in times.items()}


def up_and_down(session: Session, array: Any) -> dict[str, float]:
    """The seconds of an upload of an array that the server does not have, and forgets again, and of its downloads:
    into memory in use, and into a new array."""
    took = {}
    used = np.ones(array.nbytes + wire.MAX_HEADER_BYTES, np.uint8)
    ref, token = ArrayRef(digest_of(array), "float32", array.shape), session.token()
    begun = time.perf_counter()
    upload_array(session, Item(array, ref.dtype, ref.digest, token))
    took["up"] = time.perf_counter() - begun
    begun = time.perf_counter()
    session.download(ref, bytes_of(used), exact=False)
    took["down"] = time.perf_counter() - begun
    begun = time.perf_counter()
    session.download(ref, bytes_of(spare.room(used.nbytes)), exact=False)
    took["new"] = time.perf_counter() - begun
    time.sleep(DONE_S)
    session.let_go(ref.digest, token)
    session.flush()
    return took


if __name__ == "__main__":
    main()
