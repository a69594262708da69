"""Squared distances from norms and scalar products: how far they are from exact ones, and what they save.

The error of a distance is given in units of 2^-24 (|x|² + |y|²), with |x| and |y| the largest norms, on float32 points
after centring as the engine does it: the certificate counts on GROWTH of them. The time is that of a Gaussian sum
in both forms, the one by differences forced by a bandwidth per row.

    python -m benchmarks.products [--quick] [--json]
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks.measure import Others, interleaved, machine_line, median, save, timed, warn_if_disturbed
from farsum.numpy import Genred, Vi, Vj
from farsum_kernels.backends.certified import GROWTH, at_centre

Array = np.ndarray[Any, Any]

DIMS = (8, 32, 100, 320, 1000, 4096)
KINDS = ("uniform", "normal", "along one direction", "shifted by 1000")
ROWS, ROUNDS = 400, 7


def cloud(kind: str, rows: int, d: int, rng: np.random.Generator) -> Array:
    match kind:
        case "normal":
            made = rng.standard_normal((rows, d))
        case "along one direction":  # every product has one sign: rounding adds up the most
            made = rng.random((rows, 1)) * (1 + 0.01 * rng.random((rows, d)))
        case _:
            made = rng.random((rows, d)) + (1000 if kind.startswith("shifted") else 0)
    return made.astype(np.float32)


def errors(kind: str, d: int) -> tuple[float, float]:
    """The root mean square and the largest error of distances by products."""
    rng = np.random.default_rng(0)
    moved = at_centre(cloud(kind, ROWS, d, rng), cloud(kind, ROWS, d, rng))
    assert moved  # they are small
    x, y = moved
    x_i, y_j = Vi(x), Vj(y)
    found = (x_i.sqnorm2() + y_j.sqnorm2() - 2 * (x_i | y_j)).dense()
    exact = np.stack([((row - y.astype(float)) ** 2).sum(-1) for row in x.astype(float)])
    unit = 2.0**-24 * float((x.astype(float) ** 2).sum(-1).max() + (y.astype(float) ** 2).sum(-1).max())
    error = np.abs(found.reshape(exact.shape) - exact) / unit
    return float(np.sqrt((error**2).mean())), float(error.max())


def times(d: int, quick: bool) -> tuple[float, float]:
    """Milliseconds of a Gaussian sum by differences and by products, medians."""
    size = 600 if quick else max(1024, min(10_240, int((5e9 / d) ** 0.5)))
    rng = np.random.default_rng(0)
    x, y = (rng.random((size, d), dtype=np.float32) for _ in range(2))
    b, g = rng.random((size, 1), dtype=np.float32), np.array([2.0 / d], np.float32)
    kinds = [f"x = Vi({d})", f"y = Vj({d})", "b = Vj(1)"]
    products = Genred("Exp(-g * SqDist(x, y)) * b", [*kinds, "g = Pm(1)"])
    differences = Genred("Exp(-g * SqDist(x, y)) * b", [*kinds, "g = Vi(1)"])
    each = np.full((size, 1), g[0], np.float32)
    runs = interleaved(
        {
            "differences": lambda: timed(lambda: differences(x, y, b, each)),
            "products": lambda: timed(lambda: products(x, y, b, g)),
        },
        3 if quick else ROUNDS,
    )
    slow, fast = (1e3 * median([wall for wall, _ in runs[name]]) for name in ("differences", "products"))
    return slow, fast


def main() -> None:
    parser = argparse.ArgumentParser(description="Distances by products: error and time.")
    parser.add_argument("--quick", action="store_true", help="small: that it runs")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/products.json")
    options = parser.parse_args()
    print(
        f"squared distances by products, float32; the certificate counts on {GROWTH:.0f}\n  {machine_line()}"
    )
    others, rows = Others(), []
    for d in DIMS[:2] if options.quick else DIMS:
        found = {kind: errors(kind, d) for kind in KINDS}
        slow, fast = times(d, options.quick)
        rows.append({"d": d, "errors": found, "differences_ms": slow, "products_ms": fast})
        print(
            f"  D={d:<5} {slow:8.2f} ms by differences, {fast:8.2f} by products, {slow / fast:.2f} times as fast"
        )
        for kind, (rms, largest) in found.items():
            print(f"    {kind:<20} error {rms:5.2f} (root mean square), {largest:5.2f} (largest)")
    warn_if_disturbed(cores := others.cores())
    if options.json:
        print(f"  wrote {save('products', {'workload': 'products', 'others_cores': cores, 'rows': rows})}")


if __name__ == "__main__":
    main()
