"""Labels, ranges and centroids of clusters, and the block-sparse ranges made of them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from farsum.cluster import (
    cluster_centroids,
    cluster_ranges,
    cluster_ranges_centroids,
    from_matrix,
    grid_cluster,
    sort_clusters,
    swap_axes,
)
from farsum.numpy import Genred
from farsum_kernels.errors import ArrayError, DtypeError, ShapeError

rng = np.random.default_rng(0)


# ── grid_cluster ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parity("C-01")
@pytest.mark.parametrize("dim", [1, 2, 3, 7])
def test_labels_number_the_cells_that_hold_points(dim: int) -> None:
    x = rng.uniform(-3, 3, (200, dim))
    labels = grid_cluster(x, 2.0)
    assert labels.dtype == np.int64 and labels.shape == (200,)
    assert set(labels) == set(range(labels.max() + 1))
    cells = np.floor((x - x.min(0)) / 2).astype(int)
    assert len({(c, *row) for c, row in zip(labels, cells.tolist(), strict=True)}) == labels.max() + 1
    by_label = cells[np.argsort(labels, kind="stable")].tolist()
    assert by_label == sorted(by_label)


@pytest.mark.parity("C-01")
def test_a_cell_may_have_a_size_for_each_axis() -> None:
    x = np.array([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5], [1.5, 1.5]])
    assert grid_cluster(x, 1.0).tolist() == [0, 2, 1, 3]
    assert grid_cluster(x, [1.0, 10.0]).tolist() == [0, 1, 0, 1]
    assert grid_cluster(x, np.array([10.0, 1.0])).tolist() == [0, 0, 1, 1]


@pytest.mark.parity("X-57")
def test_labels_do_not_change_when_all_points_move() -> None:
    x = rng.integers(0, 4000, (300, 2)) / 64  # exact in float64, wherever they are moved
    labels = grid_cluster(x, 7.0)
    for shift in ([0.5, -0.25], [-1000.0, 12345.75]):
        np.testing.assert_array_equal(grid_cluster(x + shift, 7.0), labels)
    assert grid_cluster(np.array([[0.9], [1.1]]), 1.0).tolist() == [0, 0], "no border at the origin"


@pytest.mark.parity("X-58")
def test_far_cells_never_share_a_label() -> None:
    x = np.array([[0.0, 0, 0], [0, 0, 2000], [0, 1, 976], [1e6, 0, 0], [0, 1e12, 0], [-1e15, 0, 0]])
    assert len(set(grid_cluster(x, 1.0))) == len(x)


def test_no_points_have_no_labels() -> None:
    assert grid_cluster(np.zeros((0, 3)), 1.0).shape == (0,)


# ── sort_clusters ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parity("C-02")
def test_sorting_keeps_the_container() -> None:
    x, w, lab = np.arange(8.0).reshape(4, 2), np.arange(4), np.array([1, 0, 1, 0])
    got, labels = sort_clusters(x, lab)
    assert isinstance(got, np.ndarray) and got.tolist() == [[2, 3], [6, 7], [0, 1], [4, 5]]
    assert labels.tolist() == [0, 0, 1, 1]
    for kind in (tuple, list):
        got, _ = sort_clusters(kind([x, w]), lab)
        assert type(got) is kind and got[1].tolist() == [1, 3, 0, 2]


@pytest.mark.parity("X-59")
def test_rows_of_a_cluster_keep_their_order() -> None:
    lab = rng.integers(0, 5, 10_000)
    rows, labels = sort_clusters(np.arange(10_000), lab)
    for label in range(5):
        assert (np.diff(rows[labels == label]) > 0).all()


# ── cluster_ranges ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parity("C-03")
def test_ranges_follow_from_the_counts() -> None:
    want = [[0, 2], [2, 2], [2, 5]]
    for lab in ([0, 0, 2, 2, 2], [2, 0, 2, 0, 2]):
        ranges = cluster_ranges(np.array(lab))
        assert ranges.tolist() == want and ranges.dtype == np.int64
        for counts in (np.array([2, 0, 3]), np.array([2.0, 0.0, 3.0])):
            assert cluster_ranges(np.array(lab), counts).tolist() == want
    assert cluster_ranges(np.array([0]), np.array([1, 0])).tolist() == [[0, 1], [1, 1]]
    assert cluster_ranges(np.zeros(0, int)).shape == (0, 2)


# ── centroids ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parity("C-04")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_centroids_are_means(dtype: str) -> None:
    x, lab, w = rng.random((50, 3)).astype(dtype), rng.integers(0, 4, 50), rng.random(50)
    rtol = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-12}[dtype]
    got = cluster_centroids(x, lab)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, [x[lab == k].mean(0, np.float64) for k in range(4)], rtol)
    want = [np.average(x[lab == k].astype(float), 0, w[lab == k]) for k in range(4)]
    for weights in (w, w[:, None]):
        np.testing.assert_allclose(cluster_centroids(x, lab, weights=weights), want, rtol)
    heavy = np.bincount(lab, w)
    np.testing.assert_allclose(cluster_centroids(x, lab, weights=w, weights_c=2 * heavy) * 2, want, rtol)
    np.testing.assert_array_equal(cluster_centroids(x, lab, np.bincount(lab)), got)


@pytest.mark.parity("C-04")
def test_a_cluster_of_nothing_has_no_mean_and_nobody_is_warned() -> None:
    x, lab = np.array([[1.0], [3.0], [5.0]]), np.array([0, 0, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(cluster_centroids(x, lab), [[2], [np.nan], [5]])
        np.testing.assert_array_equal(
            cluster_centroids(x, lab, weights=np.array([1.0, 3.0, 0.0])), [[2.5], [np.nan], [np.nan]]
        )


def test_whole_numbers_have_means_that_are_not_whole() -> None:
    assert cluster_centroids(np.array([[1], [2]]), np.array([0, 0])).tolist() == [[1.5]]


@pytest.mark.parity("C-05")
def test_ranges_centroids_and_weights_at_once() -> None:
    x, lab, w = rng.random((50, 2)), rng.integers(0, 4, 50), rng.random(50)
    ranges, centroids, heavy = cluster_ranges_centroids(x, lab)
    np.testing.assert_array_equal(ranges, cluster_ranges(lab))
    np.testing.assert_array_equal(centroids, cluster_centroids(x, lab))
    np.testing.assert_array_equal(heavy, np.bincount(lab))
    assert heavy.dtype == np.float64
    for weights in (w, w[:, None]):
        _, centroids, heavy = cluster_ranges_centroids(x, lab, weights)
        np.testing.assert_allclose(heavy, np.bincount(lab, w))
        np.testing.assert_allclose(centroids, cluster_centroids(x, lab, weights=w))


@pytest.mark.parity("C-05")
def test_a_least_weight_keeps_weightless_clusters_in_place() -> None:
    x, lab = np.array([[1.0], [3.0], [5.0], [7.0]]), np.array([0, 0, 1, 1])
    weights = np.array([0.0, 1e-12, 1.0, 3.0])
    _, centroids, heavy = cluster_ranges_centroids(x, lab, weights, min_weight=1e-9)
    np.testing.assert_allclose(centroids, [[2.0], [6.5]])
    np.testing.assert_allclose(heavy, [2e-9, 4.0])
    _, centroids, heavy = cluster_ranges_centroids(x, lab, weights)
    np.testing.assert_allclose(centroids, [[3.0], [6.5]])


# ── ranges of a reduction ─────────────────────────────────────────────────────────────────────────

R_I, R_J = np.array([[2, 5], [7, 12]]), np.array([[1, 4], [4, 9], [20, 30]])
KEEP = np.array([[1, 1, 0], [0, 1, 0]])
WORKED = (R_I, [2, 3], [[1, 4], [4, 9], [4, 9]], R_J, [1, 3, 3], [[2, 5], [2, 5], [7, 12]])


@pytest.mark.parity("C-06", "C-08")
def test_the_worked_example() -> None:
    for keep in (KEEP.astype(bool), KEEP, 7 * KEEP, KEEP.astype(float), KEEP.tolist()):
        for got, want in zip(from_matrix(R_I, R_J, keep), WORKED, strict=True):
            assert got.tolist() == np.asarray(want).tolist() and got.dtype == np.int64


@pytest.mark.parity("C-06")
def test_keeping_nothing_gives_no_intervals() -> None:
    _, slices_i, redranges_j, _, slices_j, redranges_i = from_matrix(R_I, R_J, np.zeros((2, 3), bool))
    assert slices_i.tolist() == [0, 0] and slices_j.tolist() == [0, 0, 0]
    assert redranges_j.shape == redranges_i.shape == (0, 2)


@pytest.mark.parity("X-64")
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8"])
def test_ranges_come_out_as_int64(dtype: str) -> None:
    got = from_matrix(R_I.astype(dtype), R_J.astype(dtype), KEEP.astype(bool))
    assert {r.dtype for r in got} == {np.dtype(np.int64)}
    with pytest.raises(DtypeError, match="not whole"):
        from_matrix(R_I + 0.5, R_J, KEEP)


@pytest.mark.parity("C-07")
def test_swapping_axes() -> None:
    assert swap_axes(None) is None
    six = from_matrix(R_I, R_J, KEEP)
    swapped = swap_axes(six)
    assert swapped is not None
    for got, want in zip(swapped, from_matrix(R_J, R_I, KEEP.T), strict=True):
        np.testing.assert_array_equal(got, want)
    with pytest.raises(ShapeError, match="6 arrays, not 3"):
        swap_axes(six[:3])


def test_a_block_sparse_sum_from_end_to_end() -> None:
    x, y = rng.random((300, 2)), rng.random((200, 2))
    x, lab_x = sort_clusters(x, grid_cluster(x, 0.3))
    y, lab_y = sort_clusters(y, grid_cluster(y, 0.2))
    ranges_i, c_x, _ = cluster_ranges_centroids(x, lab_x)
    ranges_j, c_y, _ = cluster_ranges_centroids(y, lab_y)
    keep = ((c_x[:, None] - c_y) ** 2).sum(-1) < 0.2
    assert keep.any() and not keep.all()
    kernel = np.exp(-((x[:, None] - y) ** 2).sum(-1)) * keep[lab_x][:, lab_y]
    for axis, want in ((1, kernel.sum(1)), (0, kernel.sum(0))):
        f = Genred("Exp(-SqDist(x,y))", ["x = Vi(2)", "y = Vj(2)"], axis=axis)
        np.testing.assert_allclose(f(x, y, ranges=from_matrix(ranges_i, ranges_j, keep))[:, 0], want)


# ── misuse ────────────────────────────────────────────────────────────────────────────────────────

X, LAB = np.zeros((4, 2)), np.array([0, 1, 1, 0])


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda: grid_cluster(X[:, 0], 1.0), ShapeError, "x[:, None]"),
        (lambda: grid_cluster(X, [1.0, 2.0, 3.0]), ShapeError, "each of the 2 axes"),
        (lambda: grid_cluster(X, 0.0), ArrayError, "above 0"),
        (lambda: grid_cluster(np.array([[0.0], [np.nan]]), 1.0), ArrayError, "row 1"),
        (lambda: grid_cluster(np.array([[-1e308], [1e308]]), 1e-9), ArrayError, "too small"),
        (lambda: grid_cluster(X + 1j, 1.0), DtypeError, "complex128"),
        (lambda: sort_clusters(X, LAB[:3]), ShapeError, "3 labels"),
        (lambda: sort_clusters([X, X[:3]], LAB), ShapeError, "x[1]"),
        (lambda: cluster_ranges(LAB.astype(float)), DtypeError, ".astype('int64')"),
        (lambda: cluster_ranges(LAB[:, None]), ShapeError, ".ravel()"),
        (lambda: cluster_ranges(LAB - 1), ArrayError, "-1"),
        (lambda: cluster_ranges(LAB, np.array(2)), ShapeError, "number of points of each cluster"),
        (lambda: cluster_ranges(LAB, np.array([2, 1])), ShapeError, "counts 3 points"),
        (lambda: cluster_centroids(X, LAB[:3]), ShapeError, "3 labels"),
        (lambda: cluster_centroids(X, LAB, weights=np.ones((1, 4))), ShapeError, "(1, 4)"),
        (lambda: cluster_centroids(X, LAB, weights=np.ones(4), weights_c=np.ones(3)), ShapeError, "2 clusters"),
        (lambda: from_matrix(R_I, R_J, KEEP.T), ShapeError, "(3, 2)"),
        (lambda: from_matrix(R_I, R_J[:, :1], KEEP), ShapeError, "ranges_j"),
        (lambda: from_matrix(R_I, R_J, np.full((2, 3), "x")), DtypeError, "bools"),
    ],
)  # fmt: skip
def test_misuse_is_named(call, kind, says: str) -> None:
    with pytest.raises(kind) as raised:
        call()
    assert says in str(raised.value)
