"""`KernelSolve`: the inverse of a sum that is written as text. Names and conventions follow KeOps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from farsum.arrays import as_numbers, as_ranges, as_reals, is_complex
from farsum.compute import check_backend
from farsum.genred import Genred
from farsum.system import System
from farsum.tensors import broadcast, is_array
from farsum_kernels.errors import (
    DimensionError,
    DtypeError,
    FormulaError,
    FormulaTooLarge,
    OperandError,
    ShapeError,
)
from farsum_kernels.formula.aliases import Argument, read_alias
from farsum_kernels.formula.expr import P
from farsum_kernels.formula.grad import check_linear
from farsum_kernels.formula.text import parse
from farsum_kernels.job import dtype_name, extent_of


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
        deadline_s: float | None = None,
    ) -> Any:
        """The solution for these arrays, one per alias: shapes (..., M, D), (..., N, D), (..., D), with M = N.

        alpha           the ridge: alpha·a is added to the sum. None or 0 for none; of tensors also a tensor of one
        eps             stop when ‖residual‖² < size of b times eps²
        max_iterations  as in `conjugate_gradient`
        deadline_s      give up after so many seconds, all products together
        backend, device_id, ranges
                        as in `Genred`; blocks of pairs must lie symmetric

        The result has the shape of b, broadcast to the batch axes of the others, and the dtype that NumPy
        gives all arrays together, or that all tensors have. Gradients flow to every tensor, alpha too. A complex b is solved as pairs of reals, and so is a.

        Raises ShapeError or DtypeError, naming the argument, before anything is sent; SolverDidNotConverge,
        with the iterate and the residuals; DeadlineExceeded.
        """
        check_backend(backend)
        arrays, dtype = self._checked(args)
        place = self._solved.index
        held = None if ranges is None else list(as_ranges(ranges).values())
        system = System(self._sum.computation, place, dtype, eps, max_iterations, held, deadline_s)
        a = system.solved(arrays, alpha)
        return as_numbers(a) if is_complex(args[place]) else a

    def _checked(self, args: Sequence[Any]) -> tuple[dict[int, Any], str]:
        """The arrays by number, all of one dtype, the right-hand side with all batch axes; and that dtype."""
        if self.dtype is not None:
            for argument, array in zip(self._arguments, map(as_reals, args), strict=False):
                if is_array(array) and dtype_name(array.dtype) != self.dtype:
                    raise DtypeError(
                        f"{argument.label} has dtype {array.dtype} where dtype={self.dtype!r} was asked for"
                    )
        arrays, dtype = self._sum._typed(args)
        spec = self._sum.computation.spec(dtype)
        shapes = {n: tuple(a.shape) for n, a in arrays.items()}
        extent = extent_of(spec, shapes, {v.index: v.label for v in self._arguments})
        kept = extent.m if self.axis == 1 else extent.n
        place = self._solved.index
        b = arrays[place]
        if b.shape[-2] != kept:
            raise ShapeError(
                f"the right-hand side {self._solved.label} has {b.shape[-2]} rows, but the sum over "
                f"{'ij'[self.axis]} gives {kept}: rows i and rows j of a system are the same points"
            )
        arrays[place] = broadcast(b, (*extent.batch, *b.shape[-2:]))
        return arrays, dtype


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
