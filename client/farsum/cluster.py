"""Clusters of points and the block-sparse `ranges` that come of them. Names and conventions follow KeOps.

A label is an int from 0 to C-1, one for each row of x. Everything here is NumPy on this machine: it costs
a few passes over the rows, next to a reduction over pairs. Of tensors come tensors, real ones of the dtype of the
first real one, whole numbers as int64; of these functions autograd knows `sort_clusters` alone.

>>> x = np.array([[0.1, 0.1], [5.2, 5.1], [0.3, 0.2], [5.3, 5.4]])
>>> labels = grid_cluster(x, 1.0)
>>> ranges, centroids, counts = cluster_ranges_centroids(x, labels)
>>> x, labels = sort_clusters(x, labels)
>>> near = ((centroids[:, None] - centroids) ** 2).sum(-1) < 4
>>> from_matrix(ranges, ranges, near)[1]
array([1, 2])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from farsum.arrays import Array
from farsum.tensors import in_order, is_tensor, on_tensors, plain
from farsum_kernels.errors import ArrayError, DtypeError, ShapeError

Six = tuple[Array, Array, Array, Array, Array, Array]


@on_tensors
def grid_cluster(x: Array, size: Any) -> Array:
    """Labels (M,), int64: the cells of a grid that holds the points, numbered 0 to C-1.

    x      (M, D) points, any D
    size   the side of a cell, or one for each axis: (D,)

    The grid starts at the smallest coordinate of each axis, so that labels do not change when all points
    are moved. Cells are numbered in the order of their coordinates, the first axis counting most; two
    cells never share a label.

    Raises ShapeError, DtypeError, or ArrayError for coordinates that are not finite and sizes not above 0.

    >>> grid_cluster(np.array([[7.0], [9.5], [7.5]]), 1.0)
    array([0, 1, 0])
    """
    x = _points(x)
    if not np.isfinite(x).all():
        row = int(np.argmin(np.isfinite(x).all(1)))
        raise ArrayError(f"row {row} of x is {x[row]}: it lies in no cell")
    side = _reals(size, "size").astype(np.float64)
    if side.shape not in ((), (1,), (x.shape[1],)):
        raise ShapeError(
            f"size has shape {side.shape}; it is a number, or one for each of the {x.shape[1]} axes of x"
        )
    if not (np.isfinite(side) & (side > 0)).all():
        raise ArrayError(f"the side of a cell must be finite and above 0, not {size}")
    if len(x) == 0:
        return np.zeros(0, np.int64)
    wide = x.astype(np.float64)
    with np.errstate(over="ignore"):
        cells = np.floor((wide - wide.min(0)) / side)
    if not np.isfinite(cells).all():
        raise ArrayError(f"cells of side {size} are too small for points so far apart")
    order = np.lexsort(cells.T[::-1])  # its last key, here the first axis, counts most
    ahead = cells[order]
    first = np.concatenate([[False], (ahead[1:] != ahead[:-1]).any(1)])
    labels = np.empty(len(x), np.int64)
    labels[order] = np.cumsum(first)
    return labels


def sort_clusters(x: Any, lab: Array) -> tuple[Any, Array]:
    """The rows of x by rising label, and the labels (M,) themselves; rows of one cluster keep their order.

    x     an array (M, ...), or a tuple or list of such arrays, which comes back as a tuple or list
    lab   (M,) labels

    Tensors keep their gradients. Raises ShapeError where x and lab differ in length.
    """
    held = _labels(plain(lab))
    order = np.argsort(held, kind="stable")
    labels = in_order(lab, order) if is_tensor(lab) else held[order]
    if isinstance(x, tuple | list):
        return type(x)([_sorted(part, held, order, f"x[{n}]") for n, part in enumerate(x)]), labels
    return _sorted(x, held, order, "x"), labels


def _sorted(x: Any, lab: Array, order: Array, what: str) -> Any:
    if not is_tensor(x):
        return _rows(x, lab, what)[order]
    _rows(plain(x), lab, what)
    return in_order(x, order)


@on_tensors
def cluster_ranges(lab: Array, Nlab: Array | None = None) -> Array:
    """Where each cluster begins and ends once rows are sorted by label: (C, 2), int64, the ends exclusive.

    lab    (M,) labels, in any order; a label without points has an empty range
    Nlab   (C,) the number of points of each cluster, if it is known
    """
    ends = np.cumsum(_counts(_labels(lab), Nlab))
    return np.stack([np.concatenate([[0], ends[:-1]]), ends], 1) if len(ends) else np.zeros((0, 2), np.int64)


@on_tensors
def cluster_centroids(
    x: Array,
    lab: Array,
    Nlab: Array | None = None,
    weights: Array | None = None,
    weights_c: Array | None = None,
) -> Array:
    """The mean of each cluster: (C, D) in the dtype of x, float64 for ints. NaN where there are no points.

    x           (M, D) points
    lab         (M,) labels
    Nlab        (C,) the number of points of each cluster, if it is known
    weights     (M,) or (M, 1): a weighted mean, NaN where a cluster weighs nothing
    weights_c   (C,) the weight of each cluster, if it is known; used together with weights
    """
    lab = _labels(lab)
    x = _rows(_points(x), lab, "x")
    return _centroids(x, lab, _counts(lab, Nlab), _weights(weights, lab), weights_c)


@on_tensors
def cluster_ranges_centroids(
    x: Array, lab: Array, weights: Array | None = None, min_weight: float | None = None
) -> tuple[Array, Array, Array]:
    """`cluster_ranges` (C, 2), `cluster_centroids` (C, D), and the weight of each cluster (C,).

    x            (M, D) points
    lab          (M,) labels
    weights      (M,) or (M, 1); without them the third array, float64, holds the number of points
    min_weight   weights at or below it are taken to be it, so that no centroid of points is NaN; None for no such
                 bound, and for 1e-9 where x is a tensor
    """
    lab = _labels(lab)
    x = _rows(_points(x), lab, "x")
    counts, w = _counts(lab, None), _weights(weights, lab)
    if w is not None and min_weight is not None:
        w = np.maximum(w, min_weight)
    heavy = counts.astype(np.float64) if w is None else _per_class(w, lab, len(counts))
    return cluster_ranges(lab, counts), _centroids(x, lab, counts, w, None), heavy


@on_tensors
def from_matrix(ranges_i: Array, ranges_j: Array, keep: Array) -> Six:
    """The `ranges` of a reduction that keeps the pairs of clusters marked in a matrix.

    ranges_i   (Mc, 2) where the clusters of rows x_i begin and end
    ranges_j   (Nc, 2) where those of rows y_j do
    keep       (Mc, Nc) which pairs count: bools; numbers count where they are not 0

    The result is (ranges_i, slices_i, redranges_j, ranges_j, slices_j, redranges_i), all int64: rows of
    cluster k meet the intervals redranges_j[slices_i[k-1]:slices_i[k]], and the last three say the same of
    the columns.

    Raises ShapeError or DtypeError.

    >>> from_matrix([[2, 5], [7, 12]], [[1, 4], [4, 9], [20, 30]], [[1, 1, 0], [0, 1, 0]])[2].tolist()
    [[1, 4], [4, 9], [4, 9]]
    """
    held_i, held_j = _intervals(ranges_i, "ranges_i"), _intervals(ranges_j, "ranges_j")
    kept = np.asarray(keep)
    if kept.dtype.kind not in "biuf":
        raise DtypeError(f"keep has dtype {kept.dtype}; it holds bools")
    if kept.shape != (len(held_i), len(held_j)):
        raise ShapeError(
            f"keep has shape {kept.shape}; {len(held_i)} ranges_i and {len(held_j)} ranges_j need "
            f"{(len(held_i), len(held_j))}"
        )
    slices_i, redranges_j = _half(kept.astype(bool), held_j)
    slices_j, redranges_i = _half(kept.astype(bool).T, held_i)
    return held_i, slices_i, redranges_j, held_j, slices_j, redranges_i


def swap_axes(ranges: Sequence[Array] | None) -> Six | None:
    """The same `ranges` with i and j traded; None stays None. Raises ShapeError unless there are six."""
    if ranges is None:
        return None
    if len(ranges) != 6:
        raise ShapeError(f"ranges holds 6 arrays, not {len(ranges)}")
    ranges_i, slices_i, redranges_j, ranges_j, slices_j, redranges_i = ranges
    return ranges_j, slices_j, redranges_i, ranges_i, slices_i, redranges_j


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────


def _half(kept: Array, ranges: Array) -> tuple[Array, Array]:
    """How many intervals each row keeps, added up, and the intervals row by row."""
    return np.cumsum(kept.sum(1), dtype=np.int64), ranges[np.nonzero(kept)[1]]


def _per_class(values: Array | None, lab: Array, classes: int) -> Array:
    """The sum of the values (M,) of each class, in float64; their number without values."""
    return np.bincount(lab, values, classes)


def _centroids(x: Array, lab: Array, counts: Array, weights: Array | None, weights_c: Array | None) -> Array:
    w = 1.0 if weights is None else weights
    sums = np.stack([_per_class(column * w, lab, len(counts)) for column in x.T.astype(np.float64)], 1)
    heavy = counts
    if weights is not None:
        heavy = _per_class(weights, lab, len(counts)) if weights_c is None else _reals(weights_c, "weights_c")
    if heavy.size != len(counts):
        raise ShapeError(f"weights_c has shape {heavy.shape}; there are {len(counts)} clusters")
    with np.errstate(invalid="ignore", divide="ignore"):  # an empty cluster has no mean: 0/0
        return (sums / heavy.reshape(-1, 1)).astype(_mean_dtype(x))


def _mean_dtype(x: Array) -> np.dtype[Any]:
    return x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)


# ── what is given ─────────────────────────────────────────────────────────────────────────────────


def _reals(x: Any, what: str) -> Array:
    held = np.asarray(x)
    if held.dtype.kind not in "iuf":
        raise DtypeError(f"{what} has dtype {held.dtype}; it holds real numbers")
    return held


def _points(x: Any) -> Array:
    held = _reals(x, "x")
    if held.ndim != 2 or held.shape[1] == 0:
        hint = "; for points on a line write x[:, None]" if held.ndim == 1 else ""
        raise ShapeError(f"x has shape {held.shape}; points are rows of a matrix (M, D){hint}")
    return held


def _rows(x: Any, lab: Array, what: str) -> Array:
    held = np.asarray(x)
    if held.ndim == 0 or len(held) != len(lab):
        raise ShapeError(f"{what} has shape {held.shape}, but there are {len(lab)} labels")
    return held


def _labels(lab: Any) -> Array:
    held = np.asarray(lab)
    if held.dtype.kind not in "iu" and held.size:
        raise DtypeError(f"lab has dtype {held.dtype}; labels are ints: .astype('int64')")
    if held.ndim != 1:
        raise ShapeError(f"lab has shape {held.shape}; labels are (M,): .ravel() makes them so")
    if held.size and held.min() < 0:
        raise ArrayError(f"lab holds {held.min()}; labels count from 0")
    return held.astype(np.int64, copy=False)


def _counts(lab: Array, given: Any) -> Array:
    """The number of points of each class (C,), counted or as given."""
    if given is None:
        return np.bincount(lab)
    counts = _whole(given, "Nlab")
    if counts.ndim != 1:
        raise ShapeError(
            f"Nlab has shape {counts.shape}; it holds the number of points of each cluster: (C,)"
        )
    if counts.sum() != len(lab) or (lab.size and lab.max() >= len(counts)):
        raise ShapeError(
            f"Nlab counts {counts.sum()} points in {len(counts)} clusters; there are {len(lab)} labels, the "
            f"largest {lab.max(initial=0)}"
        )
    return counts


def _weights(weights: Any, lab: Array) -> Array | None:
    if weights is None:
        return None
    held = _reals(weights, "weights")
    if held.shape not in ((len(lab),), (len(lab), 1)):
        raise ShapeError(f"weights has shape {held.shape}; {len(lab)} labels need ({len(lab)},)")
    return held.reshape(-1).astype(np.float64)


def _intervals(ranges: Any, what: str) -> Array:
    held = _whole(ranges, what)
    if held.ndim != 2 or held.shape[1] != 2:
        raise ShapeError(f"{what} has shape {held.shape}; a cluster is a row [begin, end): (C, 2)")
    return held


def _whole(x: Any, what: str) -> Array:
    """As int64. Floats are taken where they hold whole numbers: counts and ranges of other libraries do."""
    held = _reals(x, what)
    if held.dtype.kind == "f" and not (np.isfinite(held) & (held == np.floor(held))).all():
        raise DtypeError(f"{what} holds numbers that are not whole")
    return held.astype(np.int64)
