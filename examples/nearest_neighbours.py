"""K nearest neighbours on the handwritten digits of scikit-learn, by `argKmin`, in several metrics.

Distances, labels and accuracy are those of scikit-learn's brute force: python examples/nearest_neighbours.py
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from farsum.numpy import LazyTensor, Vi, Vj

K = 5
METRICS = ("euclidean", "manhattan", "chebyshev", "cosine")


def main() -> int:
    images, labels = load_digits(return_X_y=True)
    # Pixels are small integers, so many distances tie; along principal axes hardly any do, and the
    # neighbours are the same whoever finds them.
    images = PCA(20, svd_solver="full").fit_transform(images)
    known, unknown, known_labels, truth = train_test_split(images, labels, test_size=500, random_state=0)

    for metric in METRICS:
        begun = time.perf_counter()
        nearest = pairwise(metric, unknown, known).argKmin(K, axis=1)
        took = time.perf_counter() - begun
        predicted = majority(known_labels[nearest])
        accuracy = float((predicted == truth).mean())

        theirs = KNeighborsClassifier(K, metric=metric, algorithm="brute").fit(known, known_labels)
        lengths, _ = theirs.kneighbors(unknown)
        print(f"  {metric:<10} accuracy {accuracy:.1%}, {1e3 * took:.0f} ms (compiling included)")
        check(f"{metric} distances", distances(metric, unknown, known[nearest]), lengths, 1e-6)
        check(f"{metric} labels", predicted, theirs.predict(unknown))
        check(f"{metric} accuracy", accuracy, theirs.score(unknown, truth))
        if accuracy < 0.95:
            sys.exit(f"{metric}: five neighbours should know at least 95 % of the digits, not {accuracy:.1%}")
    return 0


def pairwise(metric: str, x: Any, y: Any) -> LazyTensor:
    """What the metric orders by, for all pairs, as a formula."""
    if metric == "cosine":
        x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
        return -(Vi(x) | Vj(y))
    apart = Vi(x) - Vj(y)
    if metric == "euclidean":
        return (apart**2).sum(-1)
    return apart.abs().sum(-1) if metric == "manhattan" else apart.abs().max(-1)


def distances(metric: str, x: Any, neighbours: Any) -> Any:
    """The distances of each x to its own neighbours, dense."""
    if metric == "cosine":
        lengths = np.linalg.norm(x, axis=-1)[:, None] * np.linalg.norm(neighbours, axis=-1)
        return 1 - (x[:, None, :] * neighbours).sum(-1) / lengths
    order = {"euclidean": 2, "manhattan": 1, "chebyshev": np.inf}[metric]
    return np.linalg.norm(x[:, None, :] - neighbours, order, axis=-1)


def majority(labels: Any) -> Any:
    """The most frequent label of each row, the smallest of those that are equally frequent."""
    return np.apply_along_axis(np.bincount, 1, labels, minlength=10).argmax(1)


def check(what: str, found: Any, truth: Any, tolerance: float = 0.0) -> None:
    """End the script where the two differ by more than the tolerance."""
    if np.shape(found) != np.shape(truth):
        sys.exit(f"{what}: the shape is {np.shape(found)} and should be {np.shape(truth)}")
    error = np.abs(np.subtract(found, truth)).max()
    if not error <= tolerance:
        sys.exit(f"{what}: wrong, {error:.1e} away from scikit-learn")


if __name__ == "__main__":
    sys.exit(main())
