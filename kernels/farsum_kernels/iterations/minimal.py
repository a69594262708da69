"""MINRES, for systems that are symmetric and need not be definite; it ends, and says why.

C. C. Paige and M. A. Saunders, Solution of sparse indefinite systems of linear equations, SIAM J. Numer.
Anal. 12 (1975). Vectors are in the dtype of the right-hand side where an operator sees them, all else in float64.
"""

from __future__ import annotations

from math import hypot, isfinite, sqrt

import numpy as np

from farsum_kernels.errors import SolverDidNotConverge
from farsum_kernels.iterations.conjugate import PATIENCE
from farsum_kernels.iterations.request import Array, Iteration, Product, dot, fallen, like, ridged, wide


def minimal_residual(b: Array, target: float, cap: int, ridge: float = 0.0) -> Iteration[Array]:
    """The a with ridge·a + K a = b, until ‖r‖² < target. The norm of the residual never rises.

    Raises SolverDidNotConverge, with the iterate and the norms of the residuals: at the cap, when 2000 iterations
    bring less than 1 %, when a number is not finite, when b is not in the range of a singular operator, and when
    the residual that was carried along is not the one that is there.
    """
    if not b.any():
        return np.zeros_like(b)
    held = wide(b)
    a = np.zeros(b.shape, held)
    residuals: list[float] = []

    def failed(why: str) -> SolverDidNotConverge:
        return SolverDidNotConverge(
            f"MINRES did not converge: {why}. The residual is {residuals[-1]:.3g} after {len(residuals) - 1} "
            f"iterations, {sqrt(target):.3g} was asked for. It needs a symmetric operator; a larger alpha or eps makes "
            f"the system easier",
            a.astype(b.dtype),
            residuals,
        )

    def operator(vector: Array, share: float) -> Iteration[Array]:
        return like(ridged(vector, (yield Product(vector, share)), ridge), b)

    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        v_old, v = np.zeros(b.shape, held), b.astype(held)
        beta = sqrt(dot(v, v))
        residuals.append(beta)
        if not isfinite(beta):
            raise failed("the right-hand side holds numbers that are not finite, or too large to square")
        v = v / beta
        eta, largest, best, since = beta, 0.0, np.inf, 0
        cosine, cosine_old, sine, sine_old = 1.0, 1.0, 0.0, 0.0
        w_old, w = np.zeros(b.shape, held), np.zeros(b.shape, held)
        while residuals[-1] ** 2 >= target and residuals[-1] > 0:
            if len(residuals) > cap:
                raise failed(f"{cap} iterations are over")
            if residuals[-1] < 0.99 * best:
                best, since = residuals[-1], len(residuals)
            elif len(residuals) - since >= PATIENCE:
                raise failed(f"the residual has not fallen below {0.99 * best:.3g} in {PATIENCE} iterations")
            seen = v.astype(b.dtype)
            product = yield from operator(seen, fallen(residuals[0], residuals[-1], sqrt(target)))
            alpha = dot(v, product)
            product = product - alpha * v - beta * v_old
            beta_new = sqrt(max(dot(product, product), 0.0))
            if not (isfinite(alpha) and isfinite(beta_new)):
                raise failed("the operator gives numbers that are not finite")
            largest = max(largest, abs(alpha), beta_new)
            # The last two Givens rotations on the new column of the tridiagonal matrix, then the next one.
            delta = cosine * alpha - cosine_old * sine * beta
            above = sine * alpha + cosine_old * cosine * beta
            far = sine_old * beta
            pivot = hypot(delta, beta_new)
            if pivot <= 10 * float(np.finfo(held).eps) * largest:
                raise failed("the operator is singular and the right-hand side is not in its range")
            cosine_old, sine_old = cosine, sine
            cosine, sine = delta / pivot, beta_new / pivot
            w_old, w = w, (v - far * w_old - above * w) / pivot
            a += cosine * eta * w
            eta = -sine * eta
            residuals.append(abs(eta))
            if beta_new <= 10 * float(np.finfo(held).eps) * largest:
                break  # the space is exhausted: what is found is exact, or nothing solves the system
            v_old, v, beta = v, product / beta_new, beta_new
        # The residual was carried along by recurrence, and this is the one that is there.
        r = b - (yield from operator(a.astype(b.dtype), 0.99))
        there, size = sqrt(dot(r, r)), sqrt(dot(b.astype(held), b.astype(held)))
        rounding = 1000 * float(np.finfo(b.dtype).eps) * max(size, largest * sqrt(dot(a, a)))
        if not there <= max(sqrt(target), rounding):
            residuals.append(there)
            raise failed("what the iteration found does not solve the system")
        return a.astype(b.dtype)
