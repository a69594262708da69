"""Exact tile culling: time against N where few pairs count, with culling and with every pair.

Points uniform in the unit cube, D = 3, float32, M = N. The nearest neighbour of each point, and a Gaussian sum whose
width shrinks with the distance of neighbours, so that each point meets as many others at every N: both are to grow
like N. Every pair is computed too where that takes seconds, and the answers are compared.

    python -m benchmarks.culling [--quick] [--json]
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks.measure import (
    Others,
    interleaved,
    machine_line,
    median,
    save,
    table,
    timed,
    warn_if_disturbed,
)

SIZES = (10_000, 22_000, 46_000, 100_000, 220_000, 460_000, 1_000_000)
FULL_UP_TO = 220_000
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description="Exact tile culling: time against N.")
    parser.add_argument("--quick", action="store_true", help="small and few: only that it runs")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/culling.json")
    options = parser.parse_args()
    print(f"culling: D=3, float32, M=N, {ROUNDS} interleaved rounds\n  {machine_line()}", flush=True)
    others = Others()
    found: dict[str, list[dict[str, Any]]] = {}
    for name in ("nearest neighbour", "Gaussian sum"):
        found[name] = [measured(name, n) for n in (SIZES[1:2] if options.quick else SIZES)]
        table(
            [
                (f"{name}, N={row['n']:,}", f"{1e3 * row['culled_s']:,.0f} ms", _words(row))
                for row in found[name]
            ]
        )
    disturbed = others.cores()
    warn_if_disturbed(disturbed)
    if options.json:
        about = {
            "workload": "culling",
            "rounds": ROUNDS,
            "others_cores": round(disturbed, 3),
            "series": found,
        }
        print(f"  wrote {save('culling', about)}")


def _words(row: dict[str, Any]) -> str:
    if "full_s" not in row:
        return ""
    return f"every pair {1e3 * row['full_s']:,.0f} ms; largest difference {row['difference']:.1e}"


def measured(name: str, n: int) -> dict[str, Any]:
    """Seconds with culling and without, and how far apart the answers are."""
    reduced = job(name, n)
    calls = {"culled": lambda: timed(reduced)}
    reduced()
    row: dict[str, Any] = {"n": n}
    if n <= FULL_UP_TO:
        row["difference"] = difference(reduced(), _every_pair(reduced))
        calls["full"] = lambda: timed(lambda: _every_pair(reduced))
    for who, times in interleaved(calls, ROUNDS).items():
        row[f"{who}_s"] = median([t[0] for t in times])
    return row


def job(name: str, n: int) -> Any:
    from farsum.numpy import Vi, Vj

    rng = np.random.default_rng(0)
    x, y, b = (rng.random((n, d), dtype=np.float32) for d in (3, 3, 1))
    distance: Any = Vi(x).sqdist(Vj(y))
    if name == "nearest neighbour":
        return distance.argmin(axis=1, call=False)
    sigma = 0.1 * n ** (-1 / 3)  # a term is 0 past 14 of them
    return ((-distance / (2 * sigma**2)).exp() * Vj(b)).sum(axis=1, call=False)


def _every_pair(reduced: Any) -> Any:
    from farsum_kernels.backends import culling

    held, culling.MIN_PAIRS = culling.MIN_PAIRS, 1 << 62
    try:
        return reduced()
    finally:
        culling.MIN_PAIRS = held


def difference(a: Any, b: Any) -> float:
    """The share of indices that differ, or the largest relative difference of sums."""
    if a.dtype == np.int64:
        return float((a != b).mean())
    return float(np.abs(a - b).max() / np.abs(b).max())


if __name__ == "__main__":
    main()
