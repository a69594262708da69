"""Linear systems whose matrix is a reduction: `KernelSolve`. A system is solved where its arrays are, in one call.

The solvers for an operator of your own, of farsum/solvers.py, are found here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from farsum.arrays import as_numbers, as_reals, checked, described, is_complex
from farsum.compute import device_of
from farsum.genred import Genred, common_dtype
from farsum.solvers import ConjugateGradientSolver, KernelLinearSolver, conjugate_gradient
from farsum.systems import System, widened
from farsum.tensors import is_array, recast
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
from farsum_kernels.job import dtype_name, extent_of

__all__ = ["KernelSolve", "KernelLinearSolver", "ConjugateGradientSolver", "conjugate_gradient"]


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
