"""A preconditioner from a few of the points: the inverse of alpha + K with K replaced by its Nyström approximation.

C. Williams and M. Seeger, Using the Nyström method to speed up kernel machines, NIPS 13 (2001). With U the points
drawn, K ≈ K_xU K_UU⁻¹ K_Ux, and by the identity of Woodbury
(alpha + K)⁻¹ ≈ (1 - K_xU (alpha K_UU + K_Ux K_xU)⁻¹ K_Ux) / alpha.
"""

from __future__ import annotations

import numpy as np

from farsum_kernels.errors import SolverDidNotConverge
from farsum_kernels.iterations.conjugate import Preconditioner
from farsum_kernels.iterations.request import Array, Iteration, Product


def drawn(points: int, rank: int, seed: int | np.random.Generator) -> Array:
    """The places of so many points, in rising order."""
    return np.sort(np.random.default_rng(seed).choice(points, rank, replace=False))


def nystrom(b: Array, alpha: float, places: Array, within: Array | None = None) -> Iteration[Preconditioner]:
    """The preconditioner for a right-hand side (N, E). It takes as many evaluations of k as two products, in groups.

    places   of the points drawn
    within   K_UU, if it is known
    """
    m, width, known = len(places), b.shape[1], within is not None
    inside = within if within is not None else np.empty((m, m))
    squared = np.empty((m, m))
    # K is known by what it does to E columns at a time; only N × E numbers are held.
    for first in range(0, m, width):
        columns = slice(first, min(first + width, m))
        count = columns.stop - first
        units = np.zeros((m, width), b.real.dtype)
        units[np.arange(m)[columns], np.arange(count)] = 1
        wide = yield Product(units, columns=places)
        squared[:, columns] = (yield Product(np.asarray(wide), rows=places))[:, :count]
        if not known:
            inside[:, columns] = (yield Product(units, rows=places, columns=places))[:, :count]
    inner = alpha * inside + squared
    if not np.isfinite(inner).all():
        raise SolverDidNotConverge("the kernel of the preconditioner gives numbers that are not finite")
    # Eigenvalues lost in rounding are left out: the preconditioner then stays positive definite.
    values, vectors = np.linalg.eigh((inner + inner.T) / 2)
    kept = values > m * float(np.finfo(b.dtype).eps) * values[-1]
    half = vectors[:, kept] / np.sqrt(values[kept])

    def inverse(r: Array, share: float) -> Iteration[Array]:
        near = half @ (half.T @ (yield Product(r.astype(b.dtype), share, rows=places)))
        found: Array = (r - (yield Product(near.astype(b.dtype), share, columns=places))) / alpha
        return found

    return inverse
