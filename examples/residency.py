"""A laptop's script with a loop of a hundred steps: each array travels once, and one number comes back per step.

Power iteration for the largest eigenvalue of a Gaussian kernel, on handles. With FARSUM_TARGET set it runs on
that server; without, in this process, and gives the same numbers.
"""

from __future__ import annotations

import sys

import numpy as np

import farsum
from farsum.numpy import Vi, Vj

POINTS, STEPS = 1000, 100


def main() -> int:
    rng = np.random.default_rng(0)
    cloud = rng.random((POINTS, 3))
    x = farsum.put(cloud)  # sent here, and never again
    v = farsum.put(rng.random((POINTS, 1)))
    K = (-Vi(x).sqdist(Vj(x)) / 0.1).exp()
    print(repr(x))

    largest = 0.0
    for _ in range(STEPS):
        w = K.matvec(v, keep=True)  # stays where it is computed
        largest = float((Vi(w) * Vi(v)).sum(axis=0)[0, 0] / (Vi(v) ** 2).sum(axis=0)[0, 0])
        v = (Vi(w) * (1 / largest)).sum(axis=1, keep=True)

    dense = np.exp(-((cloud[:, None, :] - cloud[None, :, :]) ** 2).sum(-1) / 0.1)
    values, vectors = np.linalg.eigh(dense)
    check("largest eigenvalue", np.array([largest]), values[-1:], 1e-8)
    found = np.abs(farsum.get(v)[:, 0])
    check("its eigenvector", found / np.linalg.norm(found), np.abs(vectors[:, -1]), 1e-6)
    farsum.drop(x, v, w)
    return 0


def check(what: str, found: np.ndarray, truth: np.ndarray, tolerance: float) -> None:
    """Print how far the result is from the truth; end the script if that is too far."""
    if found.shape != truth.shape:
        sys.exit(f"{what}: shape {found.shape}, not {truth.shape}")
    error = float(np.abs(found - truth).max() / np.abs(truth).max())
    print(f"{what}: relative error {error:.1e}")
    if not error < tolerance:
        sys.exit(f"{what} is wrong")


if __name__ == "__main__":
    sys.exit(main())
