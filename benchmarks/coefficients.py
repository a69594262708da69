"""Where the polynomials of asin, acos, atan, atan2 and pow on the CPU come from: a Remez exchange in decimals.

Each fit is minimax in the relative error of the whole function. Coefficients are rounded to their dtype from
the lowest power up, and what is left is fitted anew after each, so that the rounding costs nothing.

    python -m benchmarks.coefficients

prints the tables of `farsum_kernels/backends/cpu/coefficients.py` with the error that each has reached.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, getcontext
from functools import cache
from math import cos, pi

DIGITS = 45
GRID = 40  # points of the grid per coefficient
SMALL = Decimal("0.02")  # below this z the target is summed as a series: the closed form cancels there

Number = Decimal
Curve = Callable[[Number], Number]
SETTLED = Decimal("0.001")  # the exchange ends when the largest error is so near the levelled one
ONE = Decimal(1)


def _series(z: Number, term: Callable[[int], Number]) -> Number:
    """Σ term(k)·z^k."""
    total, power, k = Number(0), Number(1), 0
    while abs(power) > Number(10) ** -DIGITS:
        total += term(k) * power
        power *= z
        k += 1
    return total


def _atan(t: Number) -> Number:
    for _ in range(4):
        t /= 1 + (1 + t * t).sqrt()
    return 16 * t * _series(t * t, lambda k: Number((-1) ** k) / (2 * k + 1))


def _asin(t: Number) -> Number:
    return _atan(t / (1 - t * t).sqrt())


def _atanh(t: Number) -> Number:
    return ((1 + t) / (1 - t)).ln() / 2


@cache
def _asin_term(k: int) -> Number:
    """The coefficient of t^(2k+1) in asin(t)."""
    if k == 0:
        return Number(1)
    return _asin_term(k - 1) * (2 * k - 1) ** 2 / (2 * k * (2 * k + 1))


@dataclass(frozen=True)
class Fit:
    """F(t)/t = Σ_(k < skip) term(k)·z^k + z^skip·P(z), z = t² <= top: P is what is fitted, times `scale`."""

    name: str
    kind: str  # "float", "double"
    function: Curve
    term: Callable[[int], Number]
    skip: int
    top: Number
    count: int
    scale: Number = ONE

    def target(self, z: Number) -> Number:
        if z < SMALL:
            return self.scale * _series(z, lambda k: self.term(k + self.skip))
        t = z.sqrt()
        known = sum((self.term(k) * z**k for k in range(self.skip)), Number(0))
        return self.scale * (self.function(t) / t - known) / z**self.skip

    def weight(self, z: Number) -> Number:
        """What an error of P does to F, relative to F."""
        t = z.sqrt()
        return z**self.skip * t / self.function(t) / self.scale


def _rounded(value: Number, kind: str) -> Number:
    near = float(value)
    return Number(struct.unpack("<f", struct.pack("<f", near))[0] if kind == "float" else near)


def _solved(rows: list[list[Number]]) -> list[Number]:
    """The solution of a linear system, its right side last in each row."""
    n = len(rows)
    for k in range(n):
        pivot = max(range(k, n), key=lambda r: abs(rows[r][k]))
        rows[k], rows[pivot] = rows[pivot], rows[k]
        for r in range(k + 1, n):
            ratio = rows[r][k] / rows[k][k]
            rows[r] = [a - ratio * b for a, b in zip(rows[r], rows[k], strict=True)]
    found: list[Number] = [Number(0)] * n
    for k in range(n - 1, -1, -1):
        known = sum((rows[k][c] * found[c] for c in range(k + 1, n)), Number(0))
        found[k] = (rows[k][n] - known) / rows[k][k]
    return found


def _value(coefficients: Sequence[Number], z: Number) -> Number:
    total = Number(0)
    for c in reversed(coefficients):
        total = total * z + c
    return total


def _peaks(errors: list[Number]) -> list[int]:
    """The place of the largest error in each stretch of one sign."""
    places: list[int] = []
    for n, error in enumerate(errors):
        if places and (error > 0) == (errors[places[-1]] > 0):
            if abs(error) > abs(errors[places[-1]]):
                places[-1] = n
        else:
            places.append(n)
    return places


def minimax(fit: Fit) -> tuple[list[float], float]:
    """The coefficients, lowest power first, and the largest relative error that they leave in F."""
    size = GRID * fit.count
    grid = [fit.top * Number(1 - cos(pi * (n + 1) / size)) / 2 for n in range(size)]
    targets, weights = [fit.target(z) for z in grid], [fit.weight(z) for z in grid]
    fixed: list[Number] = []
    places = [size * (n + 1) // (fit.count + 2) for n in range(fit.count + 1)]
    while len(fixed) < fit.count:
        free = range(len(fixed), fit.count)
        for _ in range(30):
            rows = [
                [grid[p] ** k for k in free] + [(-1) ** n / weights[p], targets[p] - _value(fixed, grid[p])]
                for n, p in enumerate(places)
            ]
            *found, level = _solved(rows)
            whole = fixed + found
            errors = [w * (_value(whole, z) - t) for z, t, w in zip(grid, targets, weights, strict=True)]
            peaks = _peaks(errors)
            while len(peaks) > len(places):
                peaks.pop(0 if abs(errors[peaks[0]]) < abs(errors[peaks[-1]]) else -1)
            worst = max(map(abs, errors))
            if worst - abs(level) <= SETTLED * worst or len(peaks) < len(places):
                break
            places = peaks
        fixed.append(_rounded(found[0], fit.kind))
        places = places[1:]
    errors = [w * (_value(fixed, z) - t) for z, t, w in zip(grid, targets, weights, strict=True)]
    return [float(c) for c in fixed], float(max(map(abs, errors)))


def fits() -> Iterator[Fit]:
    quarter = Number("0.25")
    root_half = Number("0.5").sqrt()
    reduced = ((1 - root_half) / (1 + root_half)) ** 2  # s² at the edge of [√½, √2], s = (m-1)/(m+1)
    two_over_ln2 = 2 / Number(2).ln()

    def of_atan(k: int) -> Number:
        return Number((-1) ** k) / (2 * k + 1)

    def of_atanh(k: int) -> Number:
        return Number(1) / (2 * k + 1)

    yield Fit("ATAN", "float", _atan, of_atan, 1, ONE, 8)
    yield Fit("ATAN", "double", _atan, of_atan, 1, ONE, 19)
    yield Fit("ASIN", "float", _asin, _asin_term, 1, quarter, 5)
    yield Fit("ASIN", "double", _asin, _asin_term, 1, quarter, 12)
    yield Fit("LOG2_SHORT", "double", _atanh, of_atanh, 0, reduced, 5, two_over_ln2)
    yield Fit("LOG2_LONG", "double", _atanh, of_atanh, 2, reduced, 7, Number(3))


def main() -> None:
    getcontext().prec = DIGITS + 10
    for fit in fits():
        coefficients, error = minimax(fit)
        print(f"{fit.name} {fit.kind}, error {error:.1e}\n    {tuple(coefficients)}")


if __name__ == "__main__":
    main()
