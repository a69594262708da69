"""Reductions written as text: `Genred` and the `generic_*` helpers. Names and conventions follow KeOps.

A formula is checked when it is written, arrays when it is called; nothing is sent before both fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from farsum.arrays import Array, as_reals, checked, described, promoted
from farsum.compute import Computation, accuracy_of, counting, device_of
from farsum.futures import Submits, Submitted
from farsum.tensors import home_of, is_array, is_tensor, one_home, recast
from farsum_kernels.errors import (
    AxisError,
    DimensionError,
    DtypeError,
    FormulaError,
    OperandError,
    ShapeError,
)
from farsum_kernels.formula.aliases import read_alias
from farsum_kernels.formula.expr import P
from farsum_kernels.formula.text import parse
from farsum_kernels.job import DTYPES, dtype_name

if TYPE_CHECKING:
    from farsum.explain import Explanation


class Genred(Submits):
    """A reduction of a formula given as text; call it on NumPy arrays, or on tensors.

    formula        the formula, e.g. "Exp(-p*SqDist(x,y))*b"
    aliases        its arguments in order: "x = Vi(3)" rows x_i, "y = Vj(3)" rows y_j, "p = Pm(1)" a parameter
    reduction_op   "Sum", "LogSumExp", "ArgKMin", …
    axis           0 reduces over i and gives a row per j; 1 reduces over j and gives a row per i
    dtype          what the arrays must be; None takes what they are (`cuda_type` is an older word for it)
    opt_arg        K of the reductions that keep K
    formula2       the weight, for the reductions that take one
    dtype_acc, use_double_acc, sum_scheme
                   "float64", True and "kahan_scheme" compute in float64 and round the result; sums are by
                   blocks otherwise, whichever scheme is named
    enable_chunks, rec_multVar_highdim, use_fast_math
                   accepted and without effect: they tune another library's GPU code

    Raises FormulaError, UnknownOperation, DimensionError or AxisError for a formula that means nothing.

    >>> x, y, b = np.random.rand(5, 3), np.random.rand(7, 3), np.random.rand(7, 1)
    >>> f = Genred("Exp(-SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)"], axis=1)
    >>> f(x, y, b).shape
    (5, 1)
    """

    def __init__(
        self,
        formula: str,
        aliases: Sequence[str],
        reduction_op: str = "Sum",
        axis: int = 0,
        dtype: Any = None,
        opt_arg: int | None = None,
        formula2: str | None = None,
        cuda_type: Any = None,
        dtype_acc: str = "auto",
        use_double_acc: bool = False,
        sum_scheme: str = "auto",
        enable_chunks: bool = True,
        rec_multVar_highdim: bool | int | None = False,
        use_fast_math: bool = True,
    ) -> None:
        if isinstance(axis, bool) or not isinstance(axis, int | np.integer) or axis not in (0, 1):
            raise AxisError(f"axis must be 0 (reduce over i) or 1 (reduce over j), not {axis!r}")
        accuracy = accuracy_of(reduction_op, dtype_acc, use_double_acc, sum_scheme)
        parsed = parse(formula, aliases, formula2)
        if parsed.reduction:
            raise FormulaError(
                f"the formula {formula!r} is a reduction already: give what is reduced, and "
                f"reduction_op={parsed.reduction.name!r}, axis={parsed.reduction.axis}"
            )
        self.reduction_op, self.axis = reduction_op, int(axis)
        self.opt_arg = _kept(opt_arg)
        self._text, self._arguments = formula, parsed.arguments
        declared = {read_alias(text, place).index for place, text in enumerate(aliases)}
        self.aliases = [*aliases, *(str(a) for a in parsed.arguments if a.index not in declared)]
        self.nargs = parsed.nargs
        self.optional_flags = {"dtype_acc": accuracy.dtype_acc, "sum_scheme": accuracy.sum_scheme}
        extra = [reduction_op, formula, self.opt_arg, 1 - self.axis, formula2]
        self.formula = f"{extra[0]}_Reduction({','.join(str(e) for e in extra[1:] if e is not None)})"
        self._dtype = _named_dtype(cuda_type if dtype is None else dtype)
        try:
            Computation(parsed.root, parsed.weight, reduction_op, self.axis, self.opt_arg or 0)
        except FormulaError as error:
            raise type(error)(f"{error}; the formula is {formula!r}") from None
        every = [argument.variable for argument in parsed.arguments]
        root = counting(parsed.root, parsed.weight, every)
        self.computation = Computation(
            root, parsed.weight, reduction_op, self.axis, self.opt_arg or 0, accuracy
        )

    def __repr__(self) -> str:
        return f"Genred({self._text!r}, {self.aliases}, {self.reduction_op!r}, axis={self.axis})"

    def __call__(
        self,
        *args: Any,
        backend: str = "auto",
        device_id: int = -1,
        ranges: Sequence[Any] | None = None,
        out: Any = None,
        deadline_s: float | None = None,
        keep: bool = False,
    ) -> Any:
        """The reduction of these arrays, one per alias, of the shapes (..., M, D), (..., N, D) and (..., D).

        backend      "auto"; "CPU", or "GPU" and its kin, for a device of this process, or a server that has no other
        device_id    which GPU of this process; without effect on the CPU
        ranges       six arrays of ints for a block-sparse reduction
        out          an array that receives the result and is returned
        deadline_s   give up after so many seconds
        keep         leave the result where it is computed, and give a handle to it

        Raises ShapeError or DtypeError, naming the argument, before anything is sent.
        """
        device = device_of(backend, device_id)
        arrays, dtype = self.typed(args)
        names = {a.index: a.label for a in self._arguments}
        return self.computation.run(arrays, dtype, names, ranges, out, deadline_s, keep, device)

    def submit(
        self,
        *args: Any,
        ranges: Sequence[Array] | None = None,
        deadline_s: float | None = None,
        keep: bool = False,
    ) -> Submitted:
        """The future of a call. The arrays must not change until it is done; those of handles never do.

        Raises ShapeError or DtypeError at once, and OperandError for tensors. `asubmit` is the same, awaited.
        """
        arrays, dtype = self.typed(args)
        names = {a.index: a.label for a in self._arguments}
        return self.computation.submit(arrays, dtype, names, ranges, deadline_s, keep)

    def explain(self, *args: Any) -> Explanation:
        """What a call on these arrays computes, sends and costs, without computing anything."""
        from farsum.explain import explained

        return explained(self.computation, *self.typed(args), self.formula)

    def typed(self, args: Sequence[Any]) -> tuple[dict[int, Array], str]:
        """The arrays of a call by variable index, all of one dtype, and that dtype."""
        args = tuple(map(as_reals, args))
        arrays = self._inputs(args)
        for argument, array in zip(self._arguments, args, strict=True):
            checked(array, argument.label)
        dtype = self._dtype
        if dtype is None:
            dtype = common_dtype(args, [a.label for a in self._arguments])
            arrays = {n: recast(a, dtype) for n, a in arrays.items()}
        elif any(is_tensor(a) for a in args):
            common_dtype(args, [a.label for a in self._arguments])
        return arrays, dtype

    def _inputs(self, args: Sequence[Array]) -> dict[int, Array]:
        """The arrays by variable index. A parameter may be written like one row, or without its axis."""
        words = ", ".join(a.label for a in self._arguments)
        if len(args) != self.nargs:
            raise ShapeError(f"expected {self.nargs} arguments ({words}), received {len(args)}")
        for argument, array in zip(self._arguments, args, strict=True):
            if not is_array(array):
                raise OperandError(
                    f"{argument.label} must be a NumPy array or a tensor, not {described(array)}"
                )
        if not args:
            raise FormulaError(f"{self._text} has no arguments: there is nothing to reduce")
        rank = max((a.ndim for v, a in zip(self._arguments, args, strict=True) if v.category != P), default=2)
        return {
            v.index: _parameter(a, rank) if v.category == P else a
            for v, a in zip(self._arguments, args, strict=True)
        }


def common_dtype(args: Sequence[Any], names: Sequence[str]) -> str:
    """The dtype that arguments have together: NumPy's; of tensors the one that all have.

    Raises OperandError where NumPy arrays and tensors meet, or two devices; DtypeError for tensors of two dtypes.
    """
    if not any(is_tensor(a) for a in args):
        return str(np.result_type(*[a.dtype for a in args]))
    home, dtype = home_of(args[0]), dtype_name(args[0].dtype)
    for arg, name in zip(args, names, strict=True):
        home = one_home(home, home_of(arg), name)
        dtype = promoted(dtype, dtype_name(arg.dtype), home, name) or dtype
    return dtype


def _kept(k: Any) -> int | None:
    """The K of a reduction; 0 counts as none."""
    if k is None or (isinstance(k, int | np.integer) and not isinstance(k, bool)):
        return int(k) if k else None
    raise FormulaError(f"opt_arg is the int K of a reduction that keeps K, not {k!r}")


def _parameter(array: Array, rank: int) -> Array:
    if array.ndim == 0:
        return array.reshape(1)
    if array.ndim == rank and array.shape[-2] == 1:
        return array.reshape(*array.shape[:-2], array.shape[-1])
    return array


def _named_dtype(dtype: Any) -> str | None:
    if dtype is None:
        return None
    try:
        name = str(np.dtype(dtype).name)
    except TypeError:
        name = dtype_name(dtype)
    if name not in DTYPES:
        raise DtypeError(f"dtype {name} is not one of {', '.join(DTYPES)}")
    return name


# ── the generic_* helpers ─────────────────────────────────────────────────────────────────────────


def generic_sum(formula: str, output: str, *aliases: str, **options: Any) -> Genred:
    """The sum of a formula; `output` such as "a = Vi(3)" says along what the result is indexed.

    >>> f = generic_sum("Exp(-SqDist(x,y))*b", "a = Vi(2)", "x = Vi(3)", "y = Vj(3)", "b = Vj(2)")
    >>> f(np.random.rand(5, 3), np.random.rand(7, 3), np.random.rand(7, 2)).shape
    (5, 2)
    """
    return _generic("Sum", formula, output, aliases, options)


def generic_logsumexp(formula: str, output: str, *aliases: str, **options: Any) -> Genred:
    """log Σ exp of a scalar formula, or log Σ exp(formula)·formula2; `output` as in `generic_sum`."""
    return _generic("LogSumExp", formula, output, aliases, options)


def generic_argmin(formula: str, output: str, *aliases: str, **options: Any) -> Genred:
    """The index (int64) of the smallest value of a formula; `output` as in `generic_sum`."""
    return _generic("ArgMin", formula, output, aliases, options)


def generic_argkmin(formula: str, output: str, *aliases: str, **options: Any) -> Genred:
    """The indices (int64) of the K smallest values of a formula; `output` is "a = Vi(K)" or "a = Vj(K)"."""
    if "opt_arg" in options:
        raise TypeError("generic_argkmin takes K from `output`, not from opt_arg")
    return _generic("ArgKMin", formula, output, aliases, {"opt_arg": read_alias(output, 0).dim} | options)


def _generic(
    reduction: str, formula: str, output: str, aliases: Sequence[str], options: Mapping[str, Any]
) -> Genred:
    declared = read_alias(output, 0)
    if declared.category == P:
        raise AxisError(
            f"the output {output!r} is indexed by i or j: write Vi({declared.dim}) or Vj({declared.dim})"
        )
    if "axis" in options:
        raise TypeError(f"axis follows from the output {output!r}")
    made = Genred(formula, list(aliases), reduction, 1 - declared.category, **options)
    width = made.computation.spec("float32").parts[0].output_tail()[0]
    if width != declared.dim:
        raise DimensionError(
            f"the output {output!r} has dimension {declared.dim}; {made.formula} gives {width}"
        )
    return made
