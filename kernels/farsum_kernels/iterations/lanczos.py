"""Eigenvalues at the ends of a spectrum: Lanczos with a thick restart; it ends, and says why.

K. Wu and H. Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems, SIAM J. Matrix Anal.
Appl. 22 (2000). Each new vector is made orthogonal to all others, twice, so no eigenvalue appears that is not there.
"""

from __future__ import annotations

import numpy as np

from farsum_kernels.errors import SolverDidNotConverge
from farsum_kernels.iterations.request import Array, Iteration, Product, fallen, like, wide


def subspace(points: int, count: int) -> int:
    """How many vectors are held to find so many eigenvectors."""
    return min(points, max(2 * count + 10, 20))


def eigenpairs(
    start: Array, count: int, which: str, tolerance: float, cap: int
) -> Iteration[tuple[Array, Array]]:
    """`count` eigenvalues (count, 1), rising, and their eigenvectors (N, count), of a symmetric operator.

    start      (N, 1), real; of zeros or not finite, another one is drawn
    which      "LA" the largest, "SA" the smallest, "LM" the largest in magnitude
    tolerance  of the residual of each pair, relative to the largest eigenvalue in magnitude
    cap        products at most

    An eigenvalue that occurs several times may be found fewer times, as with any single-vector iteration.
    Raises SolverDidNotConverge, with both as they stood and the largest residual at each restart.
    """
    n, held, dtype = len(start), wide(start), start.dtype
    size = subspace(n, count)
    basis, small = np.zeros((n, size + 1), held), np.zeros((size, size), held)
    draw = np.random.default_rng(0)
    residuals: list[float] = []

    def orthogonal(w: Array, held_columns: int) -> tuple[Array, Array]:
        """What is left of w beside the first columns of the basis, and the coefficients taken out."""
        own = basis[:, :held_columns]
        taken = own.T @ w
        w = w - own @ taken
        again = own.T @ w
        return w - own @ again, taken + again

    def fresh(columns: int) -> Array:
        w, _ = orthogonal(draw.standard_normal(n), columns)
        norm = float(np.linalg.norm(w))
        return w / norm if norm > 0 else w

    first = start[:, 0].astype(held)
    norm = float(np.linalg.norm(first))
    basis[:, 0] = first / norm if 0 < norm < np.inf else fresh(0)
    done, products, share = 0, 0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        while True:
            beta = 0.0
            for j in range(done, size):
                if products >= cap:
                    raise _failed(f"{cap} products are over", residuals, basis, count, dtype)
                products += 1
                vector = basis[:, j, None].astype(dtype)
                w = like((yield Product(vector, share)), start)[:, 0]
                if not np.isfinite(w).all():
                    raise _failed(
                        "the operator gives numbers that are not finite", residuals, basis, count, dtype
                    )
                w, taken = orthogonal(w, j + 1)
                small[: j + 1, j] = small[j, : j + 1] = taken
                beta = float(np.linalg.norm(w))
                if beta <= 10 * np.finfo(held).eps * np.abs(small).max() or j + 1 >= n:
                    # The space so far is invariant: go on in another direction.
                    basis[:, j + 1], beta = fresh(j + 1) if j + 1 < n else 0.0, 0.0
                else:
                    basis[:, j + 1] = w / beta
            values, vectors = np.linalg.eigh(small)
            order = _wanted(values, which)
            chosen, scale = order[:count], float(np.abs(values).max())
            errors = np.abs(beta * vectors[-1, chosen])
            residuals.append(float(errors.max()))
            share = max(share, fallen(residuals[0], residuals[-1], tolerance * scale))
            if residuals[-1] <= tolerance * scale or size >= n:
                chosen = chosen[np.argsort(values[chosen], kind="stable")]
                found = basis[:, :size] @ vectors[:, chosen]
                return values[chosen, None].astype(dtype), found.astype(dtype)
            # More than the wanted ones are kept: those nearly there speed up the rest.
            done = min(count + (size - count) // 2, size - 1)
            kept = order[:done]
            basis[:, :done] = basis[:, :size] @ vectors[:, kept]
            basis[:, done] = basis[:, size]
            small[:] = 0.0
            small[np.arange(done), np.arange(done)] = values[kept]


def _wanted(values: Array, which: str) -> Array:
    key = {"LA": -values, "SA": values, "LM": -np.abs(values)}[which]
    return np.argsort(key, kind="stable")


def _failed(
    why: str, residuals: list[float], basis: Array, count: int, dtype: np.dtype[np.generic]
) -> SolverDidNotConverge:
    reached = f"; the largest residual is {residuals[-1]:.3g}" if residuals else ""
    return SolverDidNotConverge(
        f"the Lanczos iteration did not converge: {why}{reached}. Ask for fewer eigenvalues or a larger tolerance, or "
        f"allow more products",
        (np.full((count, 1), np.nan, dtype), basis[:, :count].astype(dtype)),
        residuals,
    )
