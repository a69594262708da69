"""Loops that run where the data is: 100 Sinkhorn steps and 100 steps of conjugate gradients, each one call.

link   over a link of 100 Mbit/s and 20 ms round trip, next to the same in process: the bar is 1.3 times the
       time in process plus one upload, which is the bytes of the arrays at that speed and one round trip
peer   over gRPC on loopback, next to pykeops in process, whose loop is written in NumPy: W12's second half

Arrays are new in each round, so each call sends them.

    python -m benchmarks.loops [--rounds 7] [--points 10240] [--no-peer] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np

import farsum
import farsum.numpy
from benchmarks.child import Child, Failed
from benchmarks.measure import (
    Others,
    Times,
    daemon,
    interleaved,
    machine_line,
    median,
    save,
    table,
    timed,
    warn_if_disturbed,
)
from benchmarks.peers import is_there
from benchmarks.workloads import Array, Points, Workload, points, rows_of
from farsum_kernels.errors import SolverDidNotConverge
from tests.service.relay import Relay

STEPS, BLUR, RIDGE = 100, 0.05, 0.1
BITS_PER_S, ROUND_TRIP_S, BAR = 100e6, 0.020, 1.3
FAMILIES = {"sinkhorn": "100 Sinkhorn steps", "conjugate": "100 CG steps"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Loops on a server against loops of calls.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--points", type=int, default=10_240)
    parser.add_argument(
        "--no-peer", action="store_true", help="leave pykeops out, which takes most of the time"
    )
    parser.add_argument("--quick", action="store_true", help="small and few: only that it runs")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/loops.json")
    options = parser.parse_args()
    rounds, n = (1, 1024) if options.quick else (max(1, options.rounds), options.points)

    os.environ.pop("FARSUM_TARGET", None)
    print(f"loops: {rounds} rounds, M = N = {n:,}, D = 3, float32\n  {machine_line()}")
    others = Others()
    figures = {}
    for family, title in FAMILIES.items():
        workload = Workload(f"W12-{family}", title, family, n, n, 3)
        figures[family] = measured(workload, rounds, not options.no_peer)
        show(title, figures[family])
    disturbed = others.cores()
    warn_if_disturbed(disturbed)
    if options.json:
        about = {"rounds": rounds, "points": n, "bits_per_s": BITS_PER_S, "round_trip_s": ROUND_TRIP_S}
        print(f"  wrote {save('loops', {**about, 'others_cores': disturbed, 'loops': figures})}")


def measured(w: Workload, rounds: int, peer: bool) -> dict[str, Any]:
    """Medians, in seconds, and how far the answers are from each other."""
    p = points(w)
    p.y[:] = p.x if w.family == "conjugate" else p.y
    number = 0

    def fresh() -> Points:
        nonlocal number
        number += 1
        x = p.x.copy()
        x[0, 0] = number * 1e-4  # other content, so another array
        return Points(x, x if w.family == "conjugate" else p.y + np.float32(number * 1e-6), p.b)

    with ExitStack() as stack:
        port = stack.enter_context(daemon())
        relay = stack.enter_context(Relay(port, BITS_PER_S, ROUND_TRIP_S / 2))
        far = stack.enter_context(farsum.connect(f"grpc://localhost:{port}"))
        answers = {"grpc": rows_of(w, there(w, p))}
        calls: dict[str, Callable[[], Times]] = {
            "embedded": lambda: at(None, lambda: there(w, fresh())),
            "grpc": lambda: at(far.target, lambda: there(w, fresh())),
            "link": lambda: at(relay.target, lambda: there(w, fresh())),
        }
        farsum.disconnect()
        answers["embedded"] = rows_of(w, there(w, p))
        answers["call by call"] = rows_of(w, alone(farsum.numpy, w, p))
        if peer and is_there("pykeops"):
            child = Child("pykeops")
            stack.callback(child.close)
            with suppress(Failed):
                answers["pykeops"] = child.make("pykeops loops", w).rows
                calls["pykeops"] = lambda: child.call("pykeops loops")
        times = {name: median([wall for wall, _ in t]) for name, t in interleaved(calls, rounds).items()}
    sent = p.x.nbytes + (p.y.nbytes if w.family == "sinkhorn" else p.b.nbytes)
    times["upload"] = 8 * sent / BITS_PER_S + ROUND_TRIP_S
    truth = answers["embedded"]
    apart = {name: float(np.abs(a - truth).max() / np.abs(truth).max()) for name, a in answers.items()}
    return {
        "title": w.title,
        "seconds": times,
        "apart": apart,
        "link_ratio": (times["link"] - times["upload"]) / times["embedded"],
        "bar": BAR,
    }


def at(target: str | None, call: Callable[[], Any]) -> Times:
    """The time of a call with work going to a server, or in this process. Connecting is not timed."""
    if target is None:
        return timed(call)
    farsum.connect(target)
    try:
        return timed(call)
    finally:
        farsum.disconnect()


def show(title: str, found: dict[str, Any]) -> None:
    s, apart = found["seconds"], found["apart"]
    rows = [
        (f"{title}, in process", f"{s['embedded']:.3f} s", f"call by call: {apart['call by call']:.0e} apart"),
        ("  over gRPC on loopback", f"{s['grpc']:.3f} s", f"{apart['grpc']:.0e} apart"),
        ("  over 100 Mbit/s, 20 ms", f"{s['link']:.3f} s",
         f"less one upload ({s['upload']:.3f} s) {found['link_ratio']:.2f} × in process; the bar is {BAR}"),
    ]  # fmt: skip
    if "pykeops" in s:
        rows.append(
            ("  pykeops, in process", f"{s['pykeops']:.3f} s",
             f"{s['pykeops'] / s['grpc']:.1f} × over gRPC; {apart['pykeops']:.0e} apart")
        )  # fmt: skip
    table(rows)


# ── what a user writes ────────────────────────────────────────────────────────────────────────────


def there(w: Workload, p: Points) -> Array:
    """The loop as one call."""
    if w.family == "sinkhorn":
        f: Array = sinkhorn(p.x, p.y)[0]
        return f
    K = (-farsum.numpy.Vi(p.x).sqdist(farsum.numpy.Vj(p.x)) / (2 * w.sigma**2)).exp()
    try:
        found: Array = K.solve(p.b, alpha=RIDGE, eps=1e-30, max_iterations=STEPS)
    except SolverDidNotConverge as error:
        found = error.iterate
    return found


@farsum.program
def sinkhorn(x: Any, y: Any) -> Any:
    cost = farsum.numpy.Vi(x).sqdist(farsum.numpy.Vj(y)) / 2
    log_m, log_n = (float(np.log(a.shape[0])) for a in (x, y))

    def step(f: Any, g: Any) -> Any:
        f = -BLUR * (((farsum.numpy.Vj(g) - cost) / BLUR).logsumexp(axis=1) - log_n)
        g = -BLUR * (((farsum.numpy.Vi(f) - cost) / BLUR).logsumexp(axis=0) - log_m)
        return f, g

    zeros = (np.zeros((a.shape[0], 1), np.float32) for a in (x, y))
    return farsum.repeat(step, *zeros, times=STEPS)


def alone(library: Any, w: Workload, p: Points) -> Array:
    """The loop in NumPy, a call for each step, with farsum.numpy or pykeops.numpy."""
    x_i, y_j = library.Vi(p.x), library.Vj(p.y if w.family == "sinkhorn" else p.x)
    distance = ((x_i - y_j) ** 2).sum(-1)
    if w.family == "sinkhorn":
        f, g = np.zeros((w.m, 1), np.float32), np.zeros((w.n, 1), np.float32)
        blur, log_m, log_n = np.float32(BLUR), np.float32(np.log(w.m)), np.float32(np.log(w.n))
        for _ in range(STEPS):
            f = -blur * (((library.Vj(g) - distance / 2) / BLUR).logsumexp(axis=1) - log_n)
            g = -blur * (((library.Vi(f) - distance / 2) / BLUR).logsumexp(axis=0) - log_m)
        return f
    K = (-distance / (2 * w.sigma**2)).exp()
    a, r = np.zeros(p.b.shape), p.b.astype(np.float64)
    direction, along = r, float((r * r).sum())
    for _ in range(STEPS):
        seen = direction.astype(np.float32)
        q = RIDGE * seen + (K @ seen)
        size = along / float((seen * q).sum(dtype=np.float64))
        a, r = a + size * seen, r - size * q
        along, before = float((r * r).sum()), along
        direction = r + along / before * seen
    return a.astype(np.float32)


if __name__ == "__main__":
    main()
