"""The fixed workloads on this CPU: the embedded engine against every other library that is installed.

All run in turn, warm, each library in a process of its own and pykeops in two: as it installs, and built with
the flags that a user can set for more speed. A ratio is that of the medians of the wall times; the one by CPU
time says what is left when others use the machine. The best peer is the fastest whose error is within ten times
ours. The share of the peak is of the multiply-adds that this machine gave in the same rounds.

    python -m benchmarks.cpu [--quick] [--only W1 W5 …] [--rounds 9] [--json] [--plots]
    python -m benchmarks.cpu --sweep [D argmin E N …]     throughput against one size
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np

from benchmarks.child import Child, Failed
from benchmarks.measure import (
    QUIET_CORES,
    RESULTS,
    Others,
    Times,
    interleaved,
    machine,
    machine_line,
    median,
    save,
    table,
    timed,
    warn_if_disturbed,
)
from benchmarks.peers import Peer, is_there, peers_of
from benchmarks.workloads import (
    BEST,
    WORKLOADS,
    Workload,
    exact,
    largest_error,
    lines,
    named,
    points,
    rows_of,
)

ROUNDS, LEAST_ROUNDS, ATTEMPTS = 9, 7, 3
COMPARABLE = 10.0  # a peer whose error is larger than so many times ours does not count as the best
QUICK_PEERS = ("pykeops", "torch")


def main() -> None:
    parser = argparse.ArgumentParser(description="The workloads W1 to W12 on this CPU, with every peer.")
    parser.add_argument("--only", nargs="+", default=[], metavar="W", help="these workloads, as W1 or W4-100")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="small, with pykeops and torch: that it runs")
    parser.add_argument(
        "--json", action="store_true", help="write benchmarks/results/cpu.json or sweeps.json"
    )
    parser.add_argument("--plots", action="store_true", help="then write docs/benchmarks.md and its plots")
    parser.add_argument("--sweep", nargs="*", metavar="NAME", help=f"of {', '.join(SWEEPS)}; all if none")
    options = parser.parse_args()
    rounds = LEAST_ROUNDS if options.quick else max(LEAST_ROUNDS, options.rounds)
    print(f"{machine_line()}, {rounds} interleaved rounds", flush=True)
    with Bench(rounds, quick=options.quick) as bench:
        if options.sweep is not None:
            swept(bench, options.sweep, write=options.json)
        else:
            compared(bench, options.only, write=options.json)
    if options.plots:
        from benchmarks.report import write

        write()


# ── one workload, with its peers ────────────────────────────────────────────────────────────────────


class Bench:
    """The processes of the libraries, each started when it is first wanted."""

    def __init__(self, rounds: int, *, quick: bool = False) -> None:
        self.rounds, self.quick = rounds, quick
        self._stack = ExitStack()
        self._children: dict[str, Child] = {}
        self._peaks: dict[str, Any] = {}

    def __enter__(self) -> Bench:
        # As a first call is: packages imported, no kernel on the disk.
        os.environ["FARSUM_CACHE"] = self._stack.enter_context(tempfile.TemporaryDirectory())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def child(self, library: str) -> Child:
        if library not in self._children:
            self._children[library] = Child(library)
            self._stack.callback(self._children[library].close)
        return self._children[library]

    def peak(self, dtype: str) -> Any:
        from benchmarks.peak import Peak

        if dtype not in self._peaks:
            self._peaks[dtype] = Peak(dtype)
        return self._peaks[dtype]

    def measure(self, w: Workload, peers: Sequence[Peer]) -> dict[str, Any]:
        """All figures of a workload, as they are written to the file."""
        import farsum.numpy

        p = points(w)
        truth = exact(w, p)
        peak = self.peak(w.dtype)  # first, for it imports the compiler
        run = lambda: timed(lambda: lines(farsum.numpy, w, p))
        calls: dict[str, Callable[[], Times]] = {"farsum": run}
        first = {"farsum": run()[0]}
        errors = {"farsum": largest_error(w, p, rows_of(w, lines(farsum.numpy, w, p)), truth)}
        missing: dict[str, str] = {}
        for peer in peers:
            if not is_there(peer.library):
                missing[peer.name] = "absent"
                continue
            child = self.child(peer.library)
            try:
                made = child.make(peer.name, w)
                # One warm call in turn, so that a peer that fails later fails here.
                child.call(peer.name)
            except Failed as why:
                missing[peer.name] = f"failed: {why}"
                continue
            first[peer.name], errors[peer.name] = made.first_s, largest_error(w, p, made.rows, truth)
            calls[peer.name] = partial(child.call, peer.name)
        times, disturbed = self._rounds({**calls, "peak": peak})
        for library in {peer.library for peer in peers if peer.name in calls}:
            self._children[library].forget()
        rate = peak.rate(median([t[0] for t in times.pop("peak")]))
        return summary(w, self.rounds, times, first, errors, rate, disturbed) | {"missing": missing}

    def _rounds(self, calls: Mapping[str, Callable[[], Times]]) -> tuple[dict[str, list[Times]], float]:
        """The least disturbed of up to three attempts."""
        best: tuple[dict[str, list[Times]], float] | None = None
        for _ in range(1 if self.quick else ATTEMPTS):
            others = Others()
            times = interleaved(calls, self.rounds)
            disturbed = others.cores()
            if best is None or disturbed < best[1]:
                best = times, disturbed
            if disturbed <= QUIET_CORES:
                break
        assert best
        return best


def summary(
    w: Workload,
    rounds: int,
    times: Mapping[str, list[Times]],
    first: Mapping[str, float],
    errors: Mapping[str, float],
    peak: float,
    disturbed: float,
) -> dict[str, Any]:
    figures: dict[str, dict[str, float]] = {}
    for name, each in times.items():
        wall = median([t[0] for t in each])
        figures[name] = {
            "median_s": wall,
            "fastest_s": min(t[0] for t in each),
            "cpu_s": median([t[1] for t in each]),
            "first_call_s": first[name],
            "max_relative_error": errors[name],
            "gpairs_s": w.pairs / wall / 1e9,
        }
    ours = figures["farsum"]
    for name, figure in figures.items():
        if name != "farsum":
            figure["ratio"] = figure["median_s"] / ours["median_s"]
            figure["cpu_ratio"] = figure["cpu_s"] / max(ours["cpu_s"], 1e-9)
    allowed = COMPARABLE * max(errors["farsum"], float(np.finfo(w.dtype).eps))
    comparable = {n: f["ratio"] for n, f in figures.items() if n != "farsum" and errors[n] <= allowed}
    best = min(comparable, key=comparable.__getitem__) if comparable else None
    ratios = {name: figures[name]["ratio"] for name in w.bars if name in figures}
    if best:
        ratios["best"] = comparable[best]
    bars = {name: bar for name, bar in {"best": BEST, **w.bars}.items() if bar}
    return {
        **{k: v for k, v in asdict(w).items() if k not in ("bars", "quick", "quick_pykeops")},
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "pairs": w.pairs,
        "sizes": w.sizes,
        "rounds": rounds,
        "others_cores": round(disturbed, 3),
        "fma_per_pair": w.fma_per_pair,
        "fma_peak_g": peak / 1e9,
        "peak_share": w.pairs * w.fma_per_pair / ours["median_s"] / peak,
        "best_peer": best,
        "best_ratio": comparable[best] if best else None,
        "bars": {
            name: {"bar": bar, "ratio": ratios.get(name), "met": name in ratios and ratios[name] >= bar}
            for name, bar in bars.items()
        },
        "figures": figures,
    }


# ── the table of all ────────────────────────────────────────────────────────────────────────────────


def compared(bench: Bench, only: list[str], *, write: bool) -> None:
    small_calls = "W11" in only
    chosen = named([name for name in only if name != "W11"]) if not small_calls or len(only) > 1 else []
    found: dict[str, dict[str, Any]] = {}
    for w in chosen:
        peers = peers_of(w)
        if bench.quick:
            peers = [p for p in peers if p.name in QUICK_PEERS and (p.name != "pykeops" or w.quick_pykeops)]
            w = w.smaller()
        found[w.id] = bench.measure(w, peers)
        show(found[w.id])
    if found:
        overview(found)
    if write and found and not bench.quick:
        print(f"  wrote {_kept(found, whole=len(found) == len(WORKLOADS))}")
    elif write and bench.quick:
        print("  --quick writes no figures")
    if small_calls:
        more = ["--quick"] * bench.quick + ["--json"] * write
        subprocess.run([sys.executable, "-m", "benchmarks.w11_small", *more], check=True)


def _kept(found: Mapping[str, Any], *, whole: bool) -> Any:
    """Write what was found; of a part of the workloads, beside what this machine found of the others before."""
    kept: dict[str, Any] = {}
    path = RESULTS / "cpu.json"
    if not whole and path.exists():
        before = json.loads(path.read_text())
        if all(before["machine"][key] == machine()[key] for key in ("cpu", "cores")):
            kept = before["workloads"]
    workloads = {**kept, **found}
    return save("cpu", {"workloads": {w.id: workloads[w.id] for w in WORKLOADS if w.id in workloads}})


def show(found: Mapping[str, Any]) -> None:
    """The figures of one workload, ours first, then the peers from the fastest."""
    print(f"\n{found['id']}: {found['title']}, {found['dtype']}, {found['sizes']}")
    figures = found["figures"]
    rows = [("", "ms   Gpairs/s    ratio   by CPU", "")]
    for name in sorted(figures, key=lambda name: (name != "farsum", figures[name]["median_s"])):
        f = figures[name]
        ratio = f"{f['ratio']:9.2f}{f['cpu_ratio']:9.2f}" if name != "farsum" else " " * 18
        remark = f"error {f['max_relative_error']:.1e}, first call {f['first_call_s']:.2f} s"
        rows.append((name, f"{1e3 * f['median_s']:.2f}{f['gpairs_s']:11.3f}{ratio}", remark))
    rows += [(name, why, "") for name, why in found["missing"].items()]
    table(rows)
    share = f"{100 * found['peak_share']:.0f} % of the peak of {found['fma_peak_g']:.0f} G multiply-adds/s"
    print(f"  {share} at {found['fma_per_pair']} a pair")
    warn_if_disturbed(found["others_cores"])
    sys.stdout.flush()


def overview(found: Mapping[str, Mapping[str, Any]]) -> None:
    """A line per workload: the bars of the issue and what was reached."""
    print("\nfarsum, how many times as fast")
    rows: list[tuple[str, ...]] = [("", "Gpairs/s", "pykeops", "native", "best peer", "", "peak", "bars")]
    for w, one in found.items():
        figures = one["figures"]
        bars = ", ".join(f"{name} {bar_line(bar)}" for name, bar in one["bars"].items())
        rows.append(
            (
                w,
                f"{figures['farsum']['gpairs_s']:.2f}",
                *(
                    f"{figures[name]['ratio']:.1f}" if name in figures else "-"
                    for name in ("pykeops", "pykeops, native")
                ),
                f"{one['best_ratio']:.2f}" if one["best_peer"] else "-",
                one["best_peer"] or "",
                f"{100 * one['peak_share']:.0f} %",
                bars,
            )
        )
    widths = [max(len(row[k]) for row in rows) for k in range(7)]
    for row in rows:
        cells = [
            f"{c:<{n}}" if k in (0, 5) else f"{c:>{n}}"
            for k, (c, n) in enumerate(zip(row[:7], widths, strict=True))
        ]
        print("  " + "  ".join([*cells, row[7]]).rstrip())


def bar_line(bar: Mapping[str, Any]) -> str:
    verdict = (
        "not measured" if bar["ratio"] is None else "met" if bar["met"] else f"missed: {bar['ratio']:.2f}"
    )
    return f"{bar['bar']:g} {verdict}"


# ── throughput against one size ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Sweep:
    """One size varied, the others by a rule. pykeops takes part up to a limit: it gets slow, never faster."""

    title: str
    axis: str
    values: Sequence[int]
    workload: Callable[[int], Workload]
    pykeops_up_to: int


DIMENSIONS = (1, 2, 3, 5, 8, 10, 16, 20, 32, 50, 64, 100, 110, 112, 128, 200, 256, 512, 1024)
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SIZES = tuple(round(10 ** (k / 3)) for k in range(6, 16))  # 100 to 100,000
WORK = 400_000_000  # M N D, the same at every D


def _square(d: int, family: str) -> Workload:
    n = round((WORK / d) ** 0.5)
    return Workload(f"D={d}", f"{family}, D={d}", family, n, n, d)


SWEEPS: Mapping[str, Sweep] = {
    "D": Sweep("Gaussian sum", "D", DIMENSIONS, lambda d: _square(d, "gaussian"), 100),
    "argmin": Sweep("argmin", "D", DIMENSIONS, lambda d: _square(d, "argmin"), 100),
    "E": Sweep(
        "Gaussian sum, D=3, M=N=4,096",
        "width of the right-hand side",
        WIDTHS,
        lambda e: Workload(f"E={e}", f"gaussian, E={e}", "gaussian", 4_096, 4_096, 3, e=e),
        64,
    ),
    "N": Sweep(
        "Gaussian sum, D=3, M=N",
        "M = N",
        SIZES,
        lambda n: Workload(f"N={n}", f"gaussian, N={n}", "gaussian", n, n, 3),
        22_000,
    ),
}


def swept(bench: Bench, names: Sequence[str], *, write: bool) -> None:
    if unknown := [name for name in names if name not in SWEEPS]:
        raise SystemExit(f"no sweep {', '.join(unknown)}: there are {', '.join(SWEEPS)}")
    found = {}
    for name, sweep in SWEEPS.items():
        if names and name not in names:
            continue
        print(f"\n{sweep.title}, against {sweep.axis}", flush=True)
        found[name] = {"title": sweep.title, "axis": sweep.axis, "points": _points_of(bench, sweep)}
    if write and not bench.quick:
        path = RESULTS / "sweeps.json"
        before = json.loads(path.read_text())["sweeps"] if names and path.exists() else {}
        print(f"  wrote {save('sweeps', {'sweeps': {**before, **found}})}")


def _points_of(bench: Bench, sweep: Sweep) -> list[dict[str, Any]]:
    rows = []
    for value in sweep.values[::6] if bench.quick else sweep.values:
        w = sweep.workload(value)
        if bench.quick:
            w = replace(w, m=min(w.m, 1024), n=min(w.n, 1024))
        allowed = value <= sweep.pykeops_up_to and not bench.quick
        figures = bench.measure(w, [p for p in peers_of(w) if p.name == "pykeops" and allowed])
        rates = {name: figure["gpairs_s"] for name, figure in figures["figures"].items()}
        rows.append({"value": value, **figures})
        ours = f"{rates['farsum']:.3f} Gpairs/s, {100 * figures['peak_share']:.0f} % of the peak"
        theirs = f"pykeops {rates['pykeops']:.3f}" if "pykeops" in rates else ""
        table([(f"{sweep.axis} {value:>7,}", ours, theirs)])
        sys.stdout.flush()
    return rows


if __name__ == "__main__":
    main()
