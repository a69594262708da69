"""Loops that run where the data is: Sinkhorn, k-means, mean-shift and power iteration, each one call.

Each is compared with its twin in NumPy: python examples/loops.py
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

import farsum
from farsum.numpy import Pm, Vi, Vj

RNG = np.random.default_rng(0)


def main() -> int:
    for problem in (optimal_transport, clusters, modes, largest_eigenvalue):
        begun = time.perf_counter()
        problem()
        print(f"  {problem.__name__.replace('_', ' ')}: {time.perf_counter() - begun:.2f} s")
    return 0


# ── Sinkhorn ──────────────────────────────────────────────────────────────────────────────────────


@farsum.program
def sinkhorn(x: Any, y: Any, blur: float, rounds: int) -> Any:
    """The dual potentials of entropic optimal transport between two clouds of equal weights."""
    cost = Vi(x).sqdist(Vj(y)) / 2
    log_m, log_n = float(np.log(x.shape[0])), float(np.log(y.shape[0]))

    def step(f: Any, g: Any) -> Any:
        f = -blur * (((Vj(g) - cost) / blur).logsumexp(axis=1) - log_n)
        g = -blur * (((Vi(f) - cost) / blur).logsumexp(axis=0) - log_m)
        return f, g

    return farsum.repeat(step, np.zeros((x.shape[0], 1)), np.zeros((y.shape[0], 1)), times=rounds)


def optimal_transport(blur: float = 0.05, rounds: int = 100) -> None:
    x, y = RNG.random((400, 2)), RNG.random((300, 2)) + np.array([0.5, 0.0])
    found = sinkhorn(x, y, blur, rounds)

    cost = ((x[:, None] - y) ** 2).sum(-1) / 2
    f, g = np.zeros((400, 1)), np.zeros((300, 1))
    for _ in range(rounds):
        f = -blur * (logsumexp((g.T - cost) / blur, 1)[:, None] - np.log(300))
        g = -blur * (logsumexp((f - cost) / blur, 0)[:, None] - np.log(400))
    check("Sinkhorn: potential of x", found[0], f, 1e-10)
    check("Sinkhorn: potential of y", found[1], g, 1e-10)


def logsumexp(scores: Any, axis: int) -> Any:
    most = scores.max(axis=axis, keepdims=True)
    return np.log(np.exp(scores - most).sum(axis=axis)) + most.squeeze(axis)


# ── k-means ───────────────────────────────────────────────────────────────────────────────────────


def segment_sum(values: Any, labels: Any, k: int) -> Any:
    """Row j: the sum of the rows of values whose label is j."""
    chosen = Vi(labels) == Vj(np.arange(k, dtype=np.float64)[:, None])
    return (chosen * Vi(values)).sum(axis=0)


@farsum.program
def kmeans(x: Any, centres: Any, rounds: int) -> Any:
    """The centres after so many rounds of Lloyd, the label of each point, how far centres moved in each round."""
    k = centres.shape[0]
    ones = np.ones((x.shape[0], 1))

    def nearest(centres: Any) -> Any:
        return Vi(x).sqdist(Vj(centres)).argmin(axis=1)

    def step(centres: Any) -> Any:
        labels = nearest(centres).astype("float64")
        means = segment_sum(x, labels, k) / np.maximum(segment_sum(ones, labels, k), 1.0)
        return means, abs(means - centres).max()

    centres, moved = farsum.repeat(step, centres, times=rounds, until=1e-9, history=True)
    return centres, nearest(centres), moved


def clusters(k: int = 7, rounds: int = 60) -> None:
    x = np.concatenate([RNG.standard_normal((300, 3)) + 4 * RNG.random(3) for _ in range(k)])
    starts = x[RNG.choice(len(x), k, replace=False)]
    centres, labels, moved = kmeans(x, starts, rounds)

    truth = starts
    for _ in range(rounds):
        label = ((x[:, None] - truth) ** 2).sum(-1).argmin(1)
        before, truth = truth, np.stack([x[label == j].mean(0) for j in range(k)])
        if abs(truth - before).max() < 1e-9:
            break
    check("k-means: centres", centres, truth, 1e-12)
    check("k-means: labels", labels[:, 0], ((x[:, None] - truth) ** 2).sum(-1).argmin(1))
    print(f"  k-means: {int(np.isfinite(moved).sum())} rounds in one call")


# ── mean-shift ────────────────────────────────────────────────────────────────────────────────────


@farsum.program
def mean_shift(x: Any, bandwidth: float, rounds: int) -> Any:
    """Each point after it has moved to the mean of its neighbours, so many times."""

    def step(points: Any) -> Any:
        scores = -Vi(points).sqdist(Vj(x)) / (2 * bandwidth**2)
        return scores.sumsoftmaxweight(Vj(x), axis=1)

    return farsum.repeat(step, x, times=rounds)


def modes(bandwidth: float = 0.5, rounds: int = 30) -> None:
    x = np.concatenate([RNG.standard_normal((150, 2)) + centre for centre in ([0, 0], [5, 1], [1, 6])])
    found = mean_shift(x, bandwidth, rounds)

    truth = x
    for _ in range(rounds):
        weights = np.exp(-((truth[:, None] - x) ** 2).sum(-1) / (2 * bandwidth**2))
        truth = weights @ x / weights.sum(1, keepdims=True)
    check("mean-shift: points", found, truth, 1e-9)


# ── power iteration ───────────────────────────────────────────────────────────────────────────────


@farsum.program
def power_iteration(x: Any, v: Any, scale: Any, rounds: int) -> Any:
    """An eigenvector of a Gaussian kernel, and its eigenvalue, the largest."""
    K = (-Vi(x).sqdist(Vj(x)) * Pm(scale.reshape(-1))).exp()

    def step(v: Any) -> Any:
        w = K @ v
        return w / np.sqrt((w * w).sum())

    v = farsum.repeat(step, v, times=rounds)
    return v, (v * (K @ v)).sum()


def largest_eigenvalue(rounds: int = 40) -> None:
    x, v = RNG.random((500, 3)), RNG.random((500, 1))
    vector, value = power_iteration(x, v, np.array([[3.0]]), rounds)

    K = np.exp(-3.0 * ((x[:, None] - x) ** 2).sum(-1))
    for _ in range(rounds):
        w = K @ v
        v = w / np.sqrt((w * w).sum())
    check("power iteration: vector", vector, v, 1e-11)
    check("power iteration: eigenvalue", value, np.array([[np.linalg.eigvalsh(K)[-1]]]), 1e-6)


def check(what: str, found: Any, truth: Any, tolerance: float = 0.0) -> None:
    """Print how far apart the two are; end the script where that is too far."""
    if np.shape(found) != np.shape(truth):
        sys.exit(f"{what}: the shape is {np.shape(found)} and should be {np.shape(truth)}")
    error = np.abs(np.subtract(found, truth)).max() / np.abs(truth).max()
    if not error <= tolerance:
        sys.exit(f"{what}: wrong, the relative difference is {error:.1e}")
    print(f"  {what}: relative difference {error:.0e}")


if __name__ == "__main__":
    sys.exit(main())
