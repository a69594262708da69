"""A LazyTensor used as an array: all of it, rows, entries, the diagonal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from farsum.numpy import ComplexLazyTensor, LazyTensor, Pm, Vi, Vj
from farsum_kernels.errors import DimensionError, FarsumError, FormulaError, ShapeError

mark = pytest.mark
rng = np.random.default_rng(0)
x, y, b = rng.random((5, 3)), rng.random((7, 3)), rng.random((7, 2))
z, w = x + 1j * x[::-1], y - 1j * y[::-1]
xs, ys, ps = rng.random((2, 1, 5, 1, 3)), rng.random((4, 1, 7, 3)), rng.random((2, 1, 1, 1, 3))
X, Y = x[:, None], y[None]
D2 = ((X - Y) ** 2).sum(-1)
# Any: what the type checker refuses is tried here too.
x_i: Any = Vi(x)
y_j: Any = Vj(y)
K: Any = (-x_i.sqdist(y_j)).exp()
kernel = np.exp(-D2)
V: Any = x_i - y_j
vectors = X - Y
batched: Any = LazyTensor(xs) - LazyTensor(ys)


def entries(found: Any) -> np.ndarray:
    """Of what indexing gives, lazy or not."""
    return found.dense() if isinstance(found, LazyTensor | ComplexLazyTensor) else np.asarray(found)


# ── all of it ─────────────────────────────────────────────────────────────────────────────────────

DENSE: list[tuple[Callable[[], Any], np.ndarray]] = [
    (lambda: K, kernel), (lambda: V, vectors), (lambda: K.T, kernel.T), (lambda: V.T, np.swapaxes(vectors, 0, 1)),
    (lambda: x_i - Vj(x), X - x), (lambda: x_i, X), (lambda: y_j, Y), (lambda: x_i.sqnorm2(), (x**2).sum(1)[:, None]),
    (lambda: y_j.sqnorm2(), (y**2).sum(1)[None]), (lambda: Pm(x[0]), x[None, :1]), (lambda: x_i * Pm(2) + 1.5, 2 * X + 1.5),
    (lambda: K * 0, 0 * kernel), (lambda: V[1], vectors[..., 1]), (lambda: V[1:], vectors[..., 1:]), (lambda: Vi(z) * Vj(w), z[:, None] * w),
    (lambda: (Vi(z) * Vj(w)).sum(-1), (z[:, None] * w).sum(-1)), (lambda: V.concat(x_i), np.concatenate([vectors, X.repeat(7, 1)], -1)),
    (lambda: batched, xs - ys), (lambda: batched.sum(-1), (xs - ys).sum(-1)), (lambda: batched.T, np.swapaxes(xs - ys, -2, -3)),
    (lambda: LazyTensor(xs), xs), (lambda: LazyTensor(ys), ys), (lambda: LazyTensor(ps), ps), (lambda: LazyTensor(xs) * y_j, xs * y),
    (lambda: LazyTensor(ps) - y_j, ps - y), (lambda: LazyTensor(ps) * V, ps * vectors), (lambda: K == K, np.ones((5, 7))),
    (lambda: Vi(x[:0]) - y_j, np.zeros((0, 7, 3))), (lambda: K[:, 3:3], np.zeros((5, 0))), (lambda: Vi(x[:1]) - Vj(y[:1]), x[:1, None] - y[:1]),
]  # fmt: skip


@mark.parametrize(("lazy", "want"), DENSE)
def test_dense_is_the_array(lazy: Callable[[], Any], want: np.ndarray) -> None:
    made = lazy()
    got = made.dense()
    assert type(got) is np.ndarray and got.flags.writeable
    assert got.shape == want.shape == made.shape
    assert got.dtype == want.dtype
    assert_allclose(got, want, rtol=1e-12, atol=1e-14)


@mark.parametrize(("dtype", "rtol"), [(np.float16, 5e-3), (np.float32, 1e-6), (np.float64, 1e-14)])
def test_dense_keeps_the_dtype(dtype: type, rtol: float) -> None:
    lazy: Any = (-Vi(x.astype(dtype)).sqdist(Vj(y.astype(dtype)))).exp()
    for got, want in [(lazy.dense(), kernel), (lazy[[1, 1]].dense(), kernel[[1, 1]]), (lazy[2, :], kernel[2]),
                      (lazy[[0, 1], [2, 3]], kernel[[0, 1], [2, 3]]), (lazy[:, :5].diagonal(), kernel.diagonal())]:  # fmt: skip
        assert entries(got).dtype == dtype
        assert_allclose(entries(got), want, rtol=rtol)
    complex_: Any = Vi(z.astype(np.complex64)) * 2
    assert complex_.dense().dtype == np.complex64


def test_dense_reads_the_arrays_as_they_are_now() -> None:
    mine = x.copy()
    lazy: Any = Vi(mine) - y_j
    lazy.dense()
    mine += 1
    assert_allclose(lazy.dense(), mine[:, None] - y)


@mark.parametrize("size", [280, 279])
def test_dense_is_bounded(size: int) -> None:
    if size == 280:
        assert K.dense(max_bytes=size).nbytes == size
        return
    with pytest.raises(ShapeError, match=r"280.*max_bytes"):
        K.dense(max_bytes=size)


def test_dense_refuses_what_does_not_fit_before_it_computes() -> None:
    many = np.zeros((1_000_000, 3))
    with pytest.raises(ShapeError, match=r"\(1000000, 1000000\).*8,000,000,000,000"):
        Vi(many).sqdist(Vj(many)).dense()
    with pytest.raises(ShapeError, match="16,000,000,000"):
        (Vi(many * 1j) * Vj(np.zeros((1000, 3)))).sum(-1).dense()


# ── the diagonal ──────────────────────────────────────────────────────────────────────────────────

SQUARE: list[tuple[Callable[[], Any], np.ndarray]] = [
    (lambda: x_i.sqdist(Vj(y[:5])), ((X - y[:5]) ** 2).sum(-1)), (lambda: x_i.sqdist(Vj(x)), ((X - x) ** 2).sum(-1)),
    (lambda: x_i - Vj(y[:5]), X - y[:5]), (lambda: K[:, :5], kernel[:, :5]), (lambda: Vi(z) * Vj(w[:5]), z[:, None] * w[:5]),
    (lambda: batched[:, :, :, :5], (xs - ys)[..., :5, :]), (lambda: Pm(x[0]), x[None, :1]),
]  # fmt: skip


@mark.parametrize(("lazy", "dense"), SQUARE)
def test_diagonal_and_trace(lazy: Callable[[], Any], dense: np.ndarray) -> None:
    made = lazy()
    nb = made.nbatchdims
    want = np.einsum("...iik->...ik", dense.reshape(made._shape[:-1] + (-1,)))  # noqa: RUF005
    want = want if dense.ndim == nb + 3 else want[..., 0]
    got = made.diagonal()
    assert got.shape == want.shape and got.dtype == dense.dtype
    assert_allclose(got, want, rtol=1e-12)
    assert_allclose(made.trace(), want.sum(nb), rtol=1e-12)
    assert np.shape(made.trace()) == want.shape[:nb] + want.shape[nb + 1 :]


# ── rows, columns, entries ────────────────────────────────────────────────────────────────────────

mask_i, mask_j = np.array([1, 0, 0, 1, 1], bool), np.array([0, 1, 1, 0, 0, 1, 0], bool)
ROWS: list[Any] = [
    [0, 2],
    [4, 0, 0, 2],
    [-1, 1],
    np.array([3, 1]),
    np.array([2], np.int32),
    mask_i,
    mask_i.tolist(),
    [],
    np.zeros(5, bool),
]


@mark.parametrize("rows", ROWS, ids=repr)
@mark.parametrize(("lazy", "dense"), [(K, kernel), (V, vectors), (Vi(z) * Vj(w), z[:, None] * w)], ids=["scalars", "vectors", "complex"])  # fmt: skip
def test_rows_are_a_lazytensor(rows: Any, lazy: Any, dense: np.ndarray) -> None:
    rows_of_dense = dense[np.asarray(rows, bool if np.asarray(rows).dtype == bool else int)]
    made = lazy[rows]
    assert type(made) is type(lazy)
    assert made.shape == rows_of_dense.shape
    assert_allclose(made.dense(), rows_of_dense, rtol=1e-12)
    tail = rows_of_dense if dense.ndim == 3 else rows_of_dense[..., None]
    assert_allclose(made.sum(axis=1), tail.sum(1), rtol=1e-12)
    assert_allclose(made.sum(axis=0), tail.sum(0), rtol=1e-12, atol=1e-15)


KEYS: list[tuple[Any, Any]] = [
    (slice(1, 3), slice(None)), (slice(None), slice(2, 6)), (slice(None), slice(None)), (slice(0, 10), slice(None)), (slice(None, None, 2), slice(None, None, -1)),
    (slice(-3, None), slice(None, -2)), (slice(3, 1), slice(None)), (slice(4, None, -2), slice(1, 6, 3)), ([0, 3], slice(None)), (slice(None), [6, 0, 0]),
    (mask_i, slice(1, 4)), (slice(None), mask_j), ([1, -1], slice(None, None, 2)), (np.array([2, 2]), slice(None)), (2, slice(None)), (slice(None), 3),
    (-1, slice(1, 5)), (slice(None, 2), -2), (2, 3), (-1, -7), (np.int64(1), np.int32(2)), (2, [0, 3]), ([4, 1, 1], 5), (mask_i, 2), (1, mask_j),
    ([0, 1, 2], [3, 2, 1]), (np.array([4, 4]), np.array([-1, 0])), (mask_i, [0, 1, 2]), (mask_i, mask_j), ([0, 1], [3]),
    (np.array([[0, 1], [2, 3]]), np.array([[6, 5], [4, 3]])), (np.array([[0], [2]]), np.array([1, 2, 3])), (np.array([[0], [2]]), 4),
]  # fmt: skip


@mark.parametrize("key", KEYS, ids=repr)
@mark.parametrize(("lazy", "dense"), [(K, kernel), (V, vectors), (Vi(z) * Vj(w), z[:, None] * w)], ids=["scalars", "vectors", "complex"])  # fmt: skip
def test_two_keys_mean_what_they_mean_in_numpy(key: tuple, lazy: Any, dense: np.ndarray) -> None:
    got, want = entries(lazy[key]), dense[key]
    assert got.shape == want.shape
    assert_allclose(got, want, rtol=1e-12)


@mark.parametrize("lazy", [K, V, Vi(z) * Vj(w)], ids=["scalars", "vectors", "complex"])
def test_what_stays_a_matrix_stays_lazy(lazy: Any) -> None:
    for key in [(slice(1, 3), slice(None)), ([0, 3], slice(None)), (slice(None), mask_j), (slice(None, None, 2), [1]), np.ix_([0, 2], [1, 1, 5])]:  # fmt: skip
        assert type(lazy[key]) is type(lazy)
    for key in [([0, 1, 2], [3, 2, 1]), (np.array([[0], [2]]), np.array([1, 2, 3])), (mask_i, mask_j)]:
        assert type(lazy[key]) is np.ndarray
    assert isinstance(K[2, 3], float) and K[2, 3] == K.dense()[2, 3]
    assert V[2, 3].shape == (3,)


@mark.parametrize(("lazy", "dense"), [(K, kernel), (V, vectors), (Vi(z) * Vj(w), z[:, None] * w)], ids=["scalars", "vectors", "complex"])  # fmt: skip
@mark.parametrize("keys", [([0, 2, 2], [6, 1]), ([3], [0]), ([1], [0, 1, 2]), ([0, 1], [5]), (mask_i, mask_j), ([0, 1], [2, 3])], ids=repr)  # fmt: skip
def test_a_sub_matrix(keys: tuple, lazy: Any, dense: np.ndarray) -> None:
    made, want = lazy[np.ix_(*keys)], dense[np.ix_(*keys)]
    assert made.shape == want.shape
    assert_allclose(made.dense(), want, rtol=1e-12)
    assert_allclose(made.sum(axis=1), want.reshape(*made._shape[:2], -1).sum(1), rtol=1e-12)


def test_selections_take_part_in_formulas() -> None:
    rows = [4, 0, 2]
    assert_allclose(K[rows] @ b, kernel[rows] @ b)
    assert_allclose(K[rows].T @ x[rows], kernel[rows].T @ x[rows])
    assert_allclose((K[rows] * V[rows]).sum(axis=1), (kernel[..., None] * vectors)[rows].sum(1))
    assert_array_equal(K[rows, :4].argmax(axis=1)[:, 0], kernel[rows, :4].argmax(1))
    assert_allclose(K[rows][:, [1, 2]][[2, 0]].dense(), kernel[rows][:, [1, 2]][[2, 0]])
    assert_allclose((K[rows] * [2.0] + Vj(y[:, :1].copy())).dense(), 2 * kernel[rows] + y[:, 0])
    with pytest.raises(ShapeError, match=r"3.*5|5.*3"):
        K[rows] * x_i


def test_sides_that_no_array_has_are_one_row_long() -> None:
    assert_allclose(entries(y_j[0, 3]), y[3])
    assert_allclose(entries(y_j[0, :]), y)
    assert_allclose(entries(y_j[:, [1, 2, 2]]), Y[:, [1, 2, 2]])
    assert_allclose(entries(x_i[[1, 2, 2], :]), X[[1, 2, 2]])
    assert_allclose(entries(x_i[[1, 2], [0, -1]]), X[[1, 2], [0, -1]])
    with pytest.raises(FarsumError, match="1"):
        y_j[1, 3]
    for rows in ([0, 0], [], [0, -1, 0]):  # NumPy's shape or nothing
        try:
            assert y_j[rows].shape == Y[rows].shape
        except FormulaError:
            continue


@mark.parity("L-118", "L-119")
def test_the_vector_axis() -> None:
    for made, want in [
        (V[1], vectors[..., 1]), (V[0:2], vectors[..., :2]), (V[1:], vectors[..., 1:]), (V[:, :, 1], vectors[..., 1]), (V[..., 1], vectors[..., 1]),
        (V[..., 0:2], vectors[..., :2]), (V[:, :, :2], vectors[..., :2]), (V[...], vectors), (batched[..., 2], (xs - ys)[..., 2]),
        (batched[2], (xs - ys)[..., 2]), (batched[:, :, :, :, 1:], (xs - ys)[..., 1:]), (K[0], kernel), (K[..., 0], kernel), (K[0:1], kernel),
        ((Vi(z) * Vj(w))[..., 2], (z[:, None] * w)[..., 2]), (V[np.int64(1)], vectors[..., 1]),
    ]:  # fmt: skip
        assert made.shape == want.shape
        assert_allclose(made.dense(), want, rtol=1e-12)


@mark.parity("L-55")
@mark.parametrize(("lazy", "dense"), [(K, kernel[..., None]), (V, vectors), (Vi(z) * Vj(w), z[:, None] * w), (batched, xs - ys)], ids=["1", "3", "complex", "batch"])  # fmt: skip
def test_iteration_goes_over_components(lazy: Any, dense: np.ndarray) -> None:
    parts = list(lazy)
    assert len(parts) == dense.shape[-1]
    for k, part in enumerate(parts):
        assert_allclose(part.dense(), dense[..., k], rtol=1e-12)


WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: K[0:10], DimensionError, r"\[0:10, :\]"),
    (lambda: K[5], DimensionError, r"\[5, :\]"),
    (lambda: K[-1], DimensionError, r"\[-1, :\]"),
    (lambda: V[3], DimensionError, "3"),
    (lambda: V[2:5], DimensionError, r"2:5"),
    (lambda: K[[5]], FarsumError, "5"),
    (lambda: K[[-6]], FarsumError, "-5|-6"),
    (lambda: K[7, 0], FarsumError, "4|7"),
    (lambda: K[0, 7], FarsumError, "6|7"),
    (lambda: K[:, [9]], FarsumError, "6|9"),
    (lambda: K[mask_j], FarsumError, r"5.*7|7.*5"),
    (lambda: K[:, mask_i], FarsumError, r"5.*7|7.*5"),
    (lambda: K[[0.5]], FarsumError, "int"),
    (lambda: K["a"], FarsumError, "'a'"),
    (lambda: K[None], FarsumError, "None"),
    (lambda: K[0, 1, 2, 3], FarsumError, r"\(5, 7\)"),
    (lambda: K["a", 0], FarsumError, r"\(5, 7\)|'a'"),
    (lambda: K[[0, 1, 2], [0, 1]], ShapeError, r"np\.ix_"),
    (lambda: batched[0, 1], FarsumError, r"\(2, 4, 5, 7, 3\)"),
    (lambda: K.diagonal(), ShapeError, "5.*7"),
    (lambda: K.trace(), ShapeError, "5.*7"),
    (lambda: Vi(x).diagonal(), ShapeError, "5"),
    (lambda: Vi(0, 3).sqdist(y_j).dense(), FormulaError, "symbolic"),
    (lambda: Vi(0, 3).sqdist(y_j)[[0, 1]], FormulaError, "symbolic"),
    (lambda: Vi(0, 3).sqdist(y_j)[0, 1], FormulaError, "symbolic"),
    (lambda: Vi(0, 3).sqdist(Vj(1, 3)).diagonal(), FormulaError, "symbolic"),
]


@mark.parametrize(("wrong", "error", "words"), WRONG)
def test_indexing_errors_say_what_to_write(wrong: Callable[[], Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        wrong()
    assert isinstance(caught.value, ValueError)
