"""Solvers for an operator of your own, a Python function; the iterations are those of farsum_kernels."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from typing import Any

import numpy as np

from farsum.arrays import Array, is_number
from farsum.genred import Genred
from farsum.systems import cap_of, positive, ridge_of
from farsum.tensors import is_tensor, to_numpy, to_tensor
from farsum_kernels.errors import (
    DtypeError,
    FormulaError,
    OperandError,
    ShapeError,
)
from farsum_kernels.iterations.conjugate import conjugate_gradients
from farsum_kernels.iterations.nystrom import drawn, nystrom
from farsum_kernels.iterations.request import Iteration, Operator, Product, driven
from farsum_kernels.job import dtype_name


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
    iteration = conjugate_gradients(b, b.size * positive(eps) ** 2, cap_of(b, max_iterations), start=start)
    return driven(iteration, lambda request: linop(request.vector))


def _vector(given: Any) -> Array:
    """A right-hand side of a dtype that is computed in; whole numbers become float64."""
    b: Array = np.asarray(given)
    if b.dtype.kind in "iu":
        return b.astype(np.float64)
    if b.dtype.kind not in "fc":
        raise DtypeError(f"the right-hand side has dtype {b.dtype}; it holds real or complex numbers")
    return b


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

    >>> import numpy as np
    >>> x, b = np.random.default_rng(0).random((100, 2)), np.ones((100, 1))
    >>> plain = KernelLinearSolver("numpy", ("gaussian", 2, 1, 0.5), x, b, alpha=0.1)
    >>> helped = KernelLinearSolver("numpy", ("gaussian", 2, 1, 0.5), x, b, alpha=0.1, precond=True)
    >>> np.allclose(plain, helped, atol=1e-4)
    True
    """
    if _takes_tensors(binding, x, b):
        of_arrays = _of_arrays(K, x) if callable(K) else K
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
    ridge, cap = ridge_of(alpha), cap_of(b, None)
    target = positive(eps) ** 2 * (1 if precond else b.size)
    if precond and not ridge > 0:
        raise FormulaError(f"precond needs alpha > 0, not {alpha!r}: it divides by alpha")
    return driven(
        _by_products(x, b, target, cap, ridge, precond, precondKernel, seed), _products_of(kernel, x)
    )


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
        given = (to_tensor(np.ascontiguousarray(a), dtype_name(a.dtype), like.device) for a in arrays)
        return to_numpy(function(*given))

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


def _by_products(
    x: Array,
    b: Array,
    target: float,
    cap: int,
    ridge: float,
    precond: bool,
    pairwise: Callable[..., Array] | None,
    seed: int | np.random.Generator,
) -> Iteration[Array]:
    inverse = None
    if precond and b.any():
        places = drawn(len(x), isqrt(len(x)), seed)
        u, m, within = x[places], len(places), None
        if pairwise is not None:
            values = pairwise(np.repeat(u, m, axis=0), np.tile(u, (m, 1)), x)
            within = np.asarray(values, np.float64).reshape(m, m)
        inverse = yield from nystrom(b, ridge, places, within)
    return (yield from conjugate_gradients(b, target, cap, ridge, precondition=inverse))


def _products_of(kernel: Callable[..., Array], x: Array) -> Callable[[Product], Array]:
    """Products of K(x, x) and of its parts, by a function."""

    def product(request: Product) -> Array:
        rows = x if request.rows is None else x[request.rows]
        return kernel(rows, x if request.columns is None else x[request.columns], request.vector)

    return product
