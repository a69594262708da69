"""The derivative of a reduction, as numbers: a cotangent of the result pulled back to one array.

The formula of the derivative is that of `farsum_kernels.formula.grad.reduction_vjp`; here it gets its
arrays, and its Sum is taken over the pairs that belong to each row of the array.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from farsum.arrays import Array, Input, as_reals
from farsum.compute import Computation, computation, counting
from farsum.lazy import need
from farsum_kernels.errors import DtypeError, FormulaError, InputMissing, ShapeError
from farsum_kernels.formula.expr import VAR, I, J, P, variable
from farsum_kernels.formula.grad import reduction_vjp
from farsum_kernels.formula.reductions import Kind, reduction_named

if TYPE_CHECKING:
    from farsum.reduced import Reduced


def pulled_back(reduced: Reduced, v: Any, e: Any) -> Array:
    """The cotangent of the array of v from the cotangent e of the result of a reduction.

    Raises InputMissing when v does not occur, ShapeError when e has not the shape of the result,
    FormulaError for a reduction without a derivative.
    """
    made, frame = reduced.computation, reduced.frame
    leaf = need(v, "grad")
    if leaf.expr.op is not VAR or reduced.slots or reduced._selection is not None:
        raise FormulaError(
            "grad takes a LazyTensor of one array, of a reduction with neither symbols nor a selection"
        )
    held = leaf.frame.inputs[0]
    place = next((n for n, h in enumerate(frame.inputs) if h.key == held.key), None)
    if place is None:
        raise InputMissing(f"grad: the LazyTensor of shape {leaf.shape} does not occur in {reduced.formula}")
    rule = reduction_named(made.reduction)
    if Kind.VALUE not in rule.outputs or len(rule.outputs) > 1:
        raise FormulaError(
            f"grad is of one array of values; {made.reduction} gives indices: reduce with the values alone"
        )

    dtype = frame.dtype
    assert dtype is not None
    arrays = reduced._held(dtype)
    saved = [np.asarray(_run(made, name, arrays, dtype, reduced.ranges), dtype) for name in rule.saves]
    result = reduced()
    cotangent = np.asarray(e)
    if cotangent.shape != result.shape:
        raise ShapeError(f"the cotangent has shape {cotangent.shape}; the result has shape {result.shape}")
    if cotangent.dtype.kind not in ("fc" if reduced.is_complex else "f"):
        raise DtypeError(f"the cotangent has dtype {cotangent.dtype}; the result has dtype {result.dtype}")
    cotangent = as_reals(cotangent.astype(result.dtype))

    kept, along = (I, J) if made.axis == 1 else (J, I)
    rows = (*frame.batch, *result.shape[len(frame.batch) : len(frame.batch) + 1])
    extra = [_flat(a, rows) for a in (cotangent, *saved)]
    count = len(frame.inputs)
    arrays[count] = extra[0]
    arrays[count + 1] = np.concatenate(extra[1:], axis=-1) if saved else np.zeros((*rows, 1), dtype)
    of_e, of_y = (variable(n, arrays[n].shape[-1], kept) for n in (count, count + 1))
    target = variable(place, held.dim, held.category)
    formula = reduction_vjp(rule, made.root, made.weight, along, target, of_e, of_y)
    axis = {I: 1, J: 0, P: made.axis}[held.category]
    # Its Sum runs over every pair, also where the derivative does not depend on one of its points.
    every = (variable(n, h.dim, h.category) for n, h in enumerate(frame.inputs))
    found = computation(counting(formula, None, every), None, "Sum", axis).run(
        arrays, dtype, None, reduced.ranges
    )
    found = found.sum(axis=-2) if held.category == P else found
    assert isinstance(held, Input)
    found = _unbroadcast(found, held.array.shape)
    return found.view(leaf.dtype) if leaf.is_complex else found


def _run(made: Computation, reduction: str, arrays: dict[int, Array], dtype: str, ranges: Any) -> Array:
    """A reduction of the same formula that the derivative needs the result of."""
    rule = reduction_named(reduction)
    weighted = rule.weight == "required" or (rule.weight == "optional" and reduction == made.reduction)
    weight = made.weight if weighted else None
    return computation(made.root, weight, reduction, made.axis, made.k if rule.listed else 0).run(
        arrays, dtype, None, ranges
    )


def _flat(values: Array, rows: tuple[int, ...]) -> Array:
    """Results with their trailing axes as one vector per row."""
    return np.ascontiguousarray(values.reshape(*rows, -1))


def _unbroadcast(found: Array, shape: tuple[int, ...]) -> Array:
    """A gradient summed over the batch axes along which its array was repeated."""
    lead = found.ndim - len(shape)
    found = found.sum(axis=tuple(range(lead))) if lead else found
    axes = tuple(n for n, (a, b) in enumerate(zip(found.shape, shape, strict=True)) if b == 1 and a != 1)
    return found.sum(axis=axes, keepdims=True) if axes else found
