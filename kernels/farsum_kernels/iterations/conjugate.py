"""Conjugate gradients, with a preconditioner and a rule to stop; they end, and say why.

The iteration is that of M. R. Hestenes and E. Stiefel, Methods of conjugate gradients for solving linear
systems, J. Res. Nat. Bur. Standards 49 (1952), with the preconditioning of P. Concus, G. H. Golub and
D. P. O'Leary (1976). Its vectors are in the dtype of the right-hand side where an operator sees them; the
solution, the residual and all scalars are in float64, which costs a few rows next to a product.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, sqrt

import numpy as np

from farsum_kernels.errors import SolverDidNotConverge
from farsum_kernels.iterations.request import Array, Iteration, Product, dot, fallen, like, ridged, wide

Preconditioner = Callable[[Array, float], Iteration[Array]]

# Residuals of conjugate gradients go up and down. Eigenvalues spread evenly over six decades, far worse than
# those of kernels, were measured to take 950 iterations without a new low at N = 2000, and 7000 in all (at
# N = 200 more than 10·N), and yet to converge in float64; over nine decades they do not. Hence these two.
PATIENCE = 2000
LEAST_CAP = 10_000

_NOT_FINITE = "the right-hand side holds numbers that are not finite, or too large to square"


def conjugate_gradients(
    b: Array,
    target: float,
    cap: int,
    ridge: float = 0.0,
    start: Array | None = None,
    precondition: Preconditioner | None = None,
) -> Iteration[Array]:
    """The a with ridge·a + K a = b, until ‖r‖² < target.

    cap            products at most, and PATIENCE without a new low
    precondition   gives, for a residual and the share done, an iteration for the inverse of the operator on it

    Raises SolverDidNotConverge, with the iterate and the norms of the residuals.
    """
    if not b.any():
        return np.zeros_like(b)
    held = wide(b)
    a, r, p = np.zeros(b.shape, held), b.astype(held), np.zeros(b.shape, held)
    residuals: list[float] = []
    best, since, previous, indefinite = np.inf, 0, 1.0, False

    def failed(why: str) -> SolverDidNotConverge:
        if indefinite:
            why += "; the operator is not positive definite"
        return SolverDidNotConverge(
            f"conjugate gradients did not converge: {why}. The residual is {residuals[-1]:.3g} after "
            f"{len(residuals) - 1} iterations, {sqrt(target):.3g} was asked for. They need a symmetric "
            f"positive definite operator; a larger alpha or eps makes the system easier",
            a.astype(b.dtype),
            residuals,
        )

    def operator(vector: Array, share: float = 0.0) -> Iteration[Array]:
        return like(ridged(vector, (yield Product(vector, share)), ridge), b)

    # Overflow is looked for, not warned about.
    with np.errstate(over="ignore", invalid="ignore"):
        if start is not None:
            a += like(start, b, "start")
            r -= yield from operator(a.astype(b.dtype))
        while True:
            norm2 = dot(r, r)
            residuals.append(sqrt(norm2))
            share = fallen(residuals[0], residuals[-1], sqrt(target))
            if not isfinite(norm2):
                raise failed(_NOT_FINITE if start is None and not p.any() else "the residual is not finite")
            if norm2 < target or norm2 == 0:
                break
            if len(residuals) > cap:
                raise failed(f"{cap} iterations are over")
            if residuals[-1] < 0.99 * best:
                best, since = residuals[-1], len(residuals)
            elif len(residuals) - since >= PATIENCE:
                raise failed(f"the residual has not fallen below {0.99 * best:.3g} in {PATIENCE} iterations")
            z = r if precondition is None else (yield from precondition(r, share))
            along = norm2 if precondition is None else dot(r, z)
            if not (isfinite(along) and along > 0):
                raise failed("rounding leaves the preconditioner not positive definite: alpha is too small")
            # What the operator sees is rounded to the dtype of b, and the same numbers are used after.
            seen = (z + along / previous * p).astype(b.dtype)
            p, previous = seen.astype(held), along
            q = yield from operator(seen, share)
            curvature = dot(p, q)
            if not isfinite(curvature):
                raise failed("the operator gives numbers that are not finite")
            if curvature == 0:
                raise failed("a direction p has p·linop(p) = 0")
            # A negative definite operator is solved as well, an indefinite one often: that is checked below.
            indefinite = indefinite or curvature < 0
            a += along / curvature * p
            r -= along / curvature * q
        if indefinite:
            r = b - (yield from operator(a.astype(b.dtype)))
            rounding = 1000 * float(np.finfo(b.dtype).eps) * sqrt(dot(b.astype(held), b.astype(held)))
            if not dot(r, r) <= max(target, rounding**2):
                residuals.append(sqrt(dot(r, r)))
                raise failed("what the iteration found does not solve the system")
        return a.astype(b.dtype)
