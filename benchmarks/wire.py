"""What the wire costs, on loopback, against a real server in a process of its own. Three figures.

call     a reduction at M = N = 1,000, D = 3, from plain arrays that are hashed on every call: over gRPC with
         the arrays resident, and in process; the difference is what the server costs
bytes    what such a call sends and receives, counted by a TCP relay in between
upload   a job on 256 MB that a fresh server has not seen, less the same job on what it then holds

    python -m benchmarks.wire [--rounds 15] [--calls 200] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import farsum
from benchmarks.echo import ping_pong
from benchmarks.measure import Others, daemon, machine_line, median, save, table, timed, warn_if_disturbed
from farsum.numpy import Vi, Vj

CALL_BAR_US, SENT_BAR, UPLOAD_BAR_GB_S = 400.0, 2048, 1.0
ARRAYS = 4
WARM_UP_S = 3.0

Upload = tuple[float, float]  # seconds of a job on a new array, and of the same job again


def main() -> None:
    parser = argparse.ArgumentParser(description="What a call over gRPC costs on loopback.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=200, help="calls per round")
    parser.add_argument("--quick", action="store_true", help="small and few: only that it runs")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/wire.json")
    options = parser.parse_args()
    rounds, calls = (7, 20) if options.quick else (max(7, options.rounds), options.calls)
    upload_rows = (1 << 16) if options.quick else (1 << 20)

    os.environ.pop("FARSUM_TARGET", None)
    print(f"wire: {rounds} rounds\n  {machine_line()}")
    others = Others()
    with daemon() as port:
        target = f"grpc://localhost:{port}"
        remote_s, embedded_s = call_times(target, rounds, calls)
        bare_s = median([ping_pong(300, calls) for _ in range(3)])
        sent, received = bytes_of_a_call(port)
        disturbed = others.cores()  # while the server is our child, or its time would count as theirs
    size, uploads = upload_times(upload_rows, 1 if options.quick else 5)

    overhead_us = 1e6 * (remote_s - embedded_s)
    gb_s = [size / (cold_s - warm_s) / 1e9 for cold_s, warm_s in uploads]
    whole_gb_s = size / uploads[0][0] / 1e9
    figures = {
        "workload": "wire",
        "rounds": rounds,
        "others_cores": round(disturbed, 3),
        "call": {
            "m": 1000,
            "n": 1000,
            "d": 3,
            "remote_us": 1e6 * remote_s,
            "embedded_us": 1e6 * embedded_s,
            "overhead_us": overhead_us,
            "bare_ping_pong_us": 1e6 * bare_s,
            "bar_us": CALL_BAR_US,
        },
        "bytes": {"sent": sent, "received": received, "bar_sent": SENT_BAR},
        "upload": {
            "bytes": size,
            "gb_s": gb_s[0],
            "whole_call_gb_s": whole_gb_s,
            "gb_s_of_each_in_turn": gb_s,
            "cold_and_warm_s_of_each_in_turn": uploads,
            "bar_gb_s": UPLOAD_BAR_GB_S,
        },
    }
    mib, bar = f"{size / 2**20:.0f} MiB", f"the bar is {UPLOAD_BAR_GB_S:.0f}"
    # fmt: off
    table([
        ("call over gRPC",            f"{1e6 * remote_s:.0f} µs",   "M=N=1,000, D=3, hashed each time"),
        ("call in process",           f"{1e6 * embedded_s:.0f} µs",  "the same lines"),
        ("overhead",                  f"{overhead_us:.0f} µs",       f"the bar is {CALL_BAR_US:.0f}"),
        ("bare ping-pong",            f"{1e6 * bare_s:.0f} µs",      "a sync client, a grpc.aio echo, 300 B"),
        ("sent per call",             f"{sent:.0f} B",               f"the bar is {SENT_BAR}"),
        ("received per call",         f"{received:.0f} B",           "4,000 of them the result"),
        ("upload",                    f"{gb_s[0]:.2f} GB/s",         f"{mib}, less a warm call; {bar}"),
        ("upload, whole call",        f"{whole_gb_s:.2f} GB/s",      "hashing and the job included"),
        (f"upload, array {ARRAYS}",   f"{gb_s[-1]:.2f} GB/s",        "past the memory that is warm at start"),
    ])
    # fmt: on
    warn_if_disturbed(disturbed)
    if options.json:
        print(f"  wrote {save('wire', figures)}")


def small_job() -> Callable[[], Any]:
    rng = np.random.default_rng(0)
    x, y, b = (rng.random((1000, d), dtype=np.float32) for d in (3, 3, 1))
    return lambda: (-Vi(x).sqdist(Vj(y))).exp() @ b


# ── call ────────────────────────────────────────────────────────────────────────────────────────


def call_times(target: str, rounds: int, calls: int) -> tuple[float, float]:
    """The median over rounds of the median call, remote and embedded, in turn."""
    job = small_job()
    far: list[float] = []
    near: list[float] = []
    for _ in range(rounds):
        with farsum.connect(target):
            far.append(median_call(job, calls))
        farsum.disconnect()
        near.append(median_call(job, calls))
    return median(far), median(near)


def median_call(job: Callable[[], Any], calls: int) -> float:
    for _ in range(5):
        job()
    times = []
    for _ in range(calls):
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
    job = small_job()
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


# ── upload ──────────────────────────────────────────────────────────────────────────────────────


def upload_times(rows: int, servers: int) -> tuple[int, list[Upload]]:
    """Bytes, and the uploads of ARRAYS arrays in turn, the median over so many fresh servers.

    A server makes a share of its memory ready at start, so the first arrays find warm pages and later ones
    find fresh ones, until the store is full and regions are used again.
    """
    rng = np.random.default_rng(0)
    x = rng.random((rows, 64), dtype=np.float32)
    y = rng.random((1, 64), dtype=np.float32)

    def seconds() -> float:
        return timed(lambda: (Vi(x) | Vj(y)).sum(axis=1))[0]

    found: list[list[Upload]] = []
    for _ in range(servers):
        with daemon() as port, farsum.connect(f"grpc://localhost:{port}"):
            (Vi(x[:64]) | Vj(y)).sum(axis=1)  # compiles
            time.sleep(WARM_UP_S)
            uploads = []
            for number in range(ARRAYS):
                x[0, 0] = number  # other content, so another array
                uploads.append((seconds(), median([seconds() for _ in range(3)])))
            found.append(uploads)
        farsum.disconnect()
    columns = [[uploads[k] for uploads in found] for k in range(ARRAYS)]
    return x.nbytes, [(median([u[0] for u in c]), median([u[1] for u in c])) for c in columns]


if __name__ == "__main__":
    main()
