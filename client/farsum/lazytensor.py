"""LazyTensor: a formula over rows x_i and y_j that looks like an array and is never built.

Every dimension, dtype, batch and axis error is raised here, when the formula is written, with the
shapes of the user's arrays. Names and conventions follow the KeOps LazyTensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np

from farsum.arrays import Array, Input, as_ranges, checked, is_number, loose, promoted
from farsum.operations import Operations
from farsum.target import prepared
from farsum_kernels.errors import AxisError, DimensionError, DtypeError, FormulaError, ShapeError
from farsum_kernels.formula.expr import Expr, I, J, P, constant, node, substitute, swap_axes, variable
from farsum_kernels.job import Options, Spec, dtype_name

_WORD = {I: "i", J: "j", P: "parameter"}


@lru_cache(maxsize=4096)
def _renumbered(expr: Expr, places: tuple[int, ...]) -> Expr:
    """The formula with variable n renamed to places[n]."""
    if places == tuple(range(len(places))):
        return expr
    return substitute(expr, lambda v: variable(places[v.params[0]], *v.params[1:]))


_swapped = lru_cache(maxsize=4096)(swap_axes)


class LazyTensor(Operations):
    """A symbolic tensor of shape (*batch, M, N, D), written from arrays and evaluated by a reduction.

    x      (..., M, 1, D) rows of x_i; (..., 1, N, D) rows of y_j; (..., 1, 1, D) or (D,) a parameter; a
           number or list of numbers, also a parameter; or a 2-D array together with `axis`
    axis   0: the rows of a 2-D array are x_i; 1: they are y_j

    Raises ShapeError, DtypeError or AxisError when x can be none of these.

    >>> x = np.random.rand(5, 3); y = np.random.rand(7, 3)
    >>> D_ij = ((LazyTensor(x[:, None, :]) - LazyTensor(y[None, :, :])) ** 2).sum(-1)
    >>> D_ij.shape
    (5, 7)
    >>> D_ij.argmin(axis=1).shape
    (5, 1)
    """

    __array_ufunc__ = None  # numpy then leaves `array + lazytensor` to us
    __slots__ = ("batchdims", "dtype", "expr", "inputs", "ni", "nj")
    __hash__ = None

    expr: Expr
    inputs: tuple[Input, ...]
    ni: int | None
    nj: int | None
    batchdims: tuple[int, ...]
    dtype: str | None

    def __init__(self, x: Any, axis: int | None = None) -> None:
        held = _input(x, axis)
        if isinstance(held, Expr):
            self._set(held, (), None, None, (), None)
            return
        self._set(*_leaf_parts(held))

    def _set(self, expr: Expr, inputs: tuple[Input, ...], ni: int | None, nj: int | None,
             batch: tuple[int, ...], dtype: str | None) -> Self:  # fmt: skip
        self.expr, self.inputs, self.ni, self.nj, self.batchdims, self.dtype = (
            expr,
            inputs,
            ni,
            nj,
            batch,
            dtype,
        )
        return self

    # ── shape ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def _shape(self) -> tuple[int, ...]:
        return (*self.batchdims, self.ni or 1, self.nj or 1, self.expr.dim)

    @property
    def shape(self) -> tuple[int, ...]:
        """(*batch, M, N, D), without the last axis when D is 1."""
        return self._shape[:-1] if self.expr.dim == 1 else self._shape

    @property
    def ndim(self) -> int:
        """The number of axes of `shape`."""
        return len(self.shape)

    def dim(self) -> int:
        """The number of axes, the vector axis always counted."""
        return len(self.batchdims) + 3

    def __len__(self) -> int:
        raise TypeError(f"a LazyTensor has no length; its shape is {self.shape}")

    def __bool__(self) -> bool:
        raise TypeError(
            "the truth value of a LazyTensor is not defined; chained comparisons, `and` and `or` do not work on it"
        )

    def __repr__(self) -> str:
        text = str(self.expr)
        text = text if len(text) < 200 else text[:200] + "…"
        how = "reduce it over j with .sum(axis={1}), over i with .sum(axis={0})"
        nb = len(self.batchdims)
        return (
            f"LazyTensor of shape {self.shape}, dtype {self.dtype}: {text}\n"
            f"  nothing is computed yet; {how.format(nb, nb + 1)}"
        )

    def __str__(self) -> str:
        return f"KeOps LazyTensor\n    formula: {self.expr}\n    shape: {self.shape}"

    # ── building formulas ─────────────────────────────────────────────────────────────────────────

    def _apply(self, op: str, *others: Any, params: tuple[Any, ...] = ()) -> LazyTensor:
        """The LazyTensor op(self, *others)."""
        return _combine(op, (self, *(_lifted(o, op) for o in others)), params)

    def _lift(self, other: Any, op: str) -> LazyTensor:
        return _lifted(other, op)

    @property
    def T(self) -> LazyTensor:
        """The transpose: i and j trade places."""
        inputs = tuple(i.swapped() for i in self.inputs)
        return _new(_swapped(self.expr), inputs, self.nj, self.ni, self.batchdims, self.dtype)

    def t(self) -> LazyTensor:
        """The transpose: i and j trade places."""
        return self.T

    def __matmul__(self, v: Any) -> Any:
        """K @ v for an array v of shape (N,) or (..., N, E): the sum over j of K_ij v_j."""
        if self.expr.dim != 1:
            raise ShapeError(f"K @ v needs a scalar K; this one has shape {self.shape}")
        v = np.asarray(v)
        if v.ndim == 0:
            raise ShapeError("K @ v needs a vector or a matrix, not a number; write K * v")
        columns = checked(v[:, None] if v.ndim == 1 else v, "the array v in K @ v")
        found = (self * _leaf(Input(columns, J)))._reduce("Sum", 1)
        return found[..., 0] if v.ndim == 1 else found

    # ── reductions ────────────────────────────────────────────────────────────────────────────────

    def sum(self, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The sum along an axis: lazily along the vector axis (the default, -1), else computed.

        Over j (axis nb+1, nb the number of batch axes) it gives an array (*batch, M, D); over i
        (axis nb) an array (*batch, N, D).
        """
        return self._vector_or_computed("Sum", "Sum", axis, dim, options)

    def sum_reduction(self, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The sum over i or j, always computed."""
        return self._computed("Sum", axis, dim, **options)

    def logsumexp(self, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """log Σ exp over i or j, safe from overflow; terms of -inf count as nothing.

        weight   a LazyTensor g: log Σ exp(self)·g instead, one value for each of its components
        """
        return self._computed("LogSumExp", axis, dim, **options)

    def sumsoftmaxweight(
        self, weight: Any, axis: int | None = None, dim: int | None = None, **options: Any
    ) -> Any:
        """Σ exp(self)·weight / Σ exp(self) over i or j; `weight` is a LazyTensor of any dimension."""
        return self._computed("SumSoftMaxWeight", axis, dim, weight=weight, **options)

    def min(self, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The smallest value over i or j, by component; NaN is skipped."""
        return self._vector_or_computed("Min", "Min", axis, dim, options)

    def max(self, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The largest value over i or j, by component; NaN is skipped."""
        return self._vector_or_computed("Max", "Max", axis, dim, options)

    def argmin(self, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The index (int64) of the smallest value, the first of equal ones."""
        return self._vector_or_computed("ArgMin", "ArgMin", axis, dim, options)

    def argmax(self, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The index (int64) of the largest value, the first of equal ones."""
        return self._vector_or_computed("ArgMax", "ArgMax", axis, dim, options)

    def min_argmin(self, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The smallest value and its index."""
        return self._computed("Min_ArgMin", axis, dim, **options)

    def max_argmax(self, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The largest value and its index."""
        return self._computed("Max_ArgMax", axis, dim, **options)

    def Kmin(self, K: int, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The K smallest values in rising order: (*batch, M, K), or (*batch, M, K, D)."""
        return self._computed("KMin", axis, dim, K, **options)

    def argKmin(self, K: int, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The indices (int64) of the K smallest values in rising order."""
        return self._computed("ArgKMin", axis, dim, K, **options)

    def Kmin_argKmin(self, K: int, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The K smallest values and their indices."""
        return self._computed("KMin_ArgKMin", axis, dim, K, **options)

    def _vector_or_computed(
        self, op: str, reduction: str, axis: int | None, dim: int | None, options: dict[str, Any]
    ) -> Any:
        """Lazily along the vector axis, computed along i or j. Without an axis: along a vector, if there is one."""
        if axis is None and dim is None:
            if self.expr.dim == 1 and op != "Sum":
                nb = len(self.batchdims)
                raise AxisError(
                    f"{op.lower()} of a scalar LazyTensor of shape {self.shape} needs an axis: {nb} (over i) or "
                    f"{nb + 1} (over j)"
                )
            axis = -1
        which = self._which(axis, dim)
        if which != 2:
            return self._reduce(reduction, which, **options)
        unknown = set(options) - {"keepdim", "keepdims"}
        if unknown:
            raise TypeError(f"{op.lower()} along the vector axis takes no {', '.join(sorted(unknown))}")
        return self._apply(op)

    def _computed(self, reduction: str, axis: int | None, dim: int | None, k: int = 0, **options: Any) -> Any:
        which = self._which(axis, dim)
        if which == 2:
            nb = len(self.batchdims)
            raise AxisError(
                f"{reduction} reduces over i (axis={nb}) or over j (axis={nb + 1}), not along the vector axis"
            )
        return self._reduce(reduction, which, k, **options)

    def _which(self, axis: int | None, dim: int | None) -> int:
        """0 for the i axis, 1 for the j axis, 2 for the vector axis."""
        if axis is not None and dim is not None and axis != dim:
            raise AxisError(f"axis={axis} and dim={dim} name two axes; give one of them")
        chosen, nb = axis if axis is not None else dim, len(self.batchdims)
        legal = f"axis={nb} (over i), axis={nb + 1} (over j)"
        if not isinstance(chosen, int | np.integer) or isinstance(chosen, bool):
            raise AxisError(f"a reduction of a LazyTensor of shape {self.shape} needs an axis: {legal}")
        which = int(chosen) + 3 if chosen < 0 else int(chosen) - nb
        if which not in (0, 1, 2):
            raise AxisError(
                f"axis {chosen} of a LazyTensor of shape {self.shape} cannot be reduced; legal: {legal}"
            )
        return which

    def _reduce(
        self,
        reduction: str,
        axis: int,
        k: int = 0,
        *,
        weight: Any = None,
        ranges: Any = None,
        deadline_s: float | None = None,
    ) -> Any:
        """Compute: over i (axis 0) or over j (axis 1).

        ranges       six arrays of ints for a block-sparse reduction, see docs/quickstart.md
        deadline_s   give up after so many seconds
        """
        terms = _joint(reduction, (self,) if weight is None else (self, _weight(weight)))
        if terms.dtype is None:
            raise FormulaError(f"{self.expr} has no array in it: there is nothing to reduce")
        formula, factor = (*terms.exprs, None)[:2]
        assert formula is not None
        spec = _spec(formula, reduction, axis, terms.dtype, factor, k)
        arrays = {n: _cast(i, terms.dtype) for n, i in enumerate(terms.inputs)}
        result = prepared(spec).run(arrays | as_ranges(ranges), Options(deadline_s=deadline_s))
        return result.values[0] if len(result.values) == 1 else result.values


def _weight(weight: Any) -> LazyTensor:
    if not isinstance(weight, LazyTensor):
        raise FormulaError(f"a weight must be a LazyTensor, e.g. Vj(v), not {type(weight).__name__}")
    return weight


@lru_cache(maxsize=1024)
def _spec(expr: Expr, reduction: str, axis: int, dtype: str, weight: Expr | None, k: int) -> Spec:
    return Spec(expr, reduction, axis, dtype, weight, k)


_Parts = tuple[Expr, tuple[Input, ...], int | None, int | None, tuple[int, ...], str | None]


def _leaf_parts(held: Input) -> _Parts:
    expr = variable(0, held.dim, held.category)
    ni = held.rows if held.category == I else None
    nj = held.rows if held.category == J else None
    return expr, (held,), ni, nj, held.batch, None if held.loose else dtype_name(held.array.dtype)


def _leaf(held: Input) -> LazyTensor:
    return _new(*_leaf_parts(held))


def _cast(held: Input, dtype: str) -> Array:
    return held.array if dtype_name(held.array.dtype) == dtype else held.array.astype(dtype)


def _new(expr: Expr, inputs: tuple[Input, ...], ni: int | None, nj: int | None,
         batch: tuple[int, ...], dtype: str | None) -> LazyTensor:  # fmt: skip
    return LazyTensor.__new__(LazyTensor)._set(expr, inputs, ni, nj, batch, dtype)


def _input(x: Any, axis: int | None) -> Input | Expr:
    """What the argument of LazyTensor is: an input, or a constant formula."""
    if isinstance(x, bool | np.bool_) or not (is_number(x) or isinstance(x, list | tuple | np.ndarray)):
        raise DtypeError(
            f"a LazyTensor is made from an array, a number or a list of numbers, not {type(x).__name__}"
        )
    if isinstance(x, int | np.integer):
        return constant(int(x))
    if not isinstance(x, np.ndarray):
        if axis not in (None, 2):
            raise AxisError("numbers and lists are parameters; they take no axis")
        if not isinstance(x, float | np.floating) and (len(x) == 0 or not all(is_number(v) for v in x)):
            raise DtypeError(f"a parameter list holds numbers, at least one; received {x!r}")
        return loose(x)
    checked(x)
    if x.ndim == 2:
        if axis not in (0, 1):
            raise ShapeError(
                f"a 2-D array of shape {x.shape} can be rows of x_i or of y_j: write LazyTensor(x[:, None, :]) or "
                f"Vi(x) for x_i, LazyTensor(x[None, :, :]) or Vj(x) for y_j"
            )
        return Input(x, axis)
    if x.ndim < 2:
        if axis not in (None, 2):
            raise AxisError(f"an array of shape {x.shape} is a parameter; it takes no axis")
        if x.size == 0:
            raise ShapeError("a parameter vector has at least one entry")
        return Input(np.atleast_1d(x), P)
    if axis is not None:
        raise AxisError(f"an array of shape {x.shape} says itself what it is; it takes no axis")
    m, n = x.shape[-3:-1]
    if m == 1 and n == 1:
        return Input(x[..., 0, 0, :], P)
    if n == 1:
        return Input(x[..., 0, :], I)
    if m == 1:
        return Input(x[..., 0, :, :], J)
    raise ShapeError(
        f"an array of shape {x.shape} is no row of points: x_i has shape (..., M, 1, D), y_j (..., 1, N, D), "
        f"a parameter (..., 1, 1, D)"
    )


def _lifted(x: Any, op: str) -> LazyTensor:
    if isinstance(x, LazyTensor):
        return x
    try:
        return LazyTensor(x)
    except (ShapeError, DtypeError) as error:
        raise type(error)(f"an operand of {op} is no LazyTensor and cannot become one: {error}") from None


@dataclass(frozen=True, slots=True)
class _Joint:
    """Several LazyTensors over one list of inputs: their formulas, renumbered, and their common sizes."""

    exprs: tuple[Expr, ...]
    inputs: tuple[Input, ...]
    ni: int | None
    nj: int | None
    batch: tuple[int, ...]
    dtype: str | None


def _joint(op: str, operands: Sequence[LazyTensor]) -> _Joint:
    first = operands[0]
    inputs, exprs = first.inputs, [first.expr]
    ni, nj, batch, dtype = first.ni, first.nj, first.batchdims, first.dtype
    for other in operands[1:]:
        inputs, places = _merged(inputs, other.inputs)
        exprs.append(_renumbered(other.expr, places))
        ni, nj = _same_rows(ni, other.ni, "i", operands, op), _same_rows(nj, other.nj, "j", operands, op)
        if batch != other.batchdims:
            batch = _broadcast(
                batch, other.batchdims, f"operand {other.shape} of {op}", f"operand {first.shape}"
            )
        dtype = promoted(dtype, other.dtype)
    return _Joint(tuple(exprs), inputs, ni, nj, batch, dtype)


def _combine(op: str, operands: Sequence[LazyTensor], params: tuple[Any, ...]) -> LazyTensor:
    """op(*operands): one formula over the inputs of all of them."""
    joint = _joint(op, operands)
    try:
        expr = node(op, *joint.exprs, params=params)
    except DimensionError as error:
        shapes = " and ".join(str(o.shape) for o in operands)
        raise DimensionError(f"{error} (operands of shape {shapes})") from None
    return _new(expr, joint.inputs, joint.ni, joint.nj, joint.batch, joint.dtype)


def _merged(ours: tuple[Input, ...], theirs: tuple[Input, ...]) -> tuple[tuple[Input, ...], tuple[int, ...]]:
    """The union of two input lists, and the places of the second in it."""
    if ours is theirs:
        return ours, tuple(range(len(ours)))
    known = {held.key: n for n, held in enumerate(ours)}
    union, places = list(ours), []
    for held in theirs:
        place = known.setdefault(held.key, len(union))
        if place == len(union):
            union.append(held)
        places.append(place)
    return tuple(union), tuple(places)


def _same_rows(
    a: int | None, b: int | None, axis: str, operands: Sequence[LazyTensor], op: str
) -> int | None:
    if a is not None and b is not None and a != b:
        shapes = " and ".join(str(o.shape) for o in operands)
        raise ShapeError(f"{op} combines {a} rows with {b} rows along {axis} (operands of shape {shapes})")
    return a if b is None else b


def _broadcast(a: tuple[int, ...], b: tuple[int, ...], name: str, other: str) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        raise ShapeError(
            f"{name} has batch dimensions {b}, which do not broadcast with {a} of {other}"
        ) from None


def Vi(x: Any) -> LazyTensor:
    """Rows x_i from a 2-D array (M, D)."""
    return _rows(x, I)


def Vj(x: Any) -> LazyTensor:
    """Rows y_j from a 2-D array (N, D)."""
    return _rows(x, J)


def _rows(x: Any, category: int) -> LazyTensor:
    if not isinstance(x, np.ndarray) or x.ndim != 2:
        what = f"an array of shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise ShapeError(f"V{_WORD[category]} takes a 2-D array of points, one per row; received {what}")
    return LazyTensor(x, axis=category)


def Pm(x: Any) -> LazyTensor:
    """A parameter vector: a number, a list, a 0-D or 1-D array."""
    if isinstance(x, np.ndarray) and x.ndim > 1:
        raise ShapeError(f"Pm takes one vector; received an array of shape {x.shape}")
    return LazyTensor(x)
