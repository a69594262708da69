"""Dense NumPy in float64, slow and obvious: the living definition of every formula and reduction.

It also finishes what other backends leave behind: merging and finishing states is a few array
operations per job, so they share this table instead of writing it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.formula.lower import Program, Want, lower
from farsum_kernels.formula.reductions import Kind, Reduction
from farsum_kernels.job import RANGES, Extent, Part, Spec, extent_of, output_shapes
from farsum_kernels.scalar.indices import Affine, Loop
from farsum_kernels.scalar.ir import LEAVES, Block, I, Instr, Prim, Val, fold, number

Array = NDArray[Any]

NUMPY: dict[Prim, Callable[..., Any]] = {
    Prim.NEG: np.negative,
    Prim.ABS: np.abs,
    Prim.SQRT: np.sqrt,
    Prim.EXP: np.exp,
    Prim.EXP2: np.exp2,
    Prim.LOG: np.log,
    Prim.SIN: np.sin,
    Prim.COS: np.cos,
    Prim.ASIN: np.arcsin,
    Prim.ACOS: np.arccos,
    Prim.ATAN: np.arctan,
    Prim.FLOOR: np.floor,
    Prim.ROUND: lambda x: np.where(np.abs(x) < 2.0**52, np.trunc(x + np.copysign(0.49999999999999994, x)), x),
    Prim.ATAN2: np.arctan2,
    Prim.ADD: np.add,
    Prim.SUB: np.subtract,
    Prim.MUL: np.multiply,
    Prim.DIV: np.divide,
    # np.power takes a shortcut for an exponent that repeats, with other values at infinities.
    Prim.POW: lambda a, b: np.power(
        a, np.array(np.broadcast_to(b, np.broadcast_shapes(np.shape(a), np.shape(b))))
    ),
    Prim.MIN: lambda a, b: np.where(np.less(a, b), a, b),
    Prim.MAX: lambda a, b: np.where(np.greater(a, b), a, b),
    Prim.LT: np.less,
    Prim.LE: np.less_equal,
    Prim.EQ: np.equal,
    Prim.OR: np.logical_or,
    Prim.AND: np.logical_and,
    Prim.SELECT: np.where,
}
"""How NumPy says each primitive. SUM is a sum over the axis of its loop."""


# A rule may look at both sides of a choice, and dividing by zero is a value here, not an accident.
def _quiet() -> np.errstate:
    return np.errstate(all="ignore")


# ── rules on arrays ───────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=4096)
def _recorded(
    rule: Reduction, part: str, states: int
) -> tuple[tuple[Instr, ...], tuple[tuple[int, ...], ...]]:
    """The scalar code of merge or finish, and the places of what it gives."""
    block = Block(spoken=NUMPY)
    if part == "merge":
        args = [block.arg(n) for n in range(2 * states)]
        groups: tuple[tuple[Val, ...], ...] = (rule.merge(tuple(args[:states]), tuple(args[states:])),)
    else:
        groups = rule.finish(tuple(block.arg(n) for n in range(states)))
    return block.code, tuple(tuple(v.index for v in group) for group in groups)


def _run(code: Sequence[Instr], args: Sequence[Array], dtype: np.dtype[Any]) -> list[Any]:
    limits = np.finfo(dtype)

    def leaf(instr: Instr) -> Any:
        if instr.prim is Prim.ARG:
            return args[instr.imm]
        return np.float64(number(instr.imm, float(limits.max)))

    with _quiet():
        return fold(code, NUMPY, leaf)


def merge_states(
    rule: Reduction, a: Sequence[Array], b: Sequence[Array], dtype: np.dtype[Any]
) -> list[Array]:
    """The state of the union of two sets of terms, component by component, in float64."""
    code, (places,) = _recorded(rule, "merge", len(a))
    values = _run(code, [*a, *b], dtype)
    return [np.asarray(values[p]) for p in places]


def finish_state(rule: Reduction, state: Sequence[Array], dtype: np.dtype[Any]) -> list[list[Array]]:
    """The components of each output of a reduction."""
    code, groups = _recorded(rule, "finish", len(state))
    # Most reductions only pick components of their state.
    picked = all(instr.prim is Prim.ARG for instr in code)
    values = state if picked else _run(code, state, dtype)
    return [[np.asarray(values[p]) for p in group] for group in groups]


def picked_states(rule: Reduction, states: int) -> tuple[tuple[int, ...], ...] | None:
    """Which of its states each output of a reduction consists of; None when finishing computes something."""
    code, groups = _recorded(rule, "finish", states)
    if any(instr.prim is not Prim.ARG for instr in code):
        return None
    return tuple(tuple(code[p].imm for p in group) for group in groups)


def merge_lists(rule: Reduction, values: Array, places: Array, k: int) -> tuple[Array, Array]:
    """The k best of lists along the first axis, best first; of equal ones the earliest place in the list."""
    ascending = rule.identity(1, 0)[0] == float("inf")
    order = np.argsort(values if ascending else -values, axis=0, kind="stable")[:k]
    return np.take_along_axis(values, order, 0), np.take_along_axis(places, order, 0)


# ── the dense evaluation ──────────────────────────────────────────────────────────────────────────


def run(spec: Spec, arrays: Mapping[int, Array]) -> tuple[Array, ...]:
    """Evaluate a job on dense arrays in float64. Memory grows with M × N; for tests and definitions."""
    extent = extent_of(spec, {n: a.shape for n, a in arrays.items() if n not in RANGES})
    parts = spec.over_j()
    m, n = (extent.m, extent.n) if spec.axis == 1 else (extent.n, extent.m)
    wants = [Want(part.formula, part.weight, part.rule.additive) for part in parts]
    program = lower(wants, unroll=0, spoken=list(NUMPY))
    inputs = [
        _batched(np.asarray(arrays[v.params[0]], np.float64), v.params[2] == 2, extent) for v in program.slots
    ]
    kinds = [kind for part in parts for kind in part.rule.outputs]
    outputs = [
        np.empty(s, np.int64 if k is Kind.INDEX else np.float64)
        for s, k in zip(output_shapes(spec, extent), kinds, strict=True)
    ]
    for batch in np.ndindex(*extent.batch):
        pairs = _pairs(program, [a[batch] for a in inputs], m, n)
        values: list[Array] = []
        for part, (terms, weights) in zip(parts, pairs, strict=True):
            if RANGES[0] in arrays:
                blocks = [
                    np.asarray(arrays[place]) for place in (RANGES[:3] if spec.axis == 1 else RANGES[3:])
                ]
                values += _reduce_blocks(part, terms, weights, *blocks)
            else:
                values += _reduce(part, terms, weights)
        for out, value in zip(outputs, values, strict=True):
            out[batch] = value.reshape(out[batch].shape)
    return tuple(outputs)


def _reduce_blocks(
    part: Part, terms: Array, weights: Array, blocks: Array, slices: Array, intervals: Array
) -> list[Array]:
    """Each block of rows over its own columns; rows of no block have the identity, a later block replaces."""
    results = _reduce(part, terms[:, :0], weights[:, :0])
    begin = 0
    for (start, end), stop in zip(blocks.tolist(), slices.tolist(), strict=True):
        columns = np.concatenate(
            [np.arange(0), *(np.arange(a, b) for a, b in intervals[begin:stop].tolist())]
        )
        columns, begin = columns.astype(int), stop
        if Kind.INDEX in part.rule.outputs:
            # Indices count in the whole array; what is skipped like a NaN is not there.
            outside = ~np.isin(np.arange(terms.shape[1]), columns)
            values = _reduce(part, np.where(outside[:, None], np.nan, terms[start:end]), weights[start:end])
        else:
            values = _reduce(part, terms[start:end, columns], weights[start:end, columns])
        for result, value in zip(results, values, strict=True):
            result[start:end] = value
    return results


def _batched(array: Array, parameter: bool, extent: Extent) -> Array:
    return np.broadcast_to(array, extent.batch + array.shape[-1 if parameter else -2 :])


def _pairs(program: Program, inputs: Sequence[Array], m: int, n: int) -> list[tuple[Array, Array]]:
    """F and the weight of each reduction on all pairs, of shape (m, n, dim)."""
    used = {s for scope in program.scopes for s in scope if isinstance(s, Loop)}
    loops = sorted(
        used | {terms.loop for terms in program.terms if terms.loop},
        key=lambda s: (s.depth, s.extent),
    )
    axes = {loop: 2 + place for place, loop in enumerate(loops)}
    rank = 2 + len(loops)

    def along(axis: int, values: Array) -> Array:
        return values.reshape([-1 if a == axis else 1 for a in range(rank)])

    def leaf(instr: Instr) -> Any:
        if instr.prim is Prim.CONST:
            return np.float64(number(instr.imm, float(np.finfo(float).max)))
        if instr.prim is Prim.ROW:
            axis, rows = (0, m) if instr.imm == I else (1, n)
            return along(axis, np.arange(rows, dtype=np.float64))
        if instr.prim is Prim.INDEX:
            return place(instr.imm).astype(np.float64)
        slot, k = instr.imm
        category = program.slots[slot].params[2]
        if category == 2:
            return inputs[slot][place(k)]
        return inputs[slot][along(category, np.arange(inputs[slot].shape[0])), place(k)]

    def place(k: Affine) -> Array:
        index = np.full([1] * rank, k.base)
        for atom, step in k.terms:
            if isinstance(atom, Loop):
                value = along(axes[atom], np.arange(atom.extent))
            else:
                inner = place(atom.of)
                value = {
                    "div": lambda a, by: a // by,
                    "mod": lambda a, by: a % by,
                    "clip": lambda a, by: np.clip(a, 0, by),
                }[atom.kind](inner, atom.by)
            index = index + step * value
        return index

    with _quiet():
        values: list[Any] = []
        for instr in program.code:
            if instr.prim is Prim.FOLD:
                values.append(_folded(np.asarray(values[instr.args[0]]), axes[instr.imm.loop], instr.imm.how))
            elif instr.prim in LEAVES:
                values.append(leaf(instr))
            else:
                values.append(NUMPY[instr.prim](*(values[a] for a in instr.args)))

    def gathered(places: Sequence[int], loop: Loop | None) -> Array:
        shape = [m, n] + [1] * len(loops)
        if loop:
            shape[axes[loop]] = loop.extent
        parts = [np.broadcast_to(values[p], shape).reshape(m, n, loop.extent if loop else 1) for p in places]
        return np.concatenate(parts, axis=-1) if parts else np.empty((m, n, 0))

    values.append(np.ones([1] * rank))
    one, found = len(values) - 1, []
    for terms in program.terms:
        factors = gathered([one if f is None else f for f in terms.factor], None)
        with _quiet():
            value = gathered(terms.value, terms.loop) * factors
        found.append((value, gathered(terms.weight, None)))
    return found


def _folded(term: Array, axis: int, how: str) -> Array:
    """A fold over one axis, kept with length 1."""
    if how == "sum":
        return np.asarray(term.sum(axis, keepdims=True))
    parts = np.moveaxis(term, axis, 0)
    best, where = parts[0], np.zeros_like(parts[0])
    for k, x in enumerate(parts):
        take = x < best if how.endswith("min") else x > best
        best, where = np.where(take, x, best), np.where(take, float(k), where)
    return np.expand_dims(where if how.startswith("arg") else best, axis)


def _reduce(part: Part, terms: Array, weights: Array) -> list[Array]:
    rule, (m, n, dim) = part.rule, terms.shape
    dtype = np.dtype(np.float64)
    if rule.listed:
        return [_list_output(part, terms, kind) for kind in rule.outputs]
    width = weights.shape[-1]
    block = Block(spoken=NUMPY)
    args = [block.arg(c) for c in range(dim + width + 1)]
    lifted = rule.lift(tuple(args[:-1]), args[-1])
    columns = [terms[..., d] for d in range(dim)] + [weights[..., d] for d in range(width)]
    values = _run(block.code, [*columns, np.broadcast_to(np.arange(n), (m, n))], dtype)
    state = [np.broadcast_to(values[v.index], (m, n)) for v in lifted]
    whole = _fold_columns(rule, state, rule.identity(dim, width), dtype)
    return [np.stack(np.broadcast_arrays(*group), axis=-1) for group in finish_state(rule, whole, dtype)]


def _fold_columns(
    rule: Reduction, state: list[Array], identity: Sequence[float | str], dtype: np.dtype[Any]
) -> list[Array]:
    """Merge neighbours until one column is left."""
    rows = state[0].shape[0]
    limits = np.finfo(dtype)
    start = [np.full(rows, number(x if isinstance(x, str) else repr(x), float(limits.max))) for x in identity]
    while state[0].shape[1] > 1:
        even = state[0].shape[1] // 2 * 2
        pairs = merge_states(rule, [s[:, 0:even:2] for s in state], [s[:, 1:even:2] for s in state], dtype)
        state = [np.concatenate([p, s[:, even:]], axis=1) for p, s in zip(pairs, state, strict=True)]
    return merge_states(rule, start, [s[:, 0] for s in state], dtype) if state[0].shape[1] else start


def _list_output(part: Part, terms: Array, kind: Kind) -> Array:
    worst = float(part.rule.identity(1, 0)[0])
    n = terms.shape[1]
    values = np.moveaxis(np.where(np.isnan(terms), worst, terms), 1, 0)
    places = np.broadcast_to(np.arange(n)[:, None, None], values.shape)
    # A term as bad as the identity does not enter: its place is 0, as for a list that is not full.
    places = np.where(values == worst, 0, places)
    pad = [(0, max(0, part.k - n)), (0, 0), (0, 0)]
    values, places = np.pad(values, pad, constant_values=worst), np.pad(places, pad)
    values, places = merge_lists(part.rule, values, places, part.k)
    chosen = values if kind is Kind.VALUE else places
    return np.moveaxis(chosen, 0, 1)  # (m, k, dim)
