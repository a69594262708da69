"""The helpers `Vi`, `Vj`, `Pm`: arrays given now, symbols whose arrays come later, and both in one formula.

Every number is compared with dense NumPy: python examples/vi_vj_pm.py
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from farsum.numpy import LazyTensor, Pm, Vi, Vj

M, N, D, E = 900, 1_100, 3, 4
RNG = np.random.default_rng(0)


def main() -> int:
    x, y, b = RNG.standard_normal((M, D)), RNG.standard_normal((N, D)), RNG.standard_normal((N, E))
    widths = np.array([0.5, 1.0, 2.0, 4.0])
    squares = ((x[:, None, :] - y[None, :, :]) ** 2).sum(-1)

    rows_and_columns(x, y, squares)
    one_line_each(x, y, squares)
    several_widths(x, y, b, widths, squares)
    computed_later(x, y, b, widths)
    symbols(x, y, b, widths)
    symbols_and_arrays(x, y, b, widths)
    return 0


def rows_and_columns(x: Any, y: Any, squares: Any) -> None:
    """A matrix of points becomes the rows (i) or the columns (j) of all pairs."""
    D_ij = ((Vi(x) - Vj(y)) ** 2).sum()  # without an axis: over the coordinates, and still a formula
    check("rows by Vi, columns by Vj", D_ij.sum_reduction(axis=1), squares.sum(1)[:, None])
    check("the same over rows", D_ij.sum_reduction(axis=0), squares.sum(0)[:, None])

    spelled = ((LazyTensor(x[:, None, :]) - LazyTensor(y[None, :, :])) ** 2).sum(-1)
    check("the same from 3-D arrays", D_ij.sum(axis=1), spelled.sum(axis=1))
    say(f"{D_ij.shape} pairs; formula {D_ij.formula}")


def one_line_each(x: Any, y: Any, squares: Any) -> None:
    """Operators, methods and slices of vectors."""
    x_i, y_j = Vi(x), Vj(y)

    nearest = ((x_i - y_j) ** 2).sum().argmin(axis=0)
    check("the nearest x of each y", nearest, squares.argmin(0)[:, None])

    powers = np.abs(x @ y.T) ** 1.25
    weights = np.exp(powers - powers.max(1, keepdims=True))
    means = (weights / weights.sum(1, keepdims=True)) @ y
    found = ((x_i | y_j).abs() ** 1.25).sumsoftmaxweight(y_j, axis=1)
    check("softmax means", found, means, 1e-10)

    areas = (x_i[:2] * y_j[1:] - x_i[1:] * y_j[:2]).sqnorm2()
    dense = ((x[:, None, :2] * y[None, :, 1:] - x[:, None, 1:] * y[None, :, :2]) ** 2).sum((1, 2))
    check("slices of vectors", areas.sum(axis=1), dense[:, None])


def several_widths(x: Any, y: Any, b: Any, widths: Any, squares: Any) -> None:
    """A sum of Gaussians: a Python loop over numbers, or one vector of parameters."""
    D_ij = Vi(x).sqdist(Vj(y))
    dense = mixture(squares, widths) @ b

    looped = sum((-D_ij / width**2).exp() for width in widths.tolist())
    check("widths in a loop", looped @ b, dense)
    at_once = (-D_ij / Pm(widths) ** 2).exp().sum()
    check("widths as a parameter", at_once @ b, dense)
    bare = (-D_ij / widths**2).exp().sum()  # a 1-D array is a parameter by itself
    check("widths as an array", (bare * Vj(b)).sum_reduction(axis=1), dense)


def computed_later(x: Any, y: Any, b: Any, widths: Any, calls: int = 100) -> None:
    """call=False gives a function, which reads its arrays anew at each call."""
    few, fewer, b = x[:50].copy(), y[:30].copy(), b[:30].copy()
    D_ij = Vi(few).sqdist(Vj(fewer))
    later = ((-D_ij / widths**2).exp().sum() * Vj(b)).sum_reduction(axis=1, call=False)

    def dense() -> Any:
        return mixture(((few[:, None, :] - fewer[None, :, :]) ** 2).sum(-1), widths) @ b

    check("computed later", later(), dense())
    few *= 1.5
    b += 1
    check("after a change in place", later(), dense())

    begun = time.perf_counter()
    for _ in range(calls):
        ((-D_ij / widths**2).exp().sum() * Vj(b)).sum_reduction(axis=1)
    written = time.perf_counter()
    for _ in range(calls):
        later()
    called = time.perf_counter()
    each, once = (1e3 * took / calls for took in (written - begun, called - written))
    say(f"a small sum: {each:.2f} ms when written each time, {once:.2f} ms when written once and called")


def symbols(x: Any, y: Any, b: Any, widths: Any) -> None:
    """A place among the arguments and a dimension in place of an array: the sum is a function of arrays."""
    x_i, y_j, b_j, w = Vi(0, D), Vj(1, D), Vj(2, E), Pm(3, len(widths))
    K_ij = (-((x_i - y_j) ** 2).sum() / w**2).exp().sum()
    blur = (K_ij * b_j).sum_reduction(axis=1)

    for m, n in ((M, N), (7, 11)):
        squares = ((x[:m, None, :] - y[None, :n, :]) ** 2).sum(-1)
        found = blur(x[:m], y[:n], b[:n], widths)
        check(f"symbols on {m} x {n} rows", found, mixture(squares, widths) @ b[:n])


def symbols_and_arrays(x: Any, y: Any, b: Any, widths: Any) -> None:
    """A function of y alone: the other arrays are in the formula. Symbols keep their numbers, arrays follow."""
    x, b = x[:50], b[:30]
    K_ij = (-((Vi(x) - Vj(0, D)) ** 2).sum() / widths**2).exp().sum()
    blur = (K_ij * Vj(b)).sum_reduction(axis=1)

    for shift in (0.0, 1.0):
        columns = y[:30] + shift
        squares = ((x[:, None, :] - columns[None, :, :]) ** 2).sum(-1)
        check("symbols and arrays", blur(columns), mixture(squares, widths) @ b)
    print(blur)
    square = "Sum(Square((Var(1,3,0) - Var(0,3,1))))"
    check_text(blur, f"formula: (Sum(Exp((Minus({square}) / Var(2,4,2)))) * Var(3,4,1))")
    check_text(blur, "symbolic variables: Var(0, 3, 1)")
    check_text(blur, "shape: (50, 30, 4)")
    check_text(blur, "reduction: Sum (axis=1)")


def mixture(squares: Any, widths: Any) -> Any:
    """The sum over widths of exp(-d²/w²), dense."""
    return np.exp(-squares[..., None] / widths**2).sum(-1)


# ── words ─────────────────────────────────────────────────────────────────────────────────────────


def check(what: str, found: Any, truth: Any, tolerance: float = 1e-11) -> None:
    """Print how far apart the two are; end the script where that is too far."""
    if np.shape(found) != np.shape(truth):
        sys.exit(f"{what}: the shape is {np.shape(found)} and should be {np.shape(truth)}")
    error = np.abs(np.subtract(found, truth)).max() / np.abs(truth).max()
    if not error <= tolerance:
        sys.exit(f"{what}: wrong, the relative error is {error:.1e}")
    say(f"{what}: relative error {error:.0e}")


def check_text(printed: Any, line: str) -> None:
    """End the script where the text lacks the line."""
    lines = [each.strip() for each in str(printed).splitlines()]
    if line not in lines:
        sys.exit(f"the text should have the line {line!r}, and has {lines}")


def say(text: str) -> None:
    print(f"  {text}")


if __name__ == "__main__":
    sys.exit(main())
