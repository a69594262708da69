"""Which pairs take part in a reduction: `mask`, `radius` and `segments` become ranges.

mask       "causal" or "lower": j <= i; "upper": j >= i; ("band", w): |i - j| <= w; a bool array (M, N); or a
           function of an array of i's (m, 1) and an array of j's (1, n) that gives a bool array (m, n)
radius     r: pairs of points at most r apart, the points being the one array of x_i and the one array of y_j that
           have the same dimension; or (r, x_i, y_j) with the two LazyTensors that are the points
segments   (lengths of i, lengths of j): the k-th segment of rows meets the k-th segment of columns

A pair that takes no part is as if it were not there: a row without any keeps the identity of the reduction.
With `radius` points are sorted into the cells of a grid, so that cost grows like the number of neighbours;
of equally near points, any may be the one that an index names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from farsum.arrays import Array, Input
from farsum.cluster import from_matrix
from farsum.compute import Computation
from farsum.frame import Frame, Ranges
from farsum.lazy import lift, need
from farsum.tensors import in_order, plain, recast, rows_of
from farsum_kernels.errors import FormulaError, OperandError, ShapeError
from farsum_kernels.formula.expr import VAR, I, J, P
from farsum_kernels.formula.reductions import Kind, reduction_named
from farsum_kernels.job import output_dtypes

if TYPE_CHECKING:
    from farsum.lazytensor import LazyTensor

# Entries of a mask that are looked at together.
MASK_CHUNK = 1 << 22
# Cells along each axis of the grid of `radius`: their pairs are looked at one by one.
MAX_CELLS = 2048
GRID_AXES = 3


@dataclass(frozen=True, slots=True)
class Selection:
    """The ranges of a reduction, and the order in which rows and columns are to stand for them.

    order_i, order_j   the place in the user's arrays of each row and column; None for as they are
    """

    ranges: Ranges
    order_i: Array | None = None
    order_j: Array | None = None

    def arranged(self, frame: Frame) -> Frame:
        """The frame with its rows and columns in the order of the ranges."""
        if self.order_i is None and self.order_j is None:
            return frame
        orders = {I: self.order_i, J: self.order_j, P: None}

        def moved(held: Any) -> Any:
            order = orders[held.category]
            return held if order is None else Input(rows_of(held.array, order), held.category, held.loose)

        return frame.but(inputs=tuple(map(moved, frame.inputs)))

    def restored(self, found: Any, made: Computation) -> Any:
        """Results in the user's order; indices as the user counts."""
        kept, reduced = (self.order_i, self.order_j) if made.axis == 1 else (self.order_j, self.order_i)
        if kept is None and reduced is None:
            return found
        dtypes = output_dtypes(made.spec("float64"))
        values = found if isinstance(found, tuple) else (found,)
        back = tuple(
            _in_order(v if dtype != "int64" or reduced is None else _places(v, reduced), kept)
            for v, dtype in zip(values, dtypes, strict=True)
        )
        return back if isinstance(found, tuple) else back[0]

    def swapped(self) -> Selection:
        """The same pairs with i and j exchanged."""
        return Selection((*self.ranges[3:], *self.ranges[:3]), self.order_j, self.order_i)


def _in_order(values: Array, order: Array | None) -> Array:
    if order is None:
        return values
    if isinstance(values, np.ndarray):
        out = np.empty_like(values)
        out[order] = values
        return out
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return in_order(values, place)


def _places(indices: Array, order: Array) -> Array:
    """Indices into sorted points as indices into the user's."""
    if not len(order) or isinstance(indices, np.ndarray):
        return order[indices] if len(order) else indices
    return in_order(indices, order, flipped=True)


def select(
    lazy: Any, reduction: str, mask: Any = None, radius: Any = None, segments: Any = None
) -> tuple[Any, Selection]:
    """The tensor to reduce and the selection of its pairs.

    Raises FormulaError for more than one way to say it, ShapeError or OperandError for what does not fit.
    """
    if sum(option is not None for option in (mask, radius, segments)) > 1:
        raise FormulaError("give one of mask, radius and segments")
    frame = lazy.frame
    if frame.slots or frame.batch:
        what = "symbolic variables" if frame.slots else f"batch dimensions {frame.batch}"
        raise FormulaError(
            f"mask, radius and segments need arrays without a batch; {lazy.formula} has {what}"
        )
    m, n = lazy._shape[-3:-1]
    if segments is not None:
        return lazy, Selection(_of_segments(segments, m, n))
    if mask is not None:
        return lazy, Selection(_of_mask(mask, m, n))
    return _within(lazy, reduction, radius)


# ── segments ──────────────────────────────────────────────────────────────────────────────────────


def _of_segments(segments: Any, m: int, n: int) -> Ranges:
    if not isinstance(segments, tuple | list) or len(segments) != 2:
        raise OperandError("segments is a pair: the lengths of the segments of i, and of those of j")
    lengths = [np.asarray(plain(s)) for s in segments]
    for axis, rows, held in zip("ij", (m, n), lengths, strict=True):
        if held.ndim != 1 or held.dtype.kind not in "iu" or (held < 0).any():
            raise ShapeError(f"the lengths of the segments of {axis} are a vector of ints from 0")
        if held.sum() != rows:
            raise ShapeError(
                f"the segments of {axis} have {held.sum()} rows in all; the LazyTensor has {rows}"
            )
    if len(lengths[0]) != len(lengths[1]):
        raise ShapeError(
            f"there are {len(lengths[0])} segments of i and {len(lengths[1])} of j; they go in pairs"
        )
    blocks = [_blocks(held) for held in lengths]
    slices = np.arange(1, len(lengths[0]) + 1)
    return blocks[0], slices, blocks[1], blocks[1], slices, blocks[0]


def _blocks(lengths: Array) -> Array:
    """The intervals of so many rows each, end to end."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.stack([ends - lengths, ends], axis=1)


# ── mask ──────────────────────────────────────────────────────────────────────────────────────────


def _of_mask(mask: Any, m: int, n: int) -> Ranges:
    if isinstance(mask, str | tuple):
        low, high = _band(mask, m, n)
        return *_one_interval(low(np.arange(m)), high(np.arange(m)), n), *_one_interval(
            *_columns_of_band(mask, m, n), m
        )
    if callable(mask):
        return *_by_rows(_evaluated(mask, m, n)), *_by_rows(_evaluated(lambda j, i: mask(i.T, j.T).T, n, m))
    held = np.asarray(plain(mask))
    if held.dtype != bool or held.shape != (m, n):
        raise ShapeError(
            f"a mask is a bool array of shape ({m}, {n}), a function of i and j, 'causal', 'lower', 'upper' or "
            f"('band', width); received {held.dtype} of shape {held.shape}"
        )
    return *_by_rows(iter([held])), *_by_rows(iter([held.T]))


def _band(mask: Any, m: int, n: int) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """The first column of each row, and the one past its last."""
    match mask:
        case "causal" | "lower":
            return np.zeros_like, lambda i: np.minimum(i + 1, n)
        case "upper":
            return lambda i: np.minimum(i, n), lambda i: np.full_like(i, n)
        case ("band", int(width)) if width >= 0:
            return lambda i: np.clip(i - width, 0, n), lambda i: np.clip(i + width + 1, 0, n)
    raise OperandError(f"a mask by name is 'causal', 'lower', 'upper' or ('band', width), not {mask!r}")


def _columns_of_band(mask: Any, m: int, n: int) -> tuple[Array, Array]:
    """The first row of each column, and the one past its last: the band with i and j exchanged."""
    other = (
        {"causal": "upper", "lower": "upper", "upper": "lower"}.get(mask, mask)
        if isinstance(mask, str)
        else mask
    )
    low, high = _band(other, n, m)
    return low(np.arange(n)), high(np.arange(n))


def _one_interval(low: Array, high: Array, columns: int) -> tuple[Array, Array, Array]:
    """Blocks of one row with one interval of columns each."""
    rows = np.arange(len(low))
    intervals = np.stack([low, np.maximum(low, high)], axis=1)
    return np.stack([rows, rows + 1], axis=1), rows + 1, intervals


def _evaluated(mask: Callable[[Array, Array], Any], m: int, n: int) -> Iterator[Array]:
    """The mask, some rows at a time."""
    step = max(1, MASK_CHUNK // max(1, n))
    for first in range(0, m, step):
        rows = np.arange(first, min(first + step, m))
        part = np.asarray(mask(rows[:, None], np.arange(n)[None, :]))
        if part.dtype != bool:
            raise OperandError(
                f"the function of a mask gives bools, not {part.dtype}: compare, as in lambda i, j: j <= i"
            )
        try:
            yield np.broadcast_to(part, (len(rows), n))
        except ValueError:
            raise ShapeError(
                f"the function of a mask gave an array of shape {part.shape} for {len(rows)} rows and {n} columns"
            ) from None


def _by_rows(parts: Iterator[Array]) -> tuple[Array, Array, Array]:
    """Blocks of rows that see the same columns, and the intervals of those."""
    starts, counts, intervals, done = [], [], [], 0
    for part in parts:
        new = np.ones(len(part), bool)
        new[1:] = (part[1:] != part[:-1]).any(axis=1)
        firsts = np.flatnonzero(new)
        edges = np.zeros((len(firsts), part.shape[1] + 2), np.int8)
        edges[:, 1:-1] = part[firsts]
        steps = np.diff(edges, axis=1)
        row, start = np.nonzero(steps == 1)
        _, end = np.nonzero(steps == -1)
        starts.append(firsts + done)
        counts.append(np.bincount(row, minlength=len(firsts)))
        intervals.append(np.stack([start, end], axis=1))
        done += len(part)
    first = np.concatenate([np.zeros(0, np.int64), *starts])
    ends = np.append(first[1:], done)[: len(first)]
    slices = np.cumsum(np.concatenate([np.zeros(0, np.int64), *counts]))
    held = np.concatenate([np.zeros((0, 2), np.int64), *intervals])
    return np.stack([first, ends], axis=1), slices, held


# ── radius ────────────────────────────────────────────────────────────────────────────────────────


def _within(lazy: LazyTensor, reduction: str, radius: Any) -> tuple[Any, Selection]:
    """The tensor that counts nothing beyond the radius, and the tiles of the grid that are not all beyond."""
    r, *points = radius if isinstance(radius, tuple) and len(radius) == 3 else (radius,)
    if isinstance(r, bool) or not isinstance(r, int | float | np.integer | np.floating) or not r >= 0:
        raise OperandError(f"radius is a number from 0, or (number, x_i, y_j), not {r!r}")
    x_i, y_j = points or _points(lazy)
    x, y = _rows_of(x_i, I), _rows_of(y_j, J)
    if x.shape[1] != y.shape[1]:
        raise ShapeError(f"the points of radius have {x.shape[1]} and {y.shape[1]} coordinates")
    inside = float(r) ** 2 - x_i.sqdist(y_j)
    gated = inside._apply("IfElse", lazy, _absent(reduction), result=lazy.is_complex)
    finite = np.isfinite(x).all() and np.isfinite(y).all()
    cell = float(r) if r > 0 and np.isfinite(r) and finite else np.inf
    order_i, blocks_i = _cells(x, cell)
    order_j, blocks_j = _cells(y, cell)
    keep = _near(_boxes(x[order_i], blocks_i), _boxes(y[order_j], blocks_j), float(r))
    return gated, Selection(tuple(from_matrix(blocks_i, blocks_j, keep)), order_i, order_j)


def _points(lazy: LazyTensor) -> tuple[Any, Any]:
    """The two arrays that the formula is a function of the distance of."""
    from farsum.lazytensor import Vi, Vj

    held = [h for h in lazy.frame.inputs if isinstance(h, Input) and h.category != P]
    pairs = [(a, b) for a in held for b in held if a.category == I and b.category == J and a.dim == b.dim]
    if len(pairs) != 1:
        raise FormulaError(
            f"the points of radius are not clear: {lazy.formula} has {len(pairs)} pairs of an x_i and a y_j of the same "
            f"dimension; write radius=(r, x_i, y_j)"
        )
    return Vi(pairs[0][0].array), Vj(pairs[0][1].array)


def _rows_of(points: Any, category: int) -> Array:
    leaf = need(lift(points, "radius"), "radius")
    if leaf.expr.op is not VAR or leaf.axis != category or leaf.frame.slots or leaf.frame.batch:
        raise OperandError(
            "the points of radius=(r, x_i, y_j) are LazyTensors of one array each: Vi(x) and Vj(y)"
        )
    return np.asarray(plain(recast(leaf.variables[0], "float64")))


def _absent(reduction: str) -> float:
    """The value of a term that takes no part."""
    rule = reduction_named(reduction)
    if rule.additive:
        return 0.0
    if Kind.WIDE in rule.state(1, 1):
        return float("-inf")
    return float("-inf") if "Max" in rule.name else float("inf")


def _cells(points: Array, size: float) -> tuple[Array, Array]:
    """An order of the points by the cell of a grid that each lies in, and the rows of each cell."""
    if len(points) == 0:
        return np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
    if not np.isfinite(size):
        return np.arange(len(points)), np.array([[0, len(points)]])
    spread = np.ptp(points, axis=0)
    axes = np.argsort(-spread, kind="stable")[:GRID_AXES]
    while True:
        cells = np.floor((points[:, axes] - points[:, axes].min(axis=0)) / size).astype(np.int64)
        if (cells.max(axis=0) < 1 << 20).all():
            _, label, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
            if len(counts) <= MAX_CELLS:
                break
        size *= 1.5
    # The first point stays the first: the index of what does not exist is 0, here and for the user.
    label = label.reshape(-1)
    first = label[0]
    label = np.where(label == first, 0, np.where(label == 0, first, label))
    return np.argsort(label, kind="stable"), _blocks(np.bincount(label))


def _boxes(points: Array, blocks: Array) -> tuple[Array, Array]:
    """The smallest and largest coordinates of each block."""
    if len(blocks) == 0:
        return np.zeros((0, points.shape[1])), np.zeros((0, points.shape[1]))
    starts = blocks[:, 0]
    return np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)


def _near(a: tuple[Array, Array], b: tuple[Array, Array], radius: float) -> Array:
    """Which boxes come within the radius of each other, with a margin for the rounding of the gate."""
    square = np.zeros((len(a[0]), len(b[0])))
    for d in range(a[0].shape[1]):
        gap = np.maximum(a[0][:, d, None] - b[1][None, :, d], b[0][None, :, d] - a[1][:, d, None])
        square += np.maximum(gap, 0.0) ** 2
    return ~(square > (radius * 1.001) ** 2)  # a box with NaN is kept
