"""Errors against float64 where they hide: clouds far from the origin, and sums of very many terms.

A Gaussian sum and the nearest neighbour, D = 3, float32, points uniform in a unit cube that is shifted by an offset
along every axis. The points are rounded to float32 first, so that what is measured is the arithmetic and not the
data. The error of a sum is the largest one, relative to the sum (all terms are positive); of nearest neighbours it
is the share of rows whose choice is farther away than the best, by float64.

    python -m benchmarks.shifted [--quick] [--json]
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks.measure import machine_line, save, table

M, D = 64, 3
SIGMA = 0.5 * D**0.5
OFFSETS = (0, 1, 10, 100, 1000)
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
BLOCK = 1 << 18  # columns that the truth is computed on together


def main() -> None:
    parser = argparse.ArgumentParser(description="Errors for shifted clouds and for very many terms.")
    parser.add_argument("--quick", action="store_true", help="small: only that it runs")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/shifted.json")
    options = parser.parse_args()
    print(f"errors in float32, M={M}, D={D}\n  {machine_line()}")
    cases = [(offset, 100_000) for offset in OFFSETS] + [(0, n) for n in SIZES]
    rows = [measured(offset, n) for offset, n in (cases[:2] if options.quick else dict.fromkeys(cases))]
    table([
        (f"offset {r['offset']:,}, N={r['n']:,}", f"{r['sum_error']:.1e}", f"argmin wrong: {r['argmin_wrong']:.4f}")
        for r in rows
    ])  # fmt: skip
    if options.json:
        print(f"  wrote {save('shifted', {'workload': 'shifted', 'm': M, 'rows': rows})}")


def measured(offset: int, n: int) -> dict[str, Any]:
    from farsum.numpy import Vi, Vj

    rng = np.random.default_rng(0)
    x, y = ((rng.random((rows, D)) + offset).astype(np.float32) for rows in (M, n))
    b = rng.random((n, 1), dtype=np.float32)
    distance: Any = Vi(x).sqdist(Vj(y))
    sums = (-distance / (2 * SIGMA**2)).exp() @ b
    nearest = distance.argmin(axis=1)[:, 0]
    truth, best = exact(x, y, b)
    chosen = ((x.astype(float) - y[nearest].astype(float)) ** 2).sum(-1)
    # A float32 distance cannot tell apart what differs by less than its own rounding.
    wrong = chosen > best * (1 + 4 * np.finfo(np.float32).eps)
    return {
        "offset": offset,
        "n": n,
        "sum_error": float((np.abs(sums[:, 0] - truth) / truth).max()),
        "argmin_wrong": float(wrong.mean()),
    }


def exact(x: Any, y: Any, b: Any) -> tuple[Any, Any]:
    """The sums and the smallest squared distances in float64, by differences."""
    x = x.astype(np.float64)
    total, best = np.zeros(len(x)), np.full(len(x), np.inf)
    for start in range(0, len(y), BLOCK):
        part = y[start : start + BLOCK].astype(np.float64)
        square = sum((x[:, None, k] - part[None, :, k]) ** 2 for k in range(D))
        best = np.minimum(best, np.min(square, axis=1))
        total += np.exp(-square / (2 * SIGMA**2)) @ b[start : start + BLOCK, 0].astype(np.float64)
    return total, best


if __name__ == "__main__":
    main()
