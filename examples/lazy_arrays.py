"""`LazyTensor` around NumPy arrays: all pairs as a formula, reductions over either axis, batches.

Every number is compared with dense NumPy: python examples/lazy_arrays.py
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from farsum.numpy import LazyTensor

RNG = np.random.default_rng(1)


def main() -> int:
    nearest_points()
    both_axes()
    too_large_to_store()
    parameters()
    batches()
    many_operations()
    return 0


def nearest_points(M: int = 1_000, N: int = 2_000) -> None:
    """The same lines for NumPy, which stores all pairs, and for LazyTensor, which does not."""
    x, y = RNG.random((M, 3)), RNG.random((N, 3))
    stored = ((x[:, None, :] - y[None, :, :]) ** 2).sum(-1)

    x_i = LazyTensor(x[:, None, :])  # (M, 1, 3): one row per i
    y_j = LazyTensor(y[None, :, :])  # (1, N, 3): one row per j
    D_ij = ((x_i - y_j) ** 2).sum(-1)
    print(D_ij)
    if "formula: Sum(Square((Var(0,3,0) - Var(1,3,1))))" not in str(D_ij):
        sys.exit("the formula is printed in other words than it should be")

    nearest = D_ij.argmin(axis=1)
    check("index of the nearest y", nearest, stored.argmin(1)[:, None])
    gathered = ((x - y[nearest[:, 0]]) ** 2).sum(-1, keepdims=True)
    check("its squared distance", D_ij.min(axis=1), gathered)


def both_axes(M: int = 300, N: int = 400) -> None:
    """axis=1 leaves a row per i, axis=0 a row per j. The vector axis stays, even where it is 1."""
    x, y, b = RNG.standard_normal((M, 3)), RNG.standard_normal((N, 3)), RNG.standard_normal((N, 2))
    stored = np.sqrt(((x[:, None, :] - y[None, :, :]) ** 2).sum(-1))
    D_ij = ((LazyTensor(x[:, None, :]) - LazyTensor(y[None, :, :])) ** 2).sum(-1).sqrt()

    for axis in (0, 1):
        along, most = f" along axis {axis}", stored.max(axis, keepdims=True)
        log_sums = most + np.log(np.exp(stored - most).sum(axis, keepdims=True))
        three = np.sort(stored, axis).take(range(3), axis)
        if axis == 0:
            most, log_sums, three = most.T, log_sums.T, three.T
        check("sum" + along, D_ij.sum(axis=axis), stored.sum(axis)[:, None])
        check("max" + along, D_ij.max(axis=axis), most)
        check("argmax" + along, D_ij.argmax(axis=axis), stored.argmax(axis)[:, None])
        check("logsumexp" + along, D_ij.logsumexp(axis=axis), log_sums)
        check("the three smallest" + along, D_ij.Kmin(3, axis=axis), three)

    K_ij = (-D_ij).exp()
    check("K @ b", K_ij @ b, np.exp(-stored) @ b)
    check("K @ a vector", K_ij @ b[:, 0], np.exp(-stored) @ b[:, 0])
    check("K.T @ a", K_ij.T @ x, np.exp(-stored).T @ x)


def too_large_to_store(M: int = 20_000, N: int = 30_000, rows: int = 50) -> None:
    """A kernel sum whose matrix would not fit in most laptops; a few rows are compared."""
    x, y = RNG.random((M, 3), dtype=np.float32), RNG.random((N, 3), dtype=np.float32)
    b = RNG.random((N, 1), dtype=np.float32)
    D_ij = ((LazyTensor(x[:, None, :]) - LazyTensor(y[None, :, :])) ** 2).sum(-1)
    a = (-D_ij / 0.1).exp() @ b

    some = RNG.choice(M, rows, replace=False)
    squares = ((x[some, None, :].astype(np.float64) - y[None, :, :]) ** 2).sum(-1)
    say(f"{M:,} x {N:,} pairs in {a.dtype}: a matrix of {4e-9 * M * N:.1f} GB that was never made")
    check(f"K @ b, {rows} rows of it", a[some], np.exp(-squares / 0.1) @ b, 1e-5)


def parameters(M: int = 200, N: int = 250) -> None:
    """Numbers, lists and 1-D arrays are the same for all pairs, and go along with any operation."""
    x, y = RNG.standard_normal((M, 3)), RNG.standard_normal((N, 3))
    scales = np.array([0.5, 1.0, 2.0])
    x_i, y_j = LazyTensor(x[:, None, :]), LazyTensor(y[None, :, :])

    F_ij = ((x_i - y_j) / scales + [1.0, 0.0, -1.0]).abs().sum(-1) * 3 - 0.25
    moved = (x[:, None, :] - y[None, :, :]) / scales + np.array([1.0, 0.0, -1.0])
    check(
        "numbers, a list and an array", F_ij.sum(axis=1), (np.abs(moved).sum(-1) * 3 - 0.25).sum(1)[:, None]
    )


def batches(A: int = 7, B: int = 3, M: int = 60, N: int = 80, D: int = 5) -> None:
    """Axes before the last three are batches; those of length 1 are repeated, as in NumPy."""
    x, y = RNG.standard_normal((A, B, M, 1, D)), RNG.standard_normal((1, B, 1, N, D))
    scale, s = RNG.standard_normal((1, 1, M, 1, D)), RNG.random((A, 1, 1, 1, 1))

    D_ij = ((LazyTensor(scale) * LazyTensor(x) - LazyTensor(y)) ** 2).sum(-1)
    K_ij = (-D_ij / (1 + LazyTensor(s))).exp()
    stored = np.exp(-((scale * x - y) ** 2).sum(-1) / (1 + s[..., 0]))
    if (K_ij.shape, K_ij._shape) != ((A, B, M, N), (A, B, M, N, 1)):
        sys.exit(f"the shapes are {K_ij.shape} and {K_ij._shape}")
    say(f"batches: shape {K_ij.shape}, with the vector axis {K_ij._shape}")
    check(f"{A} x {B} sums over j", K_ij.sum(axis=3), stored.sum(3)[..., None])
    check(f"{A} x {B} minima over i", K_ij.min(axis=2), stored.min(2)[..., None])


def many_operations(A: int = 4, B: int = 3, M: int = 30, N: int = 40, D: int = 10) -> None:
    """Powers, sines, scalar products and components of vectors, broadcast together."""
    x, scale = RNG.random((A, B, M, 1, D)), 1 + RNG.random((1, 1, M, 1, D))
    y, s = RNG.standard_normal((1, B, 1, N, D)), RNG.standard_normal((A, 1, 1, 1, 1))
    x_i, y_j, l_i, p = LazyTensor(x), LazyTensor(y), LazyTensor(scale), LazyTensor(s)

    waves, gate = (x_i**1.5 - y_j * l_i).sin(), x_i[..., 2] * p.relu()
    F_ij = waves * (x_i | y_j) + gate * y_j
    products = (x * y).sum(-1, keepdims=True)
    stored = np.sin(x**1.5 - y * scale) * products + x[..., 2:3] * np.maximum(s, 0) * y
    say(f"formula: {F_ij.formula}")
    for part in ("Powf(Var(0,10,0), Var(1,1,2))", "Elem(Var(0,10,0),2)", "ReLU(Var(4,1,2))"):
        if part not in str(F_ij):
            sys.exit(f"{part} should be in the formula {F_ij}")
    check("many operations, over i", F_ij.sum(axis=2), stored.sum(2))


# ── words ─────────────────────────────────────────────────────────────────────────────────────────


def check(what: str, found: Any, truth: Any, tolerance: float = 1e-12) -> None:
    """Print how far apart the two are; end the script where that is too far."""
    if np.shape(found) != np.shape(truth):
        sys.exit(f"{what}: the shape is {np.shape(found)} and should be {np.shape(truth)}")
    error = np.abs(np.subtract(found, truth)).max() / np.abs(truth).max()
    if not error <= tolerance:
        sys.exit(f"{what}: wrong, the relative error is {error:.1e}")
    say(f"{what}: relative error {error:.0e}")


def say(text: str) -> None:
    print(f"  {text}")


if __name__ == "__main__":
    sys.exit(main())
