"""docs/benchmarks.md and its plots, from the figures that `make bench` and the sweeps wrote. Measures nothing.

python -m benchmarks.report [--results FOLDER] [--docs FOLDER]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cpu import bar_line
from benchmarks.measure import RESULTS

DOCS = RESULTS.parent.parent / "docs"
COMMANDS = "`python -m benchmarks.cpu --json`, `python -m benchmarks.cpu --sweep --json`, `python -m benchmarks.report`"
# Colours that those tell apart who do not tell red from green (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#000000", "#F0E442")
OURS = "#0072B2"


def main() -> None:
    parser = argparse.ArgumentParser(description="The page and the plots of the benchmarks, from their JSON.")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args()
    write(options.results, options.docs)


def write(results: Path = RESULTS, docs: Path = DOCS) -> None:
    found = _read(results, "cpu")
    assert found, "python -m benchmarks.cpu --json comes first"
    sweeps, culled = _read(results, "sweeps"), _read(results, "culling")
    plots = docs / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    names = list(drawn(found, sweeps, culled, plots))
    page = docs / "benchmarks.md"
    parts = [
        lines_of(found, sweeps, names),
        _culling(culled),
        _shifted(_read(results, "shifted")),
        _products(_read(results, "products")),
        _threads(_read(results, "threads")),
        _wire(_read(results, "wire")),
        _loops(_read(results, "loops")),
    ]
    page.write_text("\n".join(line for part in parts for line in part) + "\n")
    print(f"  wrote {page} and {', '.join(names)}")


def _read(results: Path, name: str) -> Mapping[str, Any] | None:
    path = results / f"{name}.json"
    figures: Mapping[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return figures


# ── the page ────────────────────────────────────────────────────────────────────────────────────────


def lines_of(
    found: Mapping[str, Any], sweeps: Mapping[str, Any] | None, plots: Sequence[str]
) -> Iterator[str]:
    workloads = found["workloads"]
    yield "# Benchmarks on the CPU"
    yield ""
    yield "Every library that computes such reductions on a CPU, in one run: all in turn, warm, each in a process of its"
    yield "own, medians of wall times. A ratio says how many times as long the other library takes."
    yield ""
    yield f"- Made by {COMMANDS}"
    yield f"- On {_machine(found['machine'])}, {found['taken']}"
    if sweeps:
        yield f"- The sweeps on {_machine(sweeps['machine'])}, {sweeps['taken']}"
    rounds = sorted({row["rounds"] for row in workloads.values()})
    others = max(row["others_cores"] for row in workloads.values())
    yield f"- {' or '.join(map(str, rounds))} rounds; other processes used at most {others:.2f} cores meanwhile"
    yield ""
    yield from _ratios(workloads)
    if "ratios.svg" in plots:
        yield "![How many times as long each peer takes](plots/ratios.svg)"
        yield ""
    yield from _bars(workloads)
    yield from _details(workloads)
    if sweeps:
        yield "## Throughput against one size"
        yield ""
        yield "The work per pair is counted in multiply-adds; D and argmin keep M·N·D at the same value."
        yield ""
        for name, sweep in sweeps["sweeps"].items():
            yield f"![{sweep['title']}, against {sweep['axis']}](plots/{_file(name)})"
            yield ""


def _wire(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    small, call, stream = found["small"], found["call"], found["stream"]
    yield ""
    yield "## The wire"
    yield ""
    yield "A server in a process of its own, over loopback. The ping-pong is a sync client, a `grpc.aio` echo and a kept"
    yield f"stream, in turn with the calls; a bare stream throws its bytes away. `python -m benchmarks.wire --json`, on {_machine(found['machine'])},"
    yield f"{found['rounds']} rounds, {found['taken']}; other processes used {found['others_cores']:.2f} cores meanwhile."
    yield ""
    yield "| | | next to it | bar |"
    yield "|---|---|---|---|"
    yield f"| a prepared call, M = N = 64, D = 3 | {small['call_us']:.0f} µs | {small['ratio']:.2f} times a ping-pong of {small['ping_us']:.0f} µs | {small['bar']} |"
    yield f"| a call written anew, M = N = {call['m']:,}, arrays there but hashed | {call['remote_us']:.0f} µs | {call['embedded_us']:.0f} µs in process | |"
    yield f"| bytes sent for it | {found['bytes']['sent']:.0f} | | {found['bytes']['bar_sent']} |"
    for way, words in (
        ("up", "up, hashed there"),
        ("down", "down, into memory in use"),
        ("new", "down, into a new array after one that was dropped"),
    ):
        figures = stream[way]
        yield (
            f"| {stream['bytes'] >> 20} MiB {words} | {figures['gb_s']:.2f} GB/s | {figures['share']:.0%} of a bare stream, "
            f"{figures['bare_gb_s']:.2f} GB/s; through memory {figures['memory_gb_s']:.1f} GB/s | {stream['bar']:.0%} |"
        )


def _loops(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    yield ""
    yield "## Loops on a server"
    yield ""
    yield f"M = N = {found['points']:,}, D = 3, float32; one call each, whose arrays are new and so are sent. The link is a relay of"
    yield f"{found['bits_per_s'] / 1e6:g} Mbit/s and {1e3 * found['round_trip_s']:g} ms round trip; one upload is the bytes of the arrays at that speed and one round trip."
    yield f"`python -m benchmarks.loops --json`, on {_machine(found['machine'])}, {found['rounds']} rounds, {found['taken']};"
    yield f"other processes used {found['others_cores']:.2f} cores meanwhile."
    yield ""
    yield "| | in process | over gRPC on loopback | over the link | less one upload | in units of in process | bar | pykeops, in process |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in found["loops"].values():
        s = row["seconds"]
        peer = f"{s['pykeops']:.2f} s" if "pykeops" in s else "–"
        yield (
            f"| {row['title']} | {s['embedded']:.2f} s | {s['grpc']:.2f} s | {s['link']:.2f} s | {s['link'] - s['upload']:.2f} s "
            f"| {row['link_ratio']:.2f} | {row['bar']} | {peer} |"
        )


def _culling(culled: Mapping[str, Any] | None) -> Iterator[str]:
    if culled is None:
        return
    yield "## Exact tile culling"
    yield ""
    yield "Time against N where few pairs count, in D = 3: the nearest neighbour, and a Gaussian sum whose width shrinks"
    yield f"with N. `python -m benchmarks.culling --json`, on {_machine(culled['machine'])}, {culled['taken']}."
    yield ""
    yield "| | N | culled | every pair | largest difference |"
    yield "|---|---|---|---|---|"
    for name, rows in culled["series"].items():
        for row in rows:
            full = f"{row['full_s']:.2f} s | {row['difference']:.1e}" if "full_s" in row else "–| –"
            yield f"| {name} | {row['n']:,} | {row['culled_s']:.3f} s | {full} |"
    yield ""
    yield "![Time against N, with culling and with every pair](plots/culling.svg)"


def _shifted(shifted: Mapping[str, Any] | None) -> Iterator[str]:
    if shifted is None:
        return
    yield ""
    yield "## Errors of shifted clouds and of long sums"
    yield ""
    yield "A Gaussian sum and the nearest neighbour in float32, D = 3, against float64: the largest relative error, and the"
    yield "share of rows whose neighbour is not the nearest. The unit cube is shifted by the offset along every axis."
    yield f"`python -m benchmarks.shifted --json`, {shifted['taken']}."
    yield ""
    yield "| offset | N | error of the sum | wrong neighbours |"
    yield "|---|---|---|---|"
    for row in shifted["rows"]:
        yield f"| {row['offset']:,} | {row['n']:,} | {row['sum_error']:.1e} | {100 * row['argmin_wrong']:.1f} % |"


def _products(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    yield ""
    yield "## Distances from scalar products"
    yield ""
    yield "A Gaussian sum in float32 by differences and by |x|² + |y|² − 2 x·y, and the error of such a distance in units of"
    yield "2⁻²⁴ (|x|² + |y|²): root mean square, and the largest in brackets. The certificate counts on 4"
    yield "([decision 0007](decisions/0007-distances-by-products-under-a-certificate.md))."
    yield f"`python -m benchmarks.products --json`, {found['taken']}."
    yield ""
    kinds = list(found["rows"][0]["errors"])
    yield f"| D | by differences | by products | times as fast | {' | '.join(kinds)} |"
    yield "|---|---|---|---|" + "---|" * len(kinds)
    for row in found["rows"]:
        errors = " | ".join(f"{rms:.2f} ({most:.1f})" for rms, most in row["errors"].values())
        slow, fast = row["differences_ms"], row["products_ms"]
        yield f"| {row['d']:,} | {slow:.1f} ms | {fast:.1f} ms | {slow / fast:.2f} | {errors} |"


def _threads(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    cores, starts = found["threads"], {int(n): us for n, us in found["starts_us"].items()}
    most = max(starts)
    yield ""
    yield "## More cores"
    yield ""
    yield f"Measured on {cores} threads, and what follows for 64. Threads share nothing but a counter that tasks are drawn from,"
    yield "one atomic addition for each task of ten microseconds or more, and rows of the answer belong to one task. So a"
    yield "job on t threads takes its serial part, the start of its threads one after the other, and its work divided by t; the"
    yield f"plan takes the t for which that is least. Starting {most} threads took {starts[most]:.0f} µs,"
    yield f"{starts[most] / (most - 1):.0f} µs each. What this leaves out is the width of memory: a task reads each column once for"
    yield "48 or more rows, about a byte for every thirty multiply-adds at D = 3, mostly from its own cache."
    yield f"`python -m benchmarks.threads --json`, {found['taken']}."
    yield ""
    yield f"| Gaussian sum, D = 3 | 1 thread | {cores} threads | times as fast | serial part | threads of 64 | would be times as fast |"
    yield "|---|---|---|---|---|---|---|"
    for row in found["rows"]:
        yield (
            f"| {row['size']:,} × {row['size']:,} | {row['one_ms']:.2f} ms | {row['all_ms']:.2f} ms | "
            f"{row['one_ms'] / row['all_ms']:.2f} | {row['serial_us']:.0f} µs | {row['threads_of_64']} | "
            f"{row['speedup_of_64']:.0f} |"
        )


def _machine(m: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in m["packages"].items() if version)
    return f"{m['cpu']}, {m['cores']} cores, {m['memory_gb']} GB, {m['system']}, Python {m['python']}; {packages}"


def _peers(workloads: Mapping[str, Any]) -> list[str]:
    """In the order in which they first appear, which is that of the table of peers."""
    return list(dict.fromkeys(n for row in workloads.values() for n in row["figures"] if n != "farsum"))


def _ratios(workloads: Mapping[str, Any]) -> Iterator[str]:
    peers = _peers(workloads)
    yield "## How many times as fast"
    yield ""
    yield "*Best*: the fastest peer whose error is within ten times ours. *Peak*: the share of the multiply-adds that the"
    yield "machine gave in the same rounds; where the clock of a shared machine moves between two calls, it can pass 100 %."
    yield "In brackets: a peer less exact than that."
    yield ""
    yield f"| | Workload | Size | Gpairs/s | {' | '.join(peers)} | Best | Peak |"
    yield "|---|---|---|" + "--:|" * (len(peers) + 3)
    for name, row in workloads.items():
        figures = row["figures"]
        cells = [_ratio(row, peer) for peer in peers]
        best = f"{row['best_ratio']:.2f}" if row["best_peer"] else ""
        kind = "" if row["dtype"] == "float32" else f", {row['dtype']}"
        yield (
            f"| {name} | {row['title']}{kind} | {row['sizes']} | {figures['farsum']['gpairs_s']:.2f} | "
            f"{' | '.join(cells)} | {best} | {100 * row['peak_share']:.0f} % |"
        )
    yield ""


def _ratio(row: Mapping[str, Any], peer: str) -> str:
    if peer not in row["figures"]:
        return "failed" if row["missing"].get(peer, "absent") != "absent" else ""
    ratio = row["figures"][peer]["ratio"]
    text = f"{ratio:.1f}" if ratio >= 10 else f"{ratio:.2f}"
    # The best is the least ratio of the peers that are exact enough, so what is below it is not.
    return f"({text})" if row["best_ratio"] is None or ratio < row["best_ratio"] else text


def _bars(workloads: Mapping[str, Any]) -> Iterator[str]:
    yield "## The bars"
    yield ""
    yield "| | Against | Bar | Reached | |"
    yield "|---|---|--:|--:|---|"
    for name, row in workloads.items():
        for peer, bar in row["bars"].items():
            against = f"best peer: {row['best_peer']}" if peer == "best" and row["best_peer"] else peer
            reached = "" if bar["ratio"] is None else f"{bar['ratio']:.2f}"
            verdict = bar_line(bar).split(" ", 1)[1].split(":")[0]
            yield f"| {name} | {against} | {bar['bar']:g} | {reached} | {verdict} |"
    yield ""


def _details(workloads: Mapping[str, Any]) -> Iterator[str]:
    yield "## Times, errors, first calls"
    yield ""
    yield "The error is the largest over the checked rows against dense float64, relative to the sum of the absolute values"
    yield "of the terms; of neighbours, how much farther than the true ones they are, relative to the mean squared distance."
    yield "*First call*: packages imported, no compiled code on the disk; what an earlier row compiled is warm."
    yield ""
    yield "| | | Wall ms | CPU ms | Gpairs/s | Ratio by CPU | Error | First call s |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for name, row in workloads.items():
        for who, f in row["figures"].items():
            by_cpu = f"{f['cpu_ratio']:.2f}" if "cpu_ratio" in f else ""
            yield (
                f"| {name} | {who} | {1e3 * f['median_s']:.2f} | {1e3 * f['cpu_s']:.2f} | {f['gpairs_s']:.3f} | "
                f"{by_cpu} | {f['max_relative_error']:.1e} | {f['first_call_s']:.2f} |"
            )
    yield ""
    missing = {(peer, why) for row in workloads.values() for peer, why in row["missing"].items()}
    for peer, why in sorted(missing):
        yield f"- {peer}: {why}"
    if missing:
        yield ""


# ── the plots ───────────────────────────────────────────────────────────────────────────────────────


def _file(sweep: str) -> str:
    return f"sweep-{sweep.lower()}.svg"


def drawn(
    found: Mapping[str, Any], sweeps: Mapping[str, Any] | None, culled: Mapping[str, Any] | None, folder: Path
) -> Iterator[str]:
    """The names of the plots, each written."""
    import matplotlib

    matplotlib.use("svg")
    # The same figures give the same file.
    matplotlib.rcParams |= {"svg.hashsalt": "farsum", "svg.fonttype": "none", "font.family": "sans-serif"}
    from matplotlib import pyplot

    def kept(name: str, figure: Any) -> str:
        figure.savefig(folder / name, metadata={"Date": None}, bbox_inches="tight")
        pyplot.close(figure)
        return name

    yield kept("ratios.svg", _draw_ratios(pyplot, found["workloads"]))
    for name, sweep in (sweeps or {"sweeps": {}})["sweeps"].items():
        yield kept(_file(name), _draw_sweep(pyplot, sweep))
    if culled:
        yield kept("culling.svg", _draw_culling(pyplot, culled["series"]))


def _draw_culling(pyplot: Any, series: Mapping[str, Any]) -> Any:
    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for (name, rows), colour in zip(series.items(), COLOURS, strict=False):
        axes.plot(
            [r["n"] for r in rows],
            [r["culled_s"] for r in rows],
            "o-",
            color=colour,
            label=name,
            markersize=3,
        )
        full = [r for r in rows if "full_s" in r]
        axes.plot(
            [r["n"] for r in full],
            [r["full_s"] for r in full],
            "--",
            color=colour,
            label=f"{name}, every pair",
        )
    axes.set(xscale="log", yscale="log", xlabel="M = N", ylabel="seconds")
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(frameon=False)
    return figure


def _draw_ratios(pyplot: Any, workloads: Mapping[str, Any]) -> Any:
    figure, axes = pyplot.subplots(figsize=(8, 0.35 * len(workloads) + 1.6))
    places = {name: -k for k, name in enumerate(workloads)}
    for k, peer in enumerate(_peers(workloads)):
        at = [
            (row["figures"][peer]["ratio"], places[n])
            for n, row in workloads.items()
            if peer in row["figures"]
        ]
        mark = "o" if k < len(COLOURS) else "^"
        axes.plot(*zip(*at, strict=True), mark, color=COLOURS[k % len(COLOURS)], label=peer, markersize=5)
    axes.axvline(1.0, color=OURS, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("wall time, in units of farsum's")
    axes.set_yticks(list(places.values()), [f"{n}  {workloads[n]['title']}" for n in places])
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def _draw_sweep(pyplot: Any, sweep: Mapping[str, Any]) -> Any:
    """Pairs and multiply-adds per second, next to each other."""
    figure, (pairs, adds) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    points = sweep["points"]
    for who, colour in (("farsum", OURS), ("pykeops", COLOURS[1])):
        here = [point for point in points if who in point["figures"]]
        values = [point["value"] for point in here]
        rates = [point["figures"][who]["gpairs_s"] for point in here]
        work = [rate * point["fma_per_pair"] for rate, point in zip(rates, here, strict=True)]
        if here:
            pairs.plot(values, rates, "o-", color=colour, label=who, markersize=3)
            adds.plot(values, work, "o-", color=colour, label=who, markersize=3)
            adds.set_ylim(bottom=min(1.0, *work, adds.get_ylim()[0]))
    adds.plot(
        [point["value"] for point in points],
        [point["fma_peak_g"] for point in points],
        color="#999999", linestyle="--", label="peak of the machine",
    )  # fmt: skip
    for axes, what in ((pairs, "G pairs / s"), (adds, "G multiply-adds / s")):
        axes.set(xscale="log", yscale="log", xlabel=sweep["axis"], ylabel=what)
        axes.grid(True, which="both", alpha=0.2)
        axes.legend(frameon=False)
    figure.suptitle(sweep["title"])
    return figure


if __name__ == "__main__":
    main()
