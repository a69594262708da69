"""The derivatives of a job as further jobs: cotangents of its results pulled back to its arrays, tangents of its
arrays pushed forward to its results.

The formulas are those of `farsum_kernels.formula.grad`, made once for each job; here they get their arrays, NumPy's
or tensors, whose derivatives are again jobs. So every order is this one mechanism.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from farsum.arrays import Array, Input, as_numbers, as_ranges, as_reals
from farsum.compute import Call, counting, device_of, evaluate
from farsum.lazy import need
from farsum.tensors import is_array, is_tensor, joined, recast, summed_to, zeros_like
from farsum_kernels.errors import DtypeError, FormulaError, InputMissing, OperandError, ShapeError
from farsum_kernels.formula.expr import VAR, Expr, I, J, P, variable
from farsum_kernels.formula.grad import reduction_jvp, reduction_vjp
from farsum_kernels.formula.reductions import Kind, reduction_named
from farsum_kernels.formula.rewrite import add, is_zero, zero
from farsum_kernels.job import MAX_PARTS, Part, Spec, dtype_name

if TYPE_CHECKING:
    from farsum.reduced import Reduced

# What a derivative needs of a reduction besides its value, asked for together with it.
_WITH_PLACES = {"Min": "Min_ArgMin", "Max": "Max_ArgMax", "KMin": "KMin_ArgKMin"}

Outputs = tuple[
    tuple[int, bool], ...
]  # of each result of a job: which of its reductions, and are these values?


@lru_cache(maxsize=1024)
def outputs_of(spec: Spec) -> Outputs:
    """The reduction that each result belongs to, and whether it holds values: indices have no derivative."""
    return tuple((n, kind is Kind.VALUE) for n, part in enumerate(spec.parts) for kind in part.rule.outputs)


@lru_cache(maxsize=1024)
def needs_results(spec: Spec) -> bool:
    """Whether the derivative of the job is written with its results."""
    return any(part.rule.saves for part in spec.parts)


@lru_cache(maxsize=1024)
def keeps_places(spec: Spec) -> bool:
    """Whether the derivative of the job is written with the numbers of rows."""
    return any(name.startswith("Arg") for part in spec.parts for name in part.rule.saves)


@lru_cache(maxsize=1024)
def remembering(spec: Spec) -> tuple[Spec, tuple[int, ...]]:
    """The job with what its derivative needs computed in the same pass, and where its own results stand."""
    parts = [replace(p, reduction=_WITH_PLACES.get(p.reduction, p.reduction)) for p in spec.parts]
    own, places = [], 0
    for old, part in zip(spec.parts, parts, strict=True):
        own += list(range(places, places + len(old.rule.outputs)))
        places += len(part.rule.outputs)
    for part in spec.parts:
        for name in part.rule.saves:
            saved = _saved(part, name)
            if name != part.reduction and not name.startswith("Arg") and saved not in parts:
                parts.append(saved)
    if len(parts) > MAX_PARTS:
        return spec, tuple(range(len(outputs_of(spec))))
    return _spec(parts, spec.axis, spec.dtype), tuple(own)


def _spec(parts: Sequence[Part], axis: int, dtype: str) -> Spec:
    first, *also = parts
    return Spec(first.formula, first.reduction, axis, dtype, first.weight, first.k, tuple(also))


def _saved(part: Part, name: str) -> Part:
    """The reduction of the same formula that the derivative of a part needs the result of."""
    rule = reduction_named(name)
    weighted = rule.weight == "required" or (rule.weight == "optional" and name == part.reduction)
    return Part(part.formula, name, part.weight if weighted else None, part.k if rule.listed else 0)


def _width(part: Part) -> int:
    """The numbers per row of the first result of a part."""
    width = 1
    for d in part.output_tail():
        width *= d
    return width


@lru_cache(maxsize=1024)
def _beyond(spec: Spec) -> int:
    """The first number that no variable has. Reduction n has two more: its cotangent or nothing, its saved results."""
    return max(spec.inputs, default=-1) + 1


def _saved_variable(spec: Spec, n: int) -> Expr:
    part = spec.parts[n]
    width = sum(_width(_saved(part, name)) for name in part.rule.saves) or 1
    return variable(_beyond(spec) + 2 * n + 1, width, I if spec.axis == 1 else J)


@lru_cache(maxsize=1024)
def _pulled(
    spec: Spec, live: tuple[int, ...], wanted: tuple[int, ...]
) -> tuple[tuple[Spec, tuple[int, ...]], ...]:
    """The jobs whose results are the cotangents of the wanted inputs, one job for all that share an axis.

    live   the reductions whose cotangents are given
    """
    kept, along = (I, J) if spec.axis == 1 else (J, I)
    rows = [{I: 1, J: 0}[c] for n in wanted if (c := spec.inputs[n].params[2]) != P]
    axes: dict[int, list[tuple[int, Expr]]] = {}
    for n in wanted:
        target, found = spec.inputs[n], zero(spec.inputs[n].dim)
        for place in live:
            part = spec.parts[place]
            e = variable(_beyond(spec) + 2 * place, _width(part), kept)
            y = _saved_variable(spec, place)
            found = add(found, reduction_vjp(part.rule, part.formula, part.weight, along, target, e, y))
        if not is_zero(found):
            # A parameter has a row per pair of whichever axis is left; they are added up afterwards.
            axis = {I: 1, J: 0}.get(target.params[2], rows[0] if rows else spec.axis)
            axes.setdefault(axis, []).append((n, found))
    jobs = []
    for axis, found_ in axes.items():
        for first in range(0, len(found_), MAX_PARTS):
            some = found_[first : first + MAX_PARTS]
            # The Sum runs over every pair, also where a derivative does not depend on one of its points.
            formulas = [counting(some[0][1], None, spec.inputs.values()), *(f for _, f in some[1:])]
            parts = [Part(f, "Sum") for f in formulas]
            jobs.append((_spec(parts, axis, spec.dtype), tuple(n for n, _ in some)))
    return tuple(jobs)


@lru_cache(maxsize=1024)
def _pushed(spec: Spec, given: tuple[int, ...]) -> tuple[Spec, tuple[int, ...]] | None:
    """The job whose results are the tangents of the reductions, and which reductions these are."""
    along = J if spec.axis == 1 else I
    parts, places = [], []
    for place, part in enumerate(spec.parts):
        if Kind.VALUE not in part.rule.outputs:
            continue
        found = zero(_width(part))
        for n in given:
            v = spec.inputs[n]
            u = variable(_beyond(spec) + 2 * len(spec.parts) + n, v.dim, v.params[2])
            y = _saved_variable(spec, place)
            found = add(found, reduction_jvp(part.rule, part.formula, part.weight, along, v, u, y))
        if not is_zero(found):
            parts.append(Part(counting(found, None, spec.inputs.values()), "Sum"))
            places.append(place)
    return (_spec(parts, spec.axis, spec.dtype), tuple(places)) if parts else None


def pull(
    spec: Spec,
    call: Call,
    arrays: Mapping[int, Any],
    results: Sequence[Any],
    cotangents: Sequence[Any],
    wanted: Sequence[int],
) -> dict[int, Any]:
    """The cotangents of the wanted inputs of a job, each of the shape of its array.

    results      those of the job; None where they are not known
    cotangents   of the results; None for zeros. Those of indices do not count

    Raises NoDerivative for a reduction without one.
    """
    outputs = outputs_of(spec)
    given = {p: e for (p, is_value), e in zip(outputs, cotangents, strict=True) if is_value and e is not None}
    held = dict(arrays)
    for place, e in given.items():
        held[_beyond(spec) + 2 * place] = _flat(e, spec.parts[place])
        _save(spec, place, call, arrays, results, held)
    found = {}
    for job, targets in _pulled(spec, tuple(given), tuple(wanted)):
        values = evaluate(job, {n: held[n] for n in job.inputs}, call)
        for n, value in zip(targets, values, strict=True):
            value = value.sum(-2) if spec.inputs[n].params[2] == P else value
            found[n] = summed_to(value, arrays[n].shape)
    return {n: found[n] if n in found else zeros_like(arrays[n]) for n in wanted}


def push(
    spec: Spec,
    call: Call,
    arrays: Mapping[int, Any],
    results: Sequence[Any],
    tangents: Mapping[int, Any],
    like: Sequence[Any],
) -> list[Any]:
    """The tangents of the results of a job from those of its inputs; None for indices.

    results   those of the job; None where they are not known
    like      arrays of their shapes

    Raises NoDerivative for a reduction without one.
    """
    outputs = outputs_of(spec)
    found: dict[int, Any] = {}
    if (pushed := _pushed(spec, tuple(tangents))) is not None:
        job, places = pushed
        held = dict(arrays)
        for n, u in tangents.items():
            held[_beyond(spec) + 2 * len(spec.parts) + n] = u
        for place in places:
            _save(spec, place, call, arrays, results, held)
        found = dict(zip(places, evaluate(job, {n: held[n] for n in job.inputs}, call), strict=True))
    return [
        None if not is_value else found[part].reshape(y.shape) if part in found else zeros_like(y)
        for (part, is_value), y in zip(outputs, like, strict=True)
    ]


def _flat(values: Any, part: Part) -> Any:
    """Results with their trailing axes as one vector per row."""
    if not part.rule.listed:
        return values
    return values.reshape((*values.shape[: values.ndim - len(part.output_tail())], _width(part)))


def _save(
    spec: Spec,
    place: int,
    call: Call,
    arrays: Mapping[int, Any],
    results: Sequence[Any],
    held: dict[int, Any],
) -> None:
    """Put what the derivative of a reduction needs beside the arrays."""
    part, saved = spec.parts[place], []
    for name in part.rule.saves:
        known = _result(spec, place, name, results)
        if known is None:
            job = _saved(part, name)
            (known,) = evaluate(_spec([job], spec.axis, spec.dtype), arrays, call)
        saved.append(recast(_flat(known, _saved(part, name)), spec.dtype))
    if saved:
        held[_beyond(spec) + 2 * place + 1] = joined(saved)


def _result(spec: Spec, place: int, name: str, results: Sequence[Any]) -> Any:
    """The result of a reduction of this name, if the job has it: of its own, beside it, or as another reduction."""
    part, wanted = spec.parts[place], _saved(spec.parts[place], name)
    for (n, is_value), result in zip(outputs_of(spec), results, strict=True):
        if n == place and is_value and name == part.reduction:
            return result
        if n == place and not is_value and name.startswith("Arg"):
            return result
        if n != place and is_value and spec.parts[n] == wanted:
            return result
    return None


# ── of a reduction of a lazy tensor ───────────────────────────────────────────────────────────────


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
    assert dtype is not None and isinstance(held, Input)
    arrays = reduced._held(dtype)
    spec, (own,) = remembering(made.spec(dtype))
    ranges = {} if reduced.ranges is None else as_ranges(reduced.ranges)
    call = Call(ranges=ranges, device=device_of(frame.backend))
    results = evaluate(spec, arrays, call)
    cotangents: list[Any] = [None] * len(results)
    cotangents[own] = _cotangent(e, results[own], reduced.is_complex)
    found = pull(spec, call, arrays, results, cotangents, (place,))[place]
    return as_numbers(found) if leaf.is_complex else found


def _cotangent(e: Any, result: Any, is_complex: bool) -> Any:
    """e as reals of the shape and dtype of a result."""
    if is_tensor(e) is not is_tensor(result):
        kinds = ("a NumPy array", "a tensor")
        raise OperandError(f"the cotangent is {kinds[is_tensor(e)]}, the result {kinds[is_tensor(result)]}")
    e = e if is_array(e) else np.asarray(e)
    shape = (*result.shape[:-1], result.shape[-1] // 2) if is_complex else tuple(result.shape)
    if tuple(e.shape) != shape:
        raise ShapeError(f"the cotangent has shape {tuple(e.shape)}; the result has shape {shape}")
    if not any(kind in str(e.dtype) for kind in ("float", "complex")[: 1 + is_complex]):
        raise DtypeError(f"the cotangent has dtype {e.dtype}; the result has dtype {result.dtype}")
    if is_complex and "complex" not in str(e.dtype):
        e = e + 0j
    return recast(as_reals(e), dtype_name(result.dtype))
