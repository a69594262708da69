"""Linear systems whose matrix is a reduction: `KernelSolve`, and the solvers below it for an operator of your own.

The iterations are those of farsum_kernels.iterations. A system of arrays is solved where the arrays are, in one call;
an operator that is a function is called here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import isqrt
from typing import Any

import numpy as np

from farsum.arrays import Array, as_numbers, as_reals, checked, described, is_complex, is_number
from farsum.compute import device_of
from farsum.genred import Genred, common_dtype
from farsum.systems import System, cap_of, positive, ridge_of, widened
from farsum.tensors import is_array, is_tensor, recast, to_numpy, to_tensor
from farsum_kernels.errors import (
    DimensionError,
    DtypeError,
    FormulaError,
    FormulaTooLarge,
    OperandError,
    ShapeError,
    SolverDidNotConverge,
)
from farsum_kernels.formula.aliases import Argument, read_alias
from farsum_kernels.formula.expr import P
from farsum_kernels.formula.grad import check_linear
from farsum_kernels.formula.text import parse
from farsum_kernels.iterations.conjugate import conjugate_gradients
from farsum_kernels.iterations.nystrom import drawn, nystrom
from farsum_kernels.iterations.request import Iteration, Operator, Product, driven
from farsum_kernels.job import dtype_name, extent_of


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


class KernelSolve:
    """The inverse of a sum: call it on arrays to get a with alpha·a + Σ formula(…, a, …) = b.

    formula, aliases    as in `Genred`; the formula is linear in one argument, and the matrix that it stands
                        for is symmetric positive definite, which is not checked
    varinvalias         that argument, by its name or as "Var(index,dim,category)". Its place in a call takes
                        the right-hand side b, and the result replaces it
    axis                0 sums over i, 1 over j. Rows i and rows j are the same points, given twice
    dtype               what the arrays must be; None takes what they are
    dtype_acc, use_double_acc, sum_scheme
                        as in `Genred`, for the sums within each product
    opt_arg             there for the place it takes; a sum keeps no K
    enable_chunks, rec_multVar_highdim, use_fast_math
                        accepted and without effect: they tune another library's GPU code

    Raises FormulaError when the formula is not linear in the argument or there is no such argument,
    DimensionError when its values are not as long as the argument, and what `Genred` raises.

    >>> import numpy as np
    >>> x, b = np.random.default_rng(0).random((50, 3)), np.random.default_rng(1).random((50, 2))
    >>> aliases = ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)"]
    >>> a = KernelSolve("Exp(-SqDist(x,y))*b", aliases, "b", axis=1)(x, x, b, alpha=0.1)
    >>> Ka = Genred("Exp(-SqDist(x,y))*b", aliases, axis=1)(x, x, a)
    >>> np.allclose(0.1 * a + Ka, b, atol=1e-4)
    True
    """

    def __init__(
        self,
        formula: str,
        aliases: Sequence[str],
        varinvalias: str,
        axis: int = 0,
        dtype: Any = None,
        opt_arg: int | None = None,
        dtype_acc: str = "auto",
        use_double_acc: bool = False,
        sum_scheme: str = "auto",
        enable_chunks: bool = True,
        rec_multVar_highdim: bool | int | None = None,
        use_fast_math: bool = True,
    ) -> None:
        self._sum = Genred(
            formula,
            aliases,
            axis=axis,
            dtype=dtype,
            opt_arg=opt_arg,
            dtype_acc=dtype_acc,
            use_double_acc=use_double_acc,
            sum_scheme=sum_scheme,
            enable_chunks=enable_chunks,
            rec_multVar_highdim=rec_multVar_highdim,
            use_fast_math=use_fast_math,
        )
        parsed = parse(formula, aliases)
        self._text, self._arguments = formula, parsed.arguments
        self.aliases, self.varinvalias, self.axis = self._sum.aliases, varinvalias, int(axis)
        try:
            self.dtype = None if dtype is None else np.dtype(dtype).name
        except TypeError:
            raise DtypeError(f"NumPy has no arrays of dtype {dtype}") from None
        self._solved = _argument(varinvalias, parsed.arguments)
        if self._solved.category == P:
            raise FormulaError(
                f"{self._solved.label} is a parameter; what is solved for has rows: declare it Vi or Vj"
            )
        if parsed.root.dim != self._solved.dim:
            raise DimensionError(
                f"{formula!r} has dimension {parsed.root.dim} and {self._solved.label} has {self._solved.dim}; "
                f"a system has as many equations as unknowns"
            )
        try:
            # A formula that is too large to differentiate is taken on trust.
            with suppress(FormulaTooLarge):
                check_linear(parsed.root, self._solved.variable)
        except FormulaError:
            raise FormulaError(
                f"{formula!r} is not linear in {self._solved.label}, so there is no system to solve"
            ) from None

    def __repr__(self) -> str:
        return f"KernelSolve({self._text!r}, {self.aliases}, {self.varinvalias!r}, axis={self.axis})"

    def __call__(
        self,
        *args: Any,
        backend: str = "auto",
        device_id: int = -1,
        alpha: Any = 1e-10,
        eps: float = 1e-6,
        ranges: Sequence[Any] | None = None,
        max_iterations: int | None = None,
        method: str = "cg",
        precond: int | bool = False,
        deadline_s: float | None = None,
        keep: bool = False,
    ) -> Any:
        """The solution for these arrays, one per alias: shapes (..., M, D), (..., N, D), (..., D), with M = N.

        alpha           the ridge: alpha·a is added to the sum. None or 0 for none; of tensors also a tensor of one
        eps             stop when ‖residual‖² < size of b times eps²
        max_iterations  as in `conjugate_gradient`
        method          "cg", or "minres" for a matrix that is symmetric and not definite
        precond         precondition with the Nyström approximation on so many points, or on √N of them (True);
                        without batches, with alpha > 0
        deadline_s      give up after so many seconds, all products together
        keep            leave the solution where it is computed, and give a handle to it
        backend, device_id, ranges
                        as in `Genred`; blocks of pairs must lie symmetric

        The result has the shape of b, broadcast to the batch axes of the others, and the dtype that NumPy
        gives all arrays together, or that all tensors have. Gradients flow to every tensor, alpha too. A complex b is solved as pairs of reals, and so is a. On a server all
        iterations are one call.

        Raises ShapeError or DtypeError, naming the argument, before anything is sent; SolverDidNotConverge,
        with the iterate and the residuals; DeadlineExceeded.
        """
        device = device_of(backend, device_id)
        held = self._checked(args)
        place = self._solved.index
        arrays, dtype = self._sum.typed(held)
        pairs = is_complex(args[place])
        options = {"eps": eps, "max_iterations": max_iterations, "method": method, "precond": precond}
        system = System(self._sum.computation, place, dtype, options, ranges, deadline_s, keep, device)
        try:
            a = system.solved(arrays, alpha)
        except SolverDidNotConverge as error:
            if pairs and error.iterate is not None:
                error.iterate = as_numbers(error.iterate)
            raise
        return as_numbers(a) if pairs else a

    def _checked(self, args: Sequence[Any]) -> list[Any]:
        """The arrays, contiguous and of one dtype, the right-hand side with all batch axes.

        Copied once here, so that no product copies them again.
        """
        if len(args) != len(self._arguments):
            words = ", ".join(a.label for a in self._arguments)
            raise ShapeError(f"expected {len(self._arguments)} arguments ({words}), received {len(args)}")
        for argument, array in zip(self._arguments, args, strict=True):
            if not is_array(array):
                raise OperandError(
                    f"{argument.label} must be a NumPy array or a tensor, not {described(array)}"
                )
        reals = [as_reals(a) for a in args]
        for argument, array in zip(self._arguments, reals, strict=True):
            checked(array, argument.label)
            if self.dtype is not None and dtype_name(array.dtype) != self.dtype:
                raise DtypeError(
                    f"{argument.label} has dtype {array.dtype} where dtype={self.dtype!r} was asked for"
                )
        dtype = common_dtype(reals, [a.label for a in self._arguments])
        arrays = [
            np.ascontiguousarray(a, dtype) if isinstance(a, np.ndarray) else recast(a, dtype) for a in reals
        ]
        place = self._solved.index
        arrays[place] = self._right_hand_side(arrays)
        return arrays

    def _right_hand_side(self, arrays: Sequence[Any]) -> Any:
        """b with the batch axes of all arguments. Raises ShapeError where shapes do not fit a system."""
        rank = max(a.ndim for v, a in zip(self._arguments, arrays, strict=True) if v.category != P)
        shapes = {v.index: a.shape for v, a in zip(self._arguments, arrays, strict=True)}
        for argument in self._arguments:
            shape = shapes[argument.index]
            # A parameter may be written like one row of a batch.
            if argument.category == P and len(shape) == rank and shape[-2] == 1:
                shapes[argument.index] = (*shape[:-2], shape[-1])
        spec = self._sum.computation.spec(dtype_name(arrays[0].dtype))
        extent = extent_of(spec, shapes, {v.index: v.label for v in self._arguments})
        kept = extent.m if self.axis == 1 else extent.n
        b = arrays[self._solved.index]
        if b.shape[-2] != kept:
            raise ShapeError(
                f"the right-hand side {self._solved.label} has {b.shape[-2]} rows, but the sum over "
                f"{'ij'[self.axis]} gives {kept}: rows i and rows j of a system are the same points"
            )
        return widened(b, extent.batch)


def _argument(name: Any, arguments: Sequence[Argument]) -> Argument:
    """The argument of this name, or of this place, dimension and category."""
    there = ", ".join(a.name or str(a) for a in arguments)
    if not isinstance(name, str):
        raise OperandError(f"varinvalias is the name of an argument ({there}), not {name!r:.80}")
    bare = "".join(name.split())
    for argument in arguments:
        if bare == argument.name:
            return argument
    if bare.startswith("Var("):
        wanted = read_alias(bare, 0)
        for argument in arguments:
            if argument.agrees(wanted):
                return argument
    raise FormulaError(f"varinvalias={name!r:.80} is not among the arguments: {there}")


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
