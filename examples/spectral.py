"""Spectral coordinates of a point cloud: a LazyTensor as a SciPy linear operator, and its eigenvectors.

The eigenvalues are compared with those of the dense Laplacian: python examples/spectral.py
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from scipy.sparse.linalg import aslinearoperator, eigsh

from farsum.numpy import LazyTensor, Vi, Vj

SIGMA = 0.2
RNG = np.random.default_rng(4)


def main() -> int:
    angles, x = knot(1_200)
    K_ij = (-((Vi(x) - Vj(x)) ** 2).sum(-1) / (2 * SIGMA**2)).exp()

    # The normalised Laplacian is 1 - A with A = K_ij / sqrt(d_i d_j): its least eigenvalues are the
    # largest of A, which Lanczos finds by products A @ v.
    A_ij = normalised(K_ij, len(x))
    begun = time.perf_counter()
    largest, vectors = eigsh(aslinearoperator(A_ij), k=5, which="LA", v0=RNG.standard_normal(len(x)))
    took = time.perf_counter() - begun
    found, vectors = 1 - largest[::-1], vectors[:, ::-1]

    dense = np.exp(-((x[:, None, :] - x) ** 2).sum(-1) / (2 * SIGMA**2))
    scale = 1 / np.sqrt(dense.sum(1))
    laplacian = np.eye(len(x)) - scale[:, None] * dense * scale
    truth = np.linalg.eigvalsh(laplacian)[:5]
    print(f"  {len(x):,} points, five eigenvalues in {took:.2f} s: " + ", ".join(f"{v:.5f}" for v in found))
    check("eigenvalues of the Laplacian", found, truth)
    check("Laplacian times eigenvectors", laplacian @ vectors, vectors * truth)

    # A random walk on the points is an operator too, and not a symmetric one.
    walk = aslinearoperator(K_ij / Vi(degrees(K_ij, len(x))))
    steps, v = dense / dense.sum(1, keepdims=True), RNG.standard_normal((len(x), 3))
    check("the walk on three vectors", walk @ v, steps @ v)
    check("its transpose on one", walk.rmatvec(v[:, 0]), steps.T @ v[:, 0])

    # On a closed curve the second and third eigenvectors are a cosine and a sine along it, so
    # their angle orders the points, though the cloud came in no order.
    around = np.argsort(np.arctan2(vectors[:, 2], vectors[:, 1]))
    turns = np.abs(np.diff(angles[around], append=angles[around[0]])) / (2 * np.pi)
    longest = float(np.minimum(turns, 1 - turns).max())
    print(f"  points in spectral order: the largest step along the knot is {longest:.1%} of it")
    if longest > 0.05:
        sys.exit("the spectral coordinates should follow the knot")
    return 0


def knot(count: int) -> tuple[Any, Any]:
    """Points near a trefoil knot, in no order, with their places along it."""
    t = 2 * np.pi * RNG.random(count)
    curve = np.stack([np.sin(t) + 2 * np.sin(2 * t), np.cos(t) - 2 * np.cos(2 * t), -np.sin(3 * t)], axis=1)
    return t, curve + 0.02 * RNG.standard_normal(curve.shape)


def normalised(K_ij: LazyTensor, count: int) -> LazyTensor:
    """K_ij / sqrt(d_i d_j): still a formula."""
    scale = 1 / np.sqrt(degrees(K_ij, count))
    return Vi(scale) * K_ij * Vj(scale)


def degrees(K_ij: LazyTensor, count: int) -> Any:
    """The sums of the rows."""
    return K_ij @ np.ones((count, 1))


def check(what: str, found: Any, truth: Any, tolerance: float = 1e-9) -> None:
    """Print how far apart the two are; end the script where that is too far."""
    if np.shape(found) != np.shape(truth):
        sys.exit(f"{what}: the shape is {np.shape(found)} and should be {np.shape(truth)}")
    error = np.abs(np.subtract(found, truth)).max() / np.abs(truth).max()
    if not error <= tolerance:
        sys.exit(f"{what}: wrong, the relative error is {error:.1e}")
    print(f"  {what}: relative error {error:.0e}")


if __name__ == "__main__":
    sys.exit(main())
