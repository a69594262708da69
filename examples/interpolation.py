"""Kernel interpolation of noisy values, in 1-D and 2-D: `solve` on a LazyTensor, and `KernelSolve`.

Every solution is compared with numpy.linalg.solve on the dense matrix: python examples/interpolation.py
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from sklearn.kernel_ridge import KernelRidge

from farsum.numpy import KernelSolve, LazyTensor, Pm, Vi, Vj

RNG = np.random.default_rng(3)


def main() -> int:
    on_a_line()
    in_the_plane()
    as_text()
    return 0


def on_a_line(N: int = 1_000, sigma: float = 0.1, alpha: float = 1.0) -> None:
    """A noisy wave; the ridge alpha says how far the curve may pass by the values."""
    x = RNG.random((N, 1))
    clean = np.sin(6 * x) + 0.5 * np.cos(15 * x)
    b = clean + 0.2 * RNG.standard_normal((N, 1))

    K_xx = gaussian(Vi(x), Vj(x), sigma)
    a, took = timed(lambda: K_xx.solve(Vi(b), alpha=alpha, eps=1e-9))
    dense = np.exp(-((x - x.T) ** 2) / (2 * sigma**2))
    check(f"1-D, {N} points, {took:.2f} s", a, np.linalg.solve(dense + alpha * np.eye(N), b))
    check("the residual, by K @ a", K_xx @ a + alpha * a, b)

    t = np.linspace(0, 1, 501)[:, None]
    curve = gaussian(Vi(t), Vj(x), sigma) @ a
    waves = np.sin(6 * t) + 0.5 * np.cos(15 * t)
    away = float(np.sqrt(np.mean((curve - waves) ** 2)))
    print(f"  the noise is 0.20, the curve is {away:.2f} away from the clean wave")
    if away > 0.1:
        sys.exit(f"the curve should be within 0.1 of the clean wave, and is {away:.2f} away")


def in_the_plane(N: int = 1_000, sigma: float = 0.15, alpha: float = 0.5) -> None:
    """Two signals at once; the matrix as a function of the right-hand side; scikit-learn's ridge."""
    x = RNG.random((N, 2))
    distance = np.linalg.norm(x - 0.5, axis=1, keepdims=True)
    b = np.hstack([np.exp(-3 * distance), np.cos(9 * x[:, :1]) * x[:, 1:]]) + 0.05 * RNG.standard_normal(
        (N, 2)
    )

    K_xx = gaussian(Vi(x), Vj(x), sigma)
    dense = np.exp(-((x[:, None, :] - x) ** 2).sum(-1) / (2 * sigma**2))
    truth = np.linalg.solve(dense + alpha * np.eye(N), b)
    a, took = timed(lambda: K_xx.solve(Vi(b), alpha=alpha, eps=1e-9))
    check(f"2-D, {N} points, two signals, {took:.2f} s", a, truth)

    inverse = K_xx.solve(Vi(0, 2), alpha=alpha, eps=1e-9)
    check("as a function of the right-hand side", inverse(b[:, ::-1].copy()), truth[:, ::-1])

    side = np.linspace(0, 1, 40)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    ridge = KernelRidge(alpha=alpha, kernel="rbf", gamma=1 / (2 * sigma**2)).fit(x, b)
    values = gaussian(Vi(grid), Vj(x), sigma) @ a
    check(f"on a grid of {len(grid)}, next to scikit-learn's KernelRidge", values, ridge.predict(grid))


def as_text(N: int = 800, alpha: float = 0.3) -> None:
    """The formula as text; the variable to be solved for is named. The kernel is exp(-|x - y|/s)."""
    x, b = RNG.random((N, 2)), RNG.standard_normal((N, 3))
    s = np.array([0.2])
    arguments = ["x = Vi(2)", "y = Vj(2)", "b = Vj(3)", "s = Pm(1)"]
    solver = KernelSolve("Exp(-Norm2(x - y) / s) * b", arguments, "b", axis=1)

    a, took = timed(lambda: solver(x, x, b, s, alpha=alpha, eps=1e-9))
    apart = np.linalg.norm(x[:, None, :] - x, axis=-1)
    truth = np.linalg.solve(np.exp(-apart / 0.2) + alpha * np.eye(N), b)
    check(f"KernelSolve, three signals, {took:.2f} s", a, truth)

    # The same in symbols: solve (K u) = b for u.
    u_j = Vj(0, 3)
    K_xx = (-((Vi(x) - Vj(x)) ** 2).sum(-1).sqrt() / Pm(s)).exp()
    a = (K_xx * u_j).solve(Vi(0, 3), var=u_j, alpha=alpha, eps=1e-9)(b)
    check("solve for a symbol", a, truth)


def gaussian(x_i: LazyTensor, y_j: LazyTensor, sigma: float) -> LazyTensor:
    return (-((x_i - y_j) ** 2).sum(-1) / (2 * sigma**2)).exp()


# ── words ─────────────────────────────────────────────────────────────────────────────────────────


def timed(call: Any) -> tuple[Any, float]:
    begun = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begun


def check(what: str, found: Any, truth: Any, tolerance: float = 1e-6) -> None:
    """Print how far apart the two are; end the script where that is too far."""
    if np.shape(found) != np.shape(truth):
        sys.exit(f"{what}: the shape is {np.shape(found)} and should be {np.shape(truth)}")
    error = np.abs(np.subtract(found, truth)).max() / np.abs(truth).max()
    if not error <= tolerance:
        sys.exit(f"{what}: wrong, the relative error is {error:.1e}")
    print(f"  {what}: relative error {error:.0e}")


if __name__ == "__main__":
    sys.exit(main())
