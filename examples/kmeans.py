"""Lloyd's k-means by `argmin`, Euclidean and cosine.

Each step is compared with NumPy, the Euclidean result with scikit-learn: python examples/kmeans.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

from farsum.numpy import Vi, Vj

STEPS = 15


def main() -> int:
    clusters = 12
    x, _ = make_blobs(10_000, n_features=5, centers=clusters, cluster_std=2.5, random_state=0)
    starts = x[np.random.default_rng(0).choice(len(x), clusters, replace=False)]

    for metric in ("euclidean", "cosine"):
        points = unit(x) if metric == "cosine" else x
        centres = unit(starts) if metric == "cosine" else starts

        begun = time.perf_counter()
        labels, found = lloyd(metric, points, centres, nearest)
        took = time.perf_counter() - begun
        true_labels, true_centres = lloyd(metric, points, centres, nearest_dense)
        check(f"{metric}: labels of {STEPS} steps", labels, true_labels)
        check(f"{metric}: centres after them", found, true_centres, 1e-12)

        before, after = (float(dense_costs(metric, points, c).min(1).sum()) for c in (centres, found))
        print(
            f"  {metric}: {len(points):,} points, {took:.2f} s, cost {before:,.0f} before, {after:,.0f} after"
        )
        if not after < before:
            sys.exit(f"{metric}: the cost should fall")
        if metric == "euclidean":
            theirs = KMeans(clusters, init=starts, n_init=1, max_iter=STEPS, tol=0, algorithm="lloyd")
            check("inertia, next to scikit-learn", after, theirs.fit(points).inertia_, 0.02)
    return 0


def lloyd(metric: str, points: Any, centres: Any, nearest: Callable[[str, Any, Any], Any]) -> tuple[Any, Any]:
    """The labels at each step, and the centres after the last."""
    labels = []
    for _ in range(STEPS):
        labels.append(nearest(metric, points, centres))
        centres = means(metric, points, labels[-1], len(centres))
    return np.stack(labels), centres


def nearest(metric: str, points: Any, centres: Any) -> Any:
    """The centre of least cost for each point."""
    x_i, c_j = Vi(points), Vj(centres)
    cost = 1 - (x_i | c_j) if metric == "cosine" else ((x_i - c_j) ** 2).sum(-1)
    return cost.argmin(axis=1)[:, 0]


def nearest_dense(metric: str, points: Any, centres: Any) -> Any:
    return dense_costs(metric, points, centres).argmin(1)


def dense_costs(metric: str, points: Any, centres: Any) -> Any:
    if metric == "cosine":
        return 1 - points @ centres.T
    return ((points[:, None, :] - centres) ** 2).sum(-1)


def means(metric: str, points: Any, labels: Any, clusters: int) -> Any:
    """The mean of each cluster, of length 1 where the angle alone counts."""
    sizes = np.bincount(labels, minlength=clusters)
    columns = [np.bincount(labels, column, minlength=clusters) for column in points.T]
    centres = np.stack(columns, axis=1) / sizes[:, None]
    return unit(centres) if metric == "cosine" else centres


def unit(v: Any) -> Any:
    return v / np.linalg.norm(v, axis=1, keepdims=True)


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
