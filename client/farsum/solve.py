"""Conjugate gradients for linear systems, and the solvers on top of them that take any linear operator.

The iteration is that of M. R. Hestenes and E. Stiefel, Methods of conjugate gradients for solving linear
systems, J. Res. Nat. Bur. Standards 49 (1952), with the preconditioning of P. Concus, G. H. Golub and
D. P. O'Leary (1976). Its vectors are in the dtype of the right-hand side where an operator sees them; the
solution, the residual and all scalars are in float64, which costs a few rows next to a product.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import isfinite, isqrt, sqrt
from typing import Any

import numpy as np

from farsum.arrays import Array, is_number
from farsum.genred import Genred
from farsum.tensors import is_tensor, to_numpy, to_tensor
from farsum_kernels.errors import (
    DeadlineExceeded,
    DtypeError,
    FormulaError,
    OperandError,
    ShapeError,
    SolverDidNotConverge,
)
from farsum_kernels.job import dtype_name

Operator = Callable[[Array], Array]

# Residuals of conjugate gradients go up and down. Eigenvalues spread evenly over six decades, far worse than
# those of kernels, were measured to take 950 iterations without a new low at N = 2000, and 7000 in all (at
# N = 200 more than 10·N), and yet to converge in float64; over nine decades they do not. Hence these two.
PATIENCE = 2000
LEAST_CAP = 10_000


def time_left(deadline_s: float | None) -> Callable[[], float | None]:
    """What is left of so many seconds from now, to be asked before each product; None where there is no end.

    The asking raises DeadlineExceeded once nothing is left.
    """
    end = None if deadline_s is None else time.monotonic() + deadline_s

    def left() -> float | None:
        seconds = None if end is None else end - time.monotonic()
        if seconds is not None and seconds <= 0:
            raise DeadlineExceeded(f"the system was not solved within {deadline_s} s")
        return seconds

    return left


def conjugate_gradient(
    linop: Operator,
    b: Array,
    eps: float = 1e-6,
    max_iterations: int | None = None,
    start: Array | None = None,
) -> Array:
    """The array a with linop(a) = b, for a linear operator that is symmetric (Hermitian) and positive definite.

    linop           maps an array of the shape and dtype of b to one of that shape
    b               any shape; float16, float32, float64 or complex. All of it is one vector: batches stop together
    eps             stop when ‖b - linop(a)‖² < b.size·eps², an absolute bound on the root mean square
    max_iterations  give up after so many products; None for max(10000, 10·b.size)
    start           where to begin; None for zeros

    The result has the shape and dtype of b; a b of zeros gives zeros without a product. The residual is the
    one that the iteration carries along: linop(a) differs from b by the rounding of linop besides.

    In exact arithmetic b.size products are enough, and kernels need far fewer. Rounding delays an
    ill-conditioned system, by a small factor as long as it converges at all, so ten times that is the cap.

    Raises SolverDidNotConverge, with the iterate and the norms of the residuals, at the cap, when the
    residual has not fallen by 1 % in 2000 iterations (float32 at its limit), when a number is not finite, and
    when a direction has no curvature; ShapeError or DtypeError for a result of linop, or a start, that is not
    like b.

    >>> A = np.array([[4.0, 1.0], [1.0, 3.0]])
    >>> conjugate_gradient(lambda p: A @ p, np.array([1.0, 2.0])).round(4)
    array([0.0909, 0.6364])
    """
    b = _vector(b)
    return _iterate(linop, b, b.size * _positive(eps) ** 2, max_iterations, start)


def ridged(product: Operator, alpha: float | None) -> Operator:
    """p ↦ alpha·p + product(p), added in float64; product itself if alpha is None, False or 0.

    Raises OperandError unless alpha is a real number.
    """
    if isinstance(alpha, np.ndarray) and alpha.ndim == 0:
        alpha = alpha[()]
    if alpha is None or alpha is False or (is_number(alpha) and not alpha):
        return product
    if not is_number(alpha):
        raise OperandError(f"alpha is a real number, or None for no ridge term, not {alpha!r:.80}")
    ridge = float(alpha)
    return lambda p: ridge * p.astype(_wide(p)) + product(p)


def _iterate(
    linop: Operator,
    b: Array,
    target: float,
    max_iterations: int | None,
    start: Array | None = None,
    precondition: Operator | None = None,
) -> Array:
    """Conjugate gradients until ‖r‖² < target; `precondition` approximates the inverse of linop."""
    cap = max(LEAST_CAP, 10 * b.size) if max_iterations is None else _count(max_iterations)
    if not b.any():
        return np.zeros_like(b)
    wide = _wide(b)
    a, r, p = np.zeros(b.shape, wide), b.astype(wide), np.zeros(b.shape, wide)
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

    # Overflow is looked for, not warned about.
    with np.errstate(over="ignore", invalid="ignore"):
        if start is not None:
            a += _like(start, b, "start")
            r -= _like(linop(a.astype(b.dtype)), b, "the operator gives an array that")
        while True:
            norm2 = _dot(r, r)
            residuals.append(sqrt(norm2))
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
            z = r if precondition is None else precondition(r)
            along = norm2 if precondition is None else _dot(r, z)
            if not (isfinite(along) and along > 0):
                raise failed("rounding leaves the preconditioner not positive definite: alpha is too small")
            # What the operator sees is rounded to the dtype of b, and the same numbers are used after.
            seen = (z + along / previous * p).astype(b.dtype)
            p, previous = seen.astype(wide), along
            q = _like(linop(seen), b, "the operator gives an array that")
            curvature = _dot(p, q)
            if not isfinite(curvature):
                raise failed("the operator gives numbers that are not finite")
            if curvature == 0:
                raise failed("a direction p has p·linop(p) = 0")
            # A negative definite operator is solved as well, an indefinite one often: that is checked below.
            indefinite = indefinite or curvature < 0
            a += along / curvature * p
            r -= along / curvature * q
        if indefinite:
            r = b - _like(linop(a.astype(b.dtype)), b, "the operator gives an array that")
            rounding = 1000 * float(np.finfo(b.dtype).eps) * sqrt(_dot(b.astype(wide), b.astype(wide)))
            if not _dot(r, r) <= max(target, rounding**2):
                residuals.append(sqrt(_dot(r, r)))
                raise failed("what the iteration found does not solve the system")
        return a.astype(b.dtype)


_NOT_FINITE = "the right-hand side holds numbers that are not finite, or too large to square"


def _dot(u: Array, v: Array) -> float:
    return float(np.vdot(u, v).real)


def _wide(b: Array) -> np.dtype[Any]:
    return np.result_type(b.dtype, np.float64)


def _vector(given: Any) -> Array:
    """A right-hand side of a dtype that is computed in; whole numbers become float64."""
    b: Array = np.asarray(given)
    if b.dtype.kind in "iu":
        return b.astype(np.float64)
    if b.dtype.kind not in "fc":
        raise DtypeError(f"the right-hand side has dtype {b.dtype}; it holds real or complex numbers")
    return b


def _like(x: Any, b: Array, what: str) -> Array:
    """x as an array to compute with in float64. Raises ShapeError or DtypeError if it is not like b."""
    x = np.asarray(x)
    if x.shape != b.shape:
        raise ShapeError(f"{what} has shape {x.shape} where the right-hand side has {b.shape}")
    if x.dtype.kind not in "fiu" + "c" * (b.dtype.kind == "c"):
        raise DtypeError(f"{what} has dtype {x.dtype} where the right-hand side has {b.dtype}")
    wide: Array = x.astype(_wide(b), copy=False)
    return wide


def _positive(eps: Any) -> float:
    if not is_number(eps) or not 0 < eps < np.inf:
        raise FormulaError(f"eps is a number above 0, not {eps!r}: a residual of exactly 0 is never reached")
    return float(eps)


def _count(max_iterations: Any) -> int:
    whole = isinstance(max_iterations, int | np.integer) and not isinstance(max_iterations, bool)
    if not whole or max_iterations < 0:
        raise FormulaError(f"max_iterations is a count from 0, or None, not {max_iterations!r}")
    return int(max_iterations)


# ── the solvers below it ──────────────────────────────────────────────────────────────────────────


def ConjugateGradientSolver(binding: str, linop: Callable[[Any], Any], b: Any, eps: float = 1e-6) -> Any:
    """`conjugate_gradient` under its KeOps name; the binding is "numpy", or "torch" for a linop of tensors.

    Of tensors, the result is a tensor that autograd does not know: `KernelSolve` has derivatives.

    >>> ConjugateGradientSolver("numpy", lambda p: 2 * p, np.ones(3))
    array([0.5, 0.5, 0.5])
    """
    if _takes_tensors(binding, b):
        a = conjugate_gradient(_of_arrays(linop, b), to_numpy(b), eps)
        return to_tensor(a, dtype_name(b.dtype), b.device)
    return conjugate_gradient(linop, b, eps)


def KernelLinearSolver(
    binding: str,
    K: Callable[..., Any] | tuple[str, int, int, float],
    x: Any,
    b: Any,
    alpha: float = 0,
    eps: float = 1e-6,
    precond: bool = False,
    precondKernel: Callable[..., Any] | None = None,
    *,
    seed: int | np.random.Generator = 0,
) -> Any:
    """The array a with alpha·a + K(x, x, a) = b, by conjugate gradients.

    binding        "numpy", or "torch" where x, b and the arguments of K are tensors
    K              K(x, y, b) gives Σ_j k(x_i, y_j) b_j, for any rows x (M, D), y (N, D) and b (N, E); or
                   ("gaussian", D, E, sigma), which is k(x, y) = exp(-‖x - y‖² / sigma²)
    x, b           points (N, D) and right-hand side (N, E)
    alpha, eps     as in `KernelSolve`
    precond        use the Nyström approximation of K on √N points drawn at random as a preconditioner
                   (C. Williams and M. Seeger 2001). Its stopping rule is ‖r‖² < eps², without the size of b
    precondKernel  k(x, y, points) for rows of x and y taken in pairs, called once for the √N·√N pairs of
                   those points; None finds the values with K itself
    seed           of the draw

    With U the points drawn, K ≈ K_xU K_UU⁻¹ K_Ux, and by the identity of Woodbury
    (alpha + K)⁻¹ ≈ (1 - K_xU (alpha K_UU + K_Ux K_xU)⁻¹ K_Ux) / alpha. That matrix takes as many evaluations
    of k as two products with K, once, in groups of E columns.

    Raises FormulaError for another binding, another tuple, or a preconditioner without alpha > 0; ShapeError
    unless x and b have the same number of rows; SolverDidNotConverge.

    >>> x, b = np.random.default_rng(0).random((100, 2)), np.ones((100, 1))
    >>> plain = KernelLinearSolver("numpy", ("gaussian", 2, 1, 0.5), x, b, alpha=0.1)
    >>> helped = KernelLinearSolver("numpy", ("gaussian", 2, 1, 0.5), x, b, alpha=0.1, precond=True)
    >>> np.allclose(plain, helped, atol=1e-4)
    True
    """
    if _takes_tensors(binding, x, b):
        of_arrays = K if not callable(K) else _of_arrays(K, x)
        between = None if precondKernel is None else _of_arrays(precondKernel, x)
        a = KernelLinearSolver(
            "numpy", of_arrays, to_numpy(x), to_numpy(b), alpha, eps, precond, between, seed=seed
        )
        return to_tensor(a, dtype_name(b.dtype), b.device)
    kernel = K if callable(K) else _gaussian(K)
    x, b = np.ascontiguousarray(x), np.ascontiguousarray(_vector(b))
    if x.ndim != 2 or b.ndim != 2 or len(x) != len(b):
        raise ShapeError(f"x has shape {x.shape} and b {b.shape}; they are (N, D) and (N, E)")
    b = b.astype(np.result_type(x, b), copy=False)
    linop = ridged(lambda p: kernel(x, x, p), alpha)
    if not precond:
        return conjugate_gradient(linop, b, eps)
    if alpha is None or not alpha > 0:
        raise FormulaError(f"precond needs alpha > 0, not {alpha!r}: it divides by alpha")
    if not b.any():
        return np.zeros_like(b)
    inverse = _nystrom(kernel, x, b, float(alpha), precondKernel, np.random.default_rng(seed))
    return _iterate(linop, b, _positive(eps) ** 2, None, precondition=inverse)


def _takes_tensors(binding: Any, *arrays: Any) -> bool:
    """Whether the binding is "torch". Raises FormulaError for another, OperandError where the arrays are not of it."""
    if binding not in ("numpy", "torch"):
        raise FormulaError(f"the binding is 'numpy' or 'torch', not {binding!r:.80}")
    for array in arrays:
        if is_tensor(array) is not (binding == "torch"):
            raise OperandError(f"with the binding {binding!r} the arrays are not {type(array).__name__}")
    return bool(binding == "torch")


def _of_arrays(function: Callable[..., Any], like: Any) -> Callable[..., Array]:
    """A function of tensors as one of arrays."""

    def on_arrays(*arrays: Array) -> Array:
        found = function(
            *(to_tensor(np.ascontiguousarray(a), dtype_name(a.dtype), like.device) for a in arrays)
        )
        return to_numpy(found)

    return on_arrays


def _gaussian(K: Any) -> Callable[..., Array]:
    if not (isinstance(K, tuple) and len(K) == 4 and K[0] == "gaussian"):
        raise FormulaError(f'K is a function K(x, y, b) or ("gaussian", D, E, sigma), not {K!r:.80}')
    _, D, E, sigma = K
    if not is_number(sigma) or not sigma > 0:
        raise FormulaError(f"sigma is a number above 0, not {sigma!r}")
    sum_ = Genred(
        "Exp(-g*SqDist(x,y))*b", [f"x = Vi({D})", f"y = Vj({D})", f"b = Vj({E})", "g = Pm(1)"], axis=1
    )
    return lambda x, y, b: sum_(x, y, b, np.array([float(sigma) ** -2], b.dtype))


def _nystrom(
    kernel: Callable[..., Array],
    x: Array,
    b: Array,
    alpha: float,
    pairwise: Callable[..., Array] | None,
    generator: np.random.Generator,
) -> Operator:
    """The inverse of alpha + K, with K replaced by its Nyström approximation."""
    m, width = isqrt(len(x)), b.shape[1]
    u = x[np.sort(generator.choice(len(x), m, replace=False))]
    within, squared = np.empty((m, m)), np.empty((m, m))
    if pairwise is not None:
        within[:] = np.asarray(pairwise(np.repeat(u, m, axis=0), np.tile(u, (m, 1)), x)).reshape(m, m)
    # K is known by what it does to E columns at a time; only N × E numbers are held.
    for first in range(0, m, width):
        columns = slice(first, min(first + width, m))
        units = np.zeros((m, width), b.real.dtype)
        units[np.arange(m)[columns], np.arange(columns.stop - first)] = 1
        squared[:, columns] = kernel(u, x, kernel(x, u, units))[:, : columns.stop - first]
        if pairwise is None:
            within[:, columns] = kernel(u, u, units)[:, : columns.stop - first]
    inner = alpha * within + squared
    if not np.isfinite(inner).all():
        raise SolverDidNotConverge("the kernel of the preconditioner gives numbers that are not finite")
    # Eigenvalues lost in rounding are left out: the preconditioner then stays positive definite.
    values, vectors = np.linalg.eigh((inner + inner.T) / 2)
    kept = values > m * float(np.finfo(b.dtype).eps) * values[-1]
    half = vectors[:, kept] / np.sqrt(values[kept])

    def inverse(r: Array) -> Array:
        near = half @ (half.T @ kernel(u, x, r.astype(b.dtype)))
        found: Array = (r - kernel(x, u, near.astype(b.dtype))) / alpha
        return found

    return inverse
