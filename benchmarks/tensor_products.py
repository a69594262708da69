"""Scalar products of float16 halves as tensor cores may add them up: how far they are from exact ones. A model, no card.

A vector is a sum of two float16 numbers for each component; of the four products of halves three are taken, sixteen
components at a time, each sixteen by themselves and added up in float32. Inside one sixteen a tensor core aligns the
products to the largest and cuts off what sticks out, and the sum: how much sticks out differs between generations and
is published from measurements alone, so all that is known is tried: eight or sixteen products at a time, and no, one
or two bits kept beside those of a float32. The error of a squared distance is given in units of 2^-24 (|x|² + |y|²), with the largest
norms, as in `benchmarks.products`, for the worst of these cards: the certificate counts on TENSOR_GROWTH of them.

    python -m benchmarks.tensor_products [--quick] [--json]
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks.measure import save
from benchmarks.products import KINDS, cloud
from farsum_kernels.backends.certified import TENSOR_GROWTH, at_centre
from farsum_kernels.backends.cuda.tensor_layout import TRIPLES

Array = np.ndarray[Any, Any]

DIMS = (3, 4, 5, 8, 10, 16, 32, 100, 320, 1000, 1024)
CARDS = [(at_once, bits) for at_once in (8, 16) for bits in (0, 1, 2)]
ROWS = 200
ONE_SIDED = "uniform, as they are"  # products of one sign: what is cut off adds up


def halves(points: Array) -> tuple[Array, Array]:
    """Two float16 numbers for each component, in float64."""
    high = points.astype(np.float16).astype(float)
    return high, (points - high).astype(np.float16).astype(float)


def cut(values: Array, step: Array) -> Array:
    """Towards zero, to whole steps."""
    return np.trunc(values / step) * step


def unit_of(values: Array, bits: int) -> Array:
    """The last place of a float32 of this size, and `bits` places more."""
    _, exponent = np.frexp(values)
    return np.ldexp(1.0, np.maximum(exponent, -120) - 24 - bits)


def mma(total: Array, a: Array, b: Array, at_once: int, bits: int) -> Array:
    """total + a · b over up to sixteen components, as a tensor core may compute it."""
    for first in range(0, a.shape[1], at_once):
        terms = a[:, None, first : first + at_once] * b[None, :, first : first + at_once]
        largest = np.maximum(np.abs(terms).max(-1), np.abs(total))
        step = unit_of(largest, bits)
        exact = cut(terms, step[..., None]).sum(-1) + cut(total, step)
        total = cut(exact, unit_of(np.abs(exact), 0))
    return total


def product(x: Array, y: Array, at_once: int, bits: int) -> Array:
    """The scalar products of all pairs, in the order of the kernel."""
    (x_high, x_low), (y_high, y_low) = halves(x), halves(y)
    zero = np.zeros((len(x), len(y)))
    if x.shape[1] <= TRIPLES:
        a = np.stack([x_high, x_high, x_low], -1).reshape(len(x), -1)
        b = np.stack([y_high, y_low, y_high], -1).reshape(len(y), -1)
        return mma(zero, a, b, at_once, bits)
    total = zero.astype(np.float32)
    for first in range(0, x.shape[1], 16):
        part = slice(first, first + 16)
        small = mma(zero, x_high[:, part], y_low[:, part], at_once, bits)
        small = mma(small, x_low[:, part], y_high[:, part], at_once, bits)
        total += mma(small, x_high[:, part], y_high[:, part], at_once, bits).astype(np.float32)
    return total.astype(float)


def errors(kind: str, d: int, rows: int, at_once: int, bits: int) -> tuple[float, float, float]:
    """Of squared distances: the mean error, the root mean square and the largest."""
    rng = np.random.default_rng(0)
    clouds = cloud(kind, rows, d, rng), cloud(kind, rows, d, rng)
    moved = clouds if kind == ONE_SIDED else at_centre(*clouds)
    assert moved  # they are small
    x, y = (points.astype(float) for points in moved)
    sizes = (x**2).sum(-1), (y**2).sum(-1)
    unit = 2.0**-24 * float(sizes[0].max() + sizes[1].max())
    # As the kernel scales them: both alike, of a product as large as the certificate lets it be.
    scale = np.sqrt(2.4 / np.sqrt(sizes[0].max() * sizes[1].max()))
    found = product(x * scale, y * scale, at_once, bits) / scale**2
    error = -2 * (found - x @ y.T) / unit
    return float(error.mean()), float(np.sqrt((error**2).mean())), float(np.abs(error).max())


def main() -> None:
    parser = argparse.ArgumentParser(description="Products by tensor cores: their error, by a model.")
    parser.add_argument("--quick", action="store_true", help="small: that it runs")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/tensor_products.json")
    options = parser.parse_args()
    print(f"products by tensor cores; the certificate counts on {TENSOR_GROWTH:.0f}")
    rows = []
    for d in DIMS[:3] if options.quick else DIMS:
        for kind in (*KINDS, ONE_SIDED):
            found = {card: errors(kind, d, 40 if options.quick else ROWS, *card) for card in CARDS}
            card = max(found, key=lambda c: found[c][1])
            mean, rms, _ = found[card]
            largest = max(most for _, _, most in found.values())
            rows.append({"d": d, "kind": kind, "mean": mean, "rms": rms, "largest": largest, "card": card})
            print(
                f"  D={d:<5} {kind:<20} mean {mean:6.2f}, root mean square {rms:5.2f}, largest {largest:6.2f}"
                f"  (worst: {card[0]} at once, {card[1]} bits)"
            )
    if options.json:
        print(f"  wrote {save('tensor_products', {'workload': 'tensor_products', 'rows': rows})}")


if __name__ == "__main__":
    main()
