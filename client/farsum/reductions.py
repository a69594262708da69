"""The reductions of a lazy tensor: over i or j they compute, along the vector axis they write a formula.

Axes of a LazyTensor of shape (*batch, M, N, D), nb the number of batch axes: nb or -3 is i, nb + 1 or -2 is
j, nb + 2 or -1 the vector. `dim` is another word for `axis`. Results have the shape (*batch, M, D) over j
and (*batch, N, D) over i; D stays when it is 1. Indices are int64.

Every reduction over i or j takes these options:

call         False gives a callable object instead of computing, see `Reduced`
backend      "auto" or "CPU"; a GPU where the engine has one
device_id    which GPU of this process; without effect on the CPU
ranges       six arrays of ints for a block-sparse reduction; None for none, whatever `self.ranges` says
mask, radius, segments
             which pairs take part, see `farsum.selection`
out          an array that receives the result and is returned
dtype_acc, use_double_acc, sum_scheme
             "float64", True and "kahan_scheme" compute in float64 and round once
deadline_s   give up after so many seconds
keep         leave the result where it is computed, and give a handle to it: see `farsum.put`
enable_chunks, use_fast_math, rec_multVar_highdim
             accepted and without effect: they tune another library's GPU code
"""

from __future__ import annotations

from typing import Any

from farsum.compute import accuracy_of, check_backend
from farsum.frame import join, renumbered
from farsum.lazy import Lazy, need
from farsum.reduced import KEEP, Reduced
from farsum.selection import Selection, select
from farsum_kernels.errors import AxisError, AxisMissing, FormulaError, OperandError

_OPTIONS = frozenset((
    "call", "backend", "device_id", "ranges", "mask", "radius", "segments", "out", "dtype_acc", "use_double_acc",
    "sum_scheme", "deadline_s", "keep", "enable_chunks", "use_fast_math", "rec_multVar_highdim", "keepdim", "keepdims",
))  # fmt: skip


_MEANS = ("SumSoftMaxWeight", "SoftMax")  # linear in their weights, so these may be complex


class Reductions(Lazy):
    """The part of a lazy tensor that reduces."""

    __slots__ = ()

    def sum(self, axis: int | None = -1, dim: int | None = None, **options: Any) -> Any:
        """The sum along an axis; along the vector axis by default."""
        return self._along("Sum", axis, dim, options)

    def sumsoftmaxweight(
        self, weight: Any, axis: int | None = None, dim: int | None = None, **options: Any
    ) -> Any:
        """Σ exp(self)·weight / Σ exp(self) over i or j; `weight` is a LazyTensor of any dimension."""
        return self._computed("SumSoftMaxWeight", axis, dim, weight=weight, **options)

    def sum_reduction(self, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The sum over i or j, always computed."""
        return self._computed("Sum", axis, dim, **options)

    def sumsoftmaxweight_reduction(self, **options: Any) -> Any:
        """`sumsoftmaxweight`, by keywords alone."""
        return self._computed("SumSoftMaxWeight", **options)

    def reduction(
        self,
        reduction_op: str,
        other: Any = None,
        opt_arg: int | None = None,
        axis: int | None = None,
        dim: int | None = None,
        **options: Any,
    ) -> Any:
        """Any reduction by its name, see docs/parity.md; `other` is its weight, `opt_arg` its K."""
        options.pop("is_complex", None)
        return self._computed(reduction_op, axis, dim, opt_arg or 0, weight=other, **options)

    def _along(self, op: str, axis: Any, dim: Any, options: dict[str, Any]) -> Any:
        """Lazily along the vector axis, computed along i or j."""
        if dim is not None and axis == -1:
            axis = None  # the default, which `dim` replaces
        which = self._axis_of(axis, dim)
        if which != 2:
            return self._reduce(op, which, **options)
        for unknown in set(options) - _OPTIONS:
            raise TypeError(f"{op.lower()} along the vector axis takes no option {unknown!r}")
        return self._vector(op)

    def _vector(self, op: str) -> Any:
        return self._apply(op)

    def _computed(self, reduction: str, axis: Any = None, dim: Any = None, k: int = 0, **options: Any) -> Any:
        if axis is None and dim is None:
            raise AxisMissing(
                f"{reduction} of a LazyTensor of shape {self.shape} needs an axis: {self._legal_axes()}"
            )
        which = self._axis_of(axis, dim)
        if which == 2:
            raise AxisError(
                f"{reduction} reduces over i or j, not along the vector axis: {self._legal_axes()}"
            )
        return self._reduce(reduction, which, k, **options)

    def _reduce(
        self,
        reduction: str,
        axis: int,
        k: int = 0,
        *,
        weight: Any = None,
        call: bool = True,
        backend: Any = KEEP,
        device_id: int = -1,
        ranges: Any = KEEP,
        mask: Any = None,
        radius: Any = None,
        segments: Any = None,
        out: Any = None,
        dtype_acc: str = "auto",
        use_double_acc: bool = False,
        sum_scheme: str = "auto",
        deadline_s: float | None = None,
        keep: bool = False,
        enable_chunks: bool = True,
        use_fast_math: bool = True,
        rec_multVar_highdim: Any = False,
    ) -> Any:
        """Over i (axis 0) or over j (axis 1): the result, or a Reduced to call later."""
        lazy: Reductions = self
        selection: Selection | None = None
        if mask is not None or radius is not None or segments is not None:
            if ranges is not KEEP or self.frame.ranges is not None:
                raise FormulaError("give ranges or one of mask, radius and segments, not both")
            lazy, selection = select(self, reduction, mask, radius, segments)
        frame, root, factor, complex_ = lazy.frame, lazy.expr, None, self.is_complex
        if weight is not None:
            weight = need(weight, f"the weight of {reduction}")
            frame, places = join(frame, weight.frame, reduction)
            factor = weight.expr if places is None else renumbered(weight.expr, places)
            complex_ = weight.is_complex
            if complex_ and reduction not in _MEANS:
                raise FormulaError(
                    f"{reduction} with complex weights has no one value: a complex logarithm has many branches. "
                    f"sumsoftmaxweight takes complex weights"
                )
        if not frame.inputs:
            raise FormulaError(f"{self.formula} has no array in it: there is nothing to reduce")
        if selection is None:
            held = frame.ranges if ranges is KEEP else ranges
        else:
            frame, held = selection.arranged(frame), selection.ranges
        if backend is not KEEP:
            check_backend(backend)
            frame = frame.but(backend=backend)
        accuracy = accuracy_of(reduction, dtype_acc, use_double_acc, sum_scheme)
        made = Reduced(frame, root, factor, reduction, axis, k, accuracy, held, complex_, selection)
        if not call or made.slots:
            if out is not None or deadline_s is not None or keep:
                raise OperandError(
                    "out, deadline_s and keep belong to the call of the object that this gives"
                )
            return made
        return made(device_id=device_id, out=out, deadline_s=deadline_s, keep=keep)


class RealReductions(Reductions):
    """The reductions of real numbers alone: they need an order, or a logarithm."""

    __slots__ = ()

    def logsumexp(
        self, axis: int | None = None, dim: int | None = None, weight: Any = None, **options: Any
    ) -> Any:
        """log Σ exp over i or j, safe from overflow; terms of -inf count as nothing.

        weight   a LazyTensor g: log Σ exp(self)·g instead, one value for each of its components
        """
        weight = options.pop("other", None) if weight is None else weight
        return self._computed("LogSumExp", axis, dim, weight=weight, **options)

    def min(self, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The smallest value, by component over i or j; NaN is skipped."""
        return self._chosen("Min", axis, dim, options)

    def max(self, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The largest value, by component over i or j; NaN is skipped."""
        return self._chosen("Max", axis, dim, options)

    def argmin(self, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The index of the smallest value, the first of equal ones."""
        return self._chosen("ArgMin", axis, dim, options)

    def argmax(self, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The index of the largest value, the first of equal ones."""
        return self._chosen("ArgMax", axis, dim, options)

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
        """The indices of the K smallest values in rising order."""
        return self._computed("ArgKMin", axis, dim, K, **options)

    def Kmin_argKmin(self, K: int, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The K smallest values and their indices."""
        return self._computed("KMin_ArgKMin", axis, dim, K, **options)

    # The same, computed whatever the axis.

    def min_reduction(self, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The smallest value over i or j, always computed."""
        return self._computed("Min", axis, dim, **options)

    def max_reduction(self, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The largest value over i or j, always computed."""
        return self._computed("Max", axis, dim, **options)

    def argmin_reduction(self, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The index of the smallest value over i or j, always computed."""
        return self._computed("ArgMin", axis, dim, **options)

    def argmax_reduction(self, axis: int | None = None, dim: int | None = None, **options: Any) -> Any:
        """The index of the largest value over i or j, always computed."""
        return self._computed("ArgMax", axis, dim, **options)

    # Synonyms that take keywords alone.

    def logsumexp_reduction(self, **options: Any) -> Any:
        """`logsumexp`, by keywords alone."""
        return self.logsumexp(**options)

    def min_argmin_reduction(self, **options: Any) -> Any:
        """`min_argmin`, by keywords alone."""
        return self.min_argmin(**options)

    def max_argmax_reduction(self, **options: Any) -> Any:
        """`max_argmax`, by keywords alone."""
        return self.max_argmax(**options)

    def Kmin_reduction(self, **options: Any) -> Any:
        """`Kmin`, by keywords alone."""
        return self.Kmin(**options)

    def argKmin_reduction(self, **options: Any) -> Any:
        """`argKmin`, by keywords alone."""
        return self.argKmin(**options)

    def Kmin_argKmin_reduction(self, **options: Any) -> Any:
        """`Kmin_argKmin`, by keywords alone."""
        return self.Kmin_argKmin(**options)

    def _chosen(self, op: str, axis: Any, dim: Any, options: dict[str, Any]) -> Any:
        """Along the vector axis without an axis, if there is a vector: of a scalar it would do nothing, silently."""
        if axis is None and dim is None:
            if self.expr.dim == 1:
                raise AxisMissing(
                    f"{op.lower()} of a scalar LazyTensor of shape {self.shape} needs an axis: {self._legal_axes()}"
                )
            axis = -1
        return self._along(op, axis, dim, options)
