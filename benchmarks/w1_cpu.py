"""W1: a Gaussian kernel sum in 3 dimensions, float32, embedded engine against the real pykeops.

Points uniform in the unit cube, seed 0, sigma = 0.5 sqrt(3). All run in turn, warm, pykeops in processes of
its own: once as it installs, once built with the flags that a user can set for more speed. The figure is the
ratio of the medians of the wall times; the CPU time beside it says what is left when others use the machine.

    python -m benchmarks.w1_cpu [--n 10240] [--rounds 15] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.measure import (
    Others,
    Times,
    interleaved,
    machine_line,
    median,
    save,
    table,
    timed,
    warn_if_disturbed,
)

D = 3
SIGMA = 0.5 * D**0.5
BAR = 10.0
PEERS = {"pykeops": "", "pykeops, native": "-march=native -ffast-math"}


def main() -> None:
    parser = argparse.ArgumentParser(description="W1: Gaussian sum, D=3, float32, against pykeops.")
    parser.add_argument("--n", type=int, default=10_240, help="rows of x and of y")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="small and few: only that it runs")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/w1_cpu.json")
    options = parser.parse_args()
    n, rounds = (1024, 7) if options.quick else (options.n, max(7, options.rounds))

    print(f"W1: Gaussian sum, D={D}, float32, M=N={n:,}, {rounds} interleaved rounds\n  {machine_line()}")
    from farsum.numpy import LazyTensor

    x, y, b = points(n)
    truth = dense(x, y, b)
    with ExitStack() as stack:
        # As a first call is: packages imported, no kernel on the disk.
        os.environ["FARSUM_CACHE"] = stack.enter_context(tempfile.TemporaryDirectory())
        calls: dict[str, Callable[[], Times]] = {
            "farsum": lambda: timed(lambda: gaussian(LazyTensor, x, y, b))
        }
        first = {"farsum": calls["farsum"]()[0]}
        errors = {"farsum": relative_error(gaussian(LazyTensor, x, y, b), truth)}
        if importlib.util.find_spec("pykeops"):
            for name, flags in PEERS.items():
                cache = stack.enter_context(tempfile.TemporaryDirectory())
                peer = Peer(n, flags, cache)
                stack.callback(peer.close)
                first[name], errors[name] = peer.first_s, relative_error(peer.answer, truth)
                calls[name] = peer.call
        others = Others()
        times = interleaved(calls, rounds)
        disturbed = others.cores()
    report(n, rounds, times, first, errors, disturbed, write=options.json)


def report(
    n: int,
    rounds: int,
    times: dict[str, list[Times]],
    first: dict[str, float],
    errors: dict[str, float],
    disturbed: float,
    *,
    write: bool,
) -> None:
    wall = {name: median([t[0] for t in each]) for name, each in times.items()}
    cpu = {name: median([t[1] for t in each]) for name, each in times.items()}
    rows, figures = [], {}
    for name in times:
        rate = f"{n * n / wall[name] / 1e9:.2f} Gpairs/s, first call {first[name]:.2f} s"
        rows.append(
            (name, f"{1e3 * wall[name]:.2f} ms", f"{rate}, largest relative error {errors[name]:.1e}")
        )
        figures[name] = {
            "median_s": wall[name],
            "fastest_s": min(t[0] for t in times[name]),
            "cpu_s": cpu[name],
            "first_call_s": first[name],
            "max_relative_error": errors[name],
        }
        if name != "farsum":
            figures[name] |= {"ratio": wall[name] / wall["farsum"], "cpu_ratio": cpu[name] / cpu["farsum"]}
            bar = f"; the bar is {BAR:.0f}" if name == "pykeops" else ""
            ratio = f"{figures[name]['ratio']:.1f}"
            rows.append((f"{name} / farsum", ratio, f"by CPU time {figures[name]['cpu_ratio']:.1f}{bar}"))
    if len(times) == 1:
        rows.append(("pykeops", "absent", "`make bench` installs it; it needs a C++ compiler"))
    table(rows)
    warn_if_disturbed(disturbed)
    if write:
        about = {"workload": "W1", "n": n, "rounds": rounds, "others_cores": round(disturbed, 3), "bar": BAR}
        print(f"  wrote {save('w1_cpu', {**about, 'figures': figures})}")


def points(n: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    x, y, b = (rng.random((n, d), dtype=np.float32) for d in (D, D, 1))
    return x, y, b


def gaussian(lazy: Any, x: Any, y: Any, b: Any) -> Any:
    """The same lines for both libraries."""
    distance = ((lazy(x[:, None, :]) - lazy(y[None, :, :])) ** 2).sum(-1)
    return (-distance / (2 * SIGMA**2)).exp() @ b


def dense(x: Any, y: Any, b: Any, rows: int = 512) -> Any:
    """The same in float64, by differences, a block of rows at a time."""
    x, y, b = (v.astype(np.float64) for v in (x, y, b))
    parts = []
    for start in range(0, len(x), rows):
        d = ((x[start : start + rows, None, :] - y[None, :, :]) ** 2).sum(-1)
        parts.append(np.exp(-d / (2 * SIGMA**2)) @ b)
    return np.concatenate(parts)


def relative_error(a: Any, truth: Any) -> float:
    return float(np.max(np.abs(a - truth) / truth))


# ── the peer, in a process of its own ───────────────────────────────────────────────────────────


class Peer:
    """pykeops in a child process, with compiler flags and a kernel cache of its own."""

    def __init__(self, n: int, flags: str, cache: str) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_peer, args=(theirs, n, flags, cache), daemon=True)
        self._process.start()
        theirs.close()
        self.first_s, self.answer = self._pipe.recv()

    def call(self) -> Times:
        self._pipe.send("go")
        times: Times = self._pipe.recv()
        return times

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)


def _peer(pipe: Connection, n: int, flags: str, cache: str) -> None:
    # Both are read when pykeops is imported.
    os.environ["KEOPS_CACHE_FOLDER"] = cache
    os.environ["CXXFLAGS"] = flags
    from pykeops.numpy import LazyTensor

    x, y, b = points(n)
    first_s, _ = timed(lambda: gaussian(LazyTensor, x, y, b))
    pipe.send((first_s, gaussian(LazyTensor, x, y, b)))
    try:
        while pipe.recv():
            pipe.send(timed(lambda: gaussian(LazyTensor, x, y, b)))
    except EOFError:
        return


if __name__ == "__main__":
    main()
