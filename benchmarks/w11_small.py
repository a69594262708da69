"""W11: small calls, M = 50 and N = 30, where nothing but overhead is left: embedded engine against pykeops.

A Gaussian kernel times a vector, D = 3, float32. Three things are timed: writing the formula anew and
calling it, as a loop in a script does; calling an object made once with call=False; and the first call of a
formula that was never seen, packages imported and no kernel on the disk. Each figure is the median over
interleaved rounds of the mean of a burst of calls; pykeops runs in a process of its own.

    python -m benchmarks.w11_small [--rounds 15] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.measure import PAUSE_S, Others, machine_line, median, save, table, warn_if_disturbed

M, N, D = 50, 30, 3
BURST = 300
FORMULAS = 5  # first calls that are timed; pykeops takes seconds for each
BARS_US = {"call=False": 20.0, "rebuild": 60.0, "first call": 60_000.0}


def main() -> None:
    parser = argparse.ArgumentParser(description="W11: small calls, M=50, N=30, against pykeops.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="few: only that it runs")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/w11_small.json")
    options = parser.parse_args()
    rounds, formulas = (3, 1) if options.quick else (max(7, options.rounds), FORMULAS)
    print(
        f"W11: Gaussian kernel times a vector, M={M}, N={N}, D={D}, float32, {rounds} rounds\n  {machine_line()}"
    )
    with ExitStack() as stack:
        libraries: dict[str, Callable[[str, int], float]] = {}
        os.environ["FARSUM_CACHE"] = stack.enter_context(tempfile.TemporaryDirectory())
        libraries["farsum"] = Calls("farsum.numpy").time
        if importlib.util.find_spec("pykeops"):
            peer = Peer(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.callback(peer.close)
            libraries["pykeops"] = peer.time
        times: dict[str, dict[str, list[float]]] = {
            what: {name: [] for name in libraries} for what in BARS_US
        }
        for number in range(formulas):
            for name, timed in libraries.items():
                times["first call"][name].append(timed("first call", number))
        others = Others()
        for _ in range(rounds):
            for what in ("call=False", "rebuild"):
                for name, timed in libraries.items():
                    time.sleep(PAUSE_S)
                    times[what][name].append(timed(what, 0))
        disturbed = others.cores()
    report(rounds, times, disturbed, write=options.json)


def report(rounds: int, times: dict[str, dict[str, list[float]]], disturbed: float, *, write: bool) -> None:
    rows, figures = [], {}
    for what, bar in BARS_US.items():
        medians = {name: 1e6 * median(values) for name, values in times[what].items()}
        ours = medians["farsum"]
        word = f"the bar is {bar:,.0f} µs"
        if "pykeops" in medians:
            word = f"pykeops {medians['pykeops']:,.1f} µs, {medians['pykeops'] / ours:.1f} times; {word}"
        rows.append((what, f"{ours:,.1f} µs", word))
        figures[what] = {f"{name}_us": value for name, value in medians.items()} | {"bar_us": bar}
    table(rows)
    warn_if_disturbed(disturbed)
    if write:
        about = {"workload": "W11", "m": M, "n": N, "rounds": rounds, "others_cores": round(disturbed, 3)}
        print(f"  wrote {save('w11_small', {**about, 'figures': figures})}")


class Calls:
    """The same lines for both libraries."""

    def __init__(self, module: str) -> None:
        self._lazy = importlib.import_module(module).LazyTensor
        rng = np.random.default_rng(0)
        self._x, self._y, self._b = (
            rng.random((n, d), dtype=np.float32) for n, d in ((M, D), (N, D), (N, 1))
        )
        self._prepared = (self._kernel() * self._lazy(self._b[None])).sum(axis=1, call=False)
        for _ in range(3):  # compiled, and everything that is kept is there
            self._prepared(), self._rebuilt()

    def _kernel(self) -> Any:
        distance = ((self._lazy(self._x[:, None, :]) - self._lazy(self._y[None, :, :])) ** 2).sum(-1)
        return (-distance / 0.5).exp()

    def _rebuilt(self) -> Any:
        return self._kernel() @ self._b

    def _new_formula(self, number: int) -> Any:
        return ((self._kernel() + (number + 2)) ** (number + 3)).sqrt() @ self._b

    def time(self, what: str, number: int) -> float:
        """Seconds of one call."""
        if what == "first call":
            begun = time.perf_counter()
            self._new_formula(number)
            return time.perf_counter() - begun
        call = self._prepared if what == "call=False" else self._rebuilt
        begun = time.perf_counter()
        for _ in range(BURST):
            call()
        return (time.perf_counter() - begun) / BURST


class Peer:
    """pykeops in a child process, with a kernel cache of its own."""

    def __init__(self, cache: str) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_peer, args=(theirs, cache), daemon=True
        )
        process.start()
        theirs.close()
        self._process = process
        self._pipe.recv()

    def time(self, what: str, number: int) -> float:
        self._pipe.send((what, number))
        seconds: float = self._pipe.recv()
        return seconds

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)


def _peer(pipe: Connection, cache: str) -> None:
    os.environ["KEOPS_CACHE_FOLDER"] = cache
    calls = Calls("pykeops.numpy")
    pipe.send("ready")
    try:
        while True:
            pipe.send(calls.time(*pipe.recv()))
    except EOFError:
        return


if __name__ == "__main__":
    main()
