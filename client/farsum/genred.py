"""Reductions written as text: `Genred` and the `generic_*` helpers. Names and conventions follow KeOps.

A formula is checked when it is written, arrays when it is called; nothing is sent before both fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from farsum.arrays import Array, as_ranges, as_reals, checked
from farsum.target import prepared
from farsum_kernels.errors import (
    AxisError,
    DimensionError,
    DtypeError,
    EngineMissing,
    FormulaError,
    ShapeError,
)
from farsum_kernels.formula.aliases import Argument, read_alias
from farsum_kernels.formula.expr import Expr, P, node, variables
from farsum_kernels.formula.reductions import Kind, reduction_named
from farsum_kernels.formula.text import parse
from farsum_kernels.job import (
    DTYPES,
    Extent,
    Options,
    Spec,
    check_arrays,
    output_dtypes,
    output_shapes,
)

_BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
_SCHEMES = ("auto", "direct_sum", "block_sum", "kahan_scheme")
_GPU = ("GPU", *(f"GPU_{d}D{where}" for d in (1, 2) for where in ("", "_device", "_host")))
_BACKENDS = ("auto", "CPU", *_GPU)


class Genred:
    """A reduction of a formula given as text; call it on NumPy arrays.

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
        _check_accuracy(reduction_op, dtype_acc, use_double_acc, sum_scheme)
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
        self.optional_flags = {
            "dtype_acc": "float64" if use_double_acc else dtype_acc,
            "sum_scheme": sum_scheme,
        }
        extra = [reduction_op, formula, self.opt_arg, 1 - self.axis, formula2]
        self.formula = f"{extra[0]}_Reduction({','.join(str(e) for e in extra[1:] if e is not None)})"
        self._dtype = _named_dtype(cuda_type if dtype is None else dtype)
        self._root, self._weight = _counting_all(parsed.root, parsed.weight, parsed.arguments), parsed.weight
        # What cannot be reduced is refused here, not at the first call.
        try:
            _spec(
                parsed.root,
                parsed.weight,
                reduction_op,
                self.axis,
                self._dtype or "float32",
                self.opt_arg or 0,
            )
        except FormulaError as error:
            raise type(error)(f"{error}; the formula is {formula!r}") from None

    def __repr__(self) -> str:
        return f"Genred({self._text!r}, {self.aliases}, {self.reduction_op!r}, axis={self.axis})"

    def __call__(
        self,
        *args: Array,
        backend: str = "auto",
        device_id: int = -1,
        ranges: Sequence[Array] | None = None,
        out: Array | None = None,
        deadline_s: float | None = None,
    ) -> Any:
        """The reduction of these arrays, one per alias, of the shapes (..., M, D), (..., N, D) and (..., D).

        backend      "auto" or "CPU"; a GPU where the engine has one
        device_id    which GPU; without effect on the CPU
        ranges       six arrays of ints for a block-sparse reduction
        out          an array that receives the result and is returned
        deadline_s   give up after so many seconds

        Raises ShapeError or DtypeError, naming the argument, before anything is sent.
        """
        _check_backend(backend)
        args = tuple(map(as_reals, args))
        arrays = self._inputs(args)
        for argument, array in zip(self._arguments, args, strict=True):
            checked(array, argument.label)
        dtype = self._dtype
        if dtype is None:
            dtype = str(np.result_type(*args))
            arrays = {n: a.astype(dtype, copy=False) for n, a in arrays.items()}
        self._check_accumulator(dtype)
        spec = self._spec(dtype)
        extent = check_arrays(spec, arrays | as_ranges(ranges), {a.index: a.label for a in self._arguments})
        if out is not None:
            _check_out(out, spec, extent)
        values = self._computed(spec, arrays, as_ranges(ranges), Options(deadline_s=deadline_s))
        if out is not None:
            out[...] = values[0]
            return out
        return values[0] if len(values) == 1 else values

    def _computed(
        self, spec: Spec, arrays: dict[int, Array], ranges: dict[int, Array], options: Options
    ) -> tuple[Array, ...]:
        flags, dtype = self.optional_flags, spec.dtype
        wide = flags["dtype_acc"] == "float64" or flags["sum_scheme"] == "kahan_scheme"
        if wide and dtype != "float64":
            spec, arrays = self._spec("float64"), {n: a.astype(np.float64) for n, a in arrays.items()}
        values = prepared(spec).run(arrays | ranges, options).values
        return tuple(v.astype(dtype) for v in values) if spec.dtype != dtype else values

    def _spec(self, dtype: str) -> Spec:
        return _spec(self._root, self._weight, self.reduction_op, self.axis, dtype, self.opt_arg or 0)

    def _inputs(self, args: Sequence[Array]) -> dict[int, Array]:
        """The arrays by variable index. A parameter may be written like one row, or without its axis."""
        words = ", ".join(a.label for a in self._arguments)
        if len(args) != self.nargs:
            raise ShapeError(f"expected {self.nargs} arguments ({words}), received {len(args)}")
        for argument, array in zip(self._arguments, args, strict=True):
            if not isinstance(array, np.ndarray):
                raise DtypeError(f"{argument.label} must be a NumPy array, not {type(array).__name__}")
        if not args:
            raise FormulaError(f"{self._text} has no arguments: there is nothing to reduce")
        rank = max((a.ndim for v, a in zip(self._arguments, args, strict=True) if v.category != P), default=2)
        return {
            v.index: _parameter(a, rank) if v.category == P else a
            for v, a in zip(self._arguments, args, strict=True)
        }

    def _check_accumulator(self, dtype: str) -> None:
        wanted = self.optional_flags["dtype_acc"]
        if wanted != "auto" and _BITS[wanted] < _BITS[dtype]:
            raise FormulaError(f"dtype_acc={wanted!r} is narrower than the arrays, which are {dtype}")


@lru_cache(maxsize=1024, typed=True)
def _spec(root: Expr, weight: Expr | None, reduction: str, axis: int, dtype: str, k: int) -> Spec:
    return Spec(root, reduction, axis, dtype, weight, k)


def _kept(k: Any) -> int | None:
    """The K of a reduction; 0 counts as none."""
    if k is None or (isinstance(k, int | np.integer) and not isinstance(k, bool)):
        return int(k) if k else None
    raise FormulaError(f"opt_arg is the int K of a reduction that keeps K, not {k!r}")


def _counting_all(root: Expr, weight: Expr | None, arguments: Sequence[Argument]) -> Expr:
    """The formula, with arguments that it does not use added as nothing.

    They count for the number of rows and the batch shape. A structural zero times them is never computed.
    """
    used = variables(root) if weight is None else variables(root, weight)
    for argument in arguments:
        if argument.index not in used:
            nothing = node("Mult", node("Zero", params=(1,)), node("Sum", argument.variable))
            root = node("Add", root, nothing)
    return root


def _parameter(array: Array, rank: int) -> Array:
    if array.ndim == 0:
        return array.reshape(1)
    return array[..., 0, :] if array.ndim == rank and array.shape[-2] == 1 else array


def _check_out(out: Array, spec: Spec, extent: Extent) -> None:
    """Raise unless `out` can receive the result."""
    shapes, dtypes = output_shapes(spec, extent), output_dtypes(spec)
    if len(shapes) > 1:
        raise FormulaError(f"{spec.reduction} gives {len(shapes)} arrays; out takes one")
    shape, dtype = shapes[0], dtypes[0]
    if not isinstance(out, np.ndarray) or out.dtype.name != dtype:
        what = f"dtype {out.dtype}" if isinstance(out, np.ndarray) else f"type {type(out).__name__}"
        raise DtypeError(f"out has {what}; the result is a NumPy array of dtype {dtype}")
    if out.shape != shape:
        raise ShapeError(f"out has shape {out.shape}; the result has shape {shape}")
    if not out.flags.writeable:
        raise ShapeError("out is read-only")


def _named_dtype(dtype: Any) -> str | None:
    if dtype is None:
        return None
    try:
        name = str(np.dtype(dtype).name)
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise DtypeError(f"dtype {name} is not one of {', '.join(DTYPES)}")
    return name


def _check_backend(backend: str) -> None:
    if backend not in _BACKENDS:
        raise FormulaError(f"backend {backend!r} is not one of {', '.join(_BACKENDS)}")
    if backend in _GPU:
        raise EngineMissing(
            f"backend={backend!r} needs a CUDA engine, and none is connected; use 'auto' or 'CPU'"
        )


def _check_accuracy(reduction: str, dtype_acc: str, use_double_acc: bool, sum_scheme: str) -> None:
    """Raise FormulaError for options that contradict each other or the reduction."""
    if dtype_acc not in ("auto", "float16", "float32", "float64"):
        raise FormulaError(f"dtype_acc must be 'auto', 'float16', 'float32' or 'float64', not {dtype_acc!r}")
    if sum_scheme not in _SCHEMES:
        raise FormulaError(f"sum_scheme must be one of {', '.join(_SCHEMES)}, not {sum_scheme!r}")
    if use_double_acc and dtype_acc != "auto":
        raise FormulaError("give dtype_acc or use_double_acc, not both")
    if Kind.WIDE in reduction_named(reduction).state(1, 1):
        return
    if use_double_acc or dtype_acc != "auto":
        raise FormulaError(f"{reduction} adds nothing up: it takes neither dtype_acc nor use_double_acc")
    if sum_scheme not in ("auto", "direct_sum"):
        raise FormulaError(f"{reduction} adds nothing up: sum_scheme={sum_scheme!r} does not fit it")


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
    width = made._spec("float32").parts[0].output_tail()[0]
    if width != declared.dim:
        raise DimensionError(
            f"the output {output!r} has dimension {declared.dim}; {made.formula} gives {width}"
        )
    return made
