"""A scalar LazyTensor as a matrix: products with arrays, its transpose, SciPy on top of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse.linalg import LinearOperator, aslinearoperator, cg, eigsh, svds

from farsum.numpy import ComplexLazyTensor, LazyTensor, Pm, Vi, Vj
from farsum_kernels.errors import (
    DeviceMissing,
    DtypeError,
    FarsumError,
    FormulaError,
    OperandError,
    ShapeError,
)

mark = pytest.mark
rng = np.random.default_rng(0)
x, y, v, b = rng.random((5, 3)), rng.random((7, 3)), rng.random(7), rng.random((7, 2))
# Any: what the type checker refuses is tried here too.
K: Any = (-Vi(x).sqdist(Vj(y))).exp()
dense = np.exp(-((x[:, None] - y[None]) ** 2).sum(-1))
xs, ys = rng.random((2, 1, 5, 1, 3)), rng.random((4, 1, 7, 3))
Kb: Any = (-(LazyTensor(xs) - LazyTensor(ys)).sqnorm2()).exp()
dense_b = np.exp(-((xs - ys) ** 2).sum(-1))
square: Any = (-Vi(x).sqdist(Vj(x))).exp()
dense_square = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1))

# ── products ──────────────────────────────────────────────────────────────────────────────────────


@mark.parity("L-191", "L-195")
@mark.parametrize("right", [v, b, b[:, :1], rng.random((7, 30)), np.asfortranarray(b), v[::-1], rng.random((3, 7, 2))],
                  ids=lambda a: str(a.shape))  # fmt: skip
def test_products_have_the_shape_and_value_of_numpy(right: np.ndarray) -> None:
    want = dense @ right
    for got in (K @ right, K.matvec(right)):
        assert got.shape == want.shape and got.dtype == np.float64
        assert_allclose(got, want)


@mark.parity("L-195", "L-190")
@mark.parametrize("left", [x[:, 0], x, rng.random((2, 5, 3))], ids=lambda a: str(a.shape))
def test_the_adjoint_product(left: np.ndarray) -> None:
    want = dense.T @ left
    for got in (K.rmatvec(left), K.T @ left, K.t().matvec(left), K.T.T.rmatvec(left)):
        assert got.shape == want.shape
        assert_allclose(got, want)


@mark.parity("L-191", "L-190")
def test_products_chain_through_arrays() -> None:
    left = x[:, 0].copy()
    assert_allclose(K @ (K.T @ left), dense @ (dense.T @ left))
    assert_allclose(K.T @ (K @ (K.T @ x)), dense.T @ dense @ dense.T @ x)
    gram = K @ np.eye(7)
    assert_allclose(gram, dense)


@mark.parity("L-194", "X-33", "L-191")
def test_batches_of_matrices() -> None:
    one = Kb @ v
    assert one.shape == (2, 4, 5)
    assert_allclose(one, dense_b @ v)
    assert_allclose(Kb @ b, dense_b @ b)
    many = rng.random((4, 7, 2))
    assert_allclose(Kb @ many, dense_b @ many)
    more = rng.random((3, 1, 1, 7, 2))
    assert_allclose(Kb @ more, dense_b @ more)
    assert_allclose(Kb.T @ x[:, 0], np.swapaxes(dense_b, -1, -2) @ x[:, 0])
    assert_allclose(Kb.rmatvec(x), np.swapaxes(dense_b, -1, -2) @ x)


@mark.parity("L-193")
@mark.parametrize(("dtype", "rtol"), [(np.complex64, 1e-5), (np.complex128, 1e-12)])
@mark.parametrize("shape", [(7,), (7, 1), (7, 3), (2, 7, 3)], ids=str)
def test_complex_vectors(shape: tuple[int, ...], dtype: Any, rtol: float) -> None:
    w = (rng.random(shape) + 1j * rng.random(shape)).astype(dtype)
    real = np.float32 if dtype is np.complex64 else np.float64
    matrix: Any = (-Vi(x.astype(real)).sqdist(Vj(y.astype(real)))).exp()
    got = matrix @ w
    assert got.dtype == dtype and got.shape == (dense @ w).shape
    assert_allclose(got, dense @ w, rtol=rtol)
    assert_allclose((matrix.T @ w[..., :5, :] if w.ndim > 1 else matrix.T @ w[:5]),
                    (dense.T @ (w[..., :5, :] if w.ndim > 1 else w[:5])), rtol=rtol)  # fmt: skip


@mark.parity("L-193", "L-60")
def test_products_promote_dtypes() -> None:
    single: Any = (-Vi(x.astype(np.float32)).sqdist(Vj(y.astype(np.float32)))).exp()
    assert (single @ v.astype(np.float32)).dtype == np.float32
    assert (single @ v).dtype == np.float64
    assert (single @ (v * 1j)).dtype == np.complex128
    assert (K @ v.astype(np.float16)).dtype == np.float64


@mark.parity("L-191")
def test_options_of_a_product() -> None:
    rows, cols, ends = np.array([[0, 2], [2, 5]]), np.array([[0, 3], [3, 7]]), np.array([1, 2])
    seen = np.zeros((5, 7))
    seen[:2, :3] = seen[2:, 3:] = 1
    ranges = (rows, ends, cols, cols, ends, rows)
    for product in (K.matvec, K.__matmul__):
        assert_allclose(product(v, ranges=ranges), (dense * seen) @ v)
        assert_allclose(product(b, backend="CPU", use_double_acc=True), dense @ b)
        with pytest.raises(DeviceMissing, match="GPU_1D"):
            product(b, backend="GPU_1D")
        with pytest.raises(TypeError, match="backendd"):
            product(b, backendd="CPU")


@mark.parity("L-191", "R-31")
def test_matrices_that_one_side_alone_writes() -> None:
    column: Any = Vi(x).sqnorm2()  # the same in every column
    assert_allclose(column @ v, (x**2).sum(1)[:, None].repeat(7, 1) @ v)
    row: Any = Vj(y).sqnorm2()
    assert_allclose(row @ b, (y**2).sum(1)[None] @ b)


@mark.parity("L-26")
def test_products_see_changes_in_place() -> None:
    mine, w = x.copy(), v.copy()
    matrix: Any = Vi(mine).sqdist(Vj(y))
    matrix @ w
    mine += 1
    w *= 2
    assert_allclose(matrix @ w, ((mine[:, None] - y) ** 2).sum(-1) @ w)


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────

WRONG = [
    pytest.param(lambda: (Vi(x) - Vj(y)) @ v, ShapeError, r"scalar.*\(5, 7, 3\)", marks=mark.parity("E-37", "L-191")),
    pytest.param(lambda: K @ x[:, 0], ShapeError, "7.*5|5.*7", marks=mark.parity("E-38", "L-191")),
    pytest.param(lambda: K.T @ v, ShapeError, "7.*5|5.*7", marks=mark.parity("E-38", "L-190")),
    pytest.param(lambda: K.rmatvec(v), ShapeError, "7.*5|5.*7", marks=mark.parity("E-38", "L-195")),
    pytest.param(lambda: K @ b.T, ShapeError, "7.*2|2.*7", marks=mark.parity("E-38")),
    pytest.param(lambda: Kb @ rng.random((3, 7, 2)), ShapeError, r"batch.*\(3,\)", marks=mark.parity("L-191", "E-10")),
    pytest.param(lambda: K @ np.arange(7), DtypeError, "int64", marks=mark.parity("E-38", "E-30")),
    pytest.param(lambda: K @ v.tolist(), OperandError, "list", marks=mark.parity("L-191")),
    pytest.param(lambda: K @ None, OperandError, "None", marks=mark.parity("L-191")),
    pytest.param(lambda: K @ 2.0, FarsumError, r"float|K \* v", marks=mark.parity("L-191")),
    pytest.param(lambda: K @ np.array(2.0), ShapeError, r"K \* v", marks=mark.parity("L-191")),
    pytest.param(lambda: K @ K.T, OperandError, "LazyTensor", marks=mark.parity("L-89")),
    pytest.param(lambda: K @ Vj(b), OperandError, "LazyTensor", marks=mark.parity("L-89")),
    pytest.param(lambda: v @ K, TypeError, "unsupported operand", marks=mark.parity("L-192", "E-12")),
    pytest.param(lambda: [1.0] @ K, TypeError, "unsupported operand", marks=mark.parity("L-192", "E-12")),
    pytest.param(lambda: K.sum(axis=1, call=False) @ v, FormulaError, "reduced", marks=mark.parity("E-20")),
]  # fmt: skip


@mark.parametrize(("wrong", "error", "words"), WRONG)
def test_products_that_mean_nothing(wrong: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        wrong()


@mark.parity("E-37", "L-191")
def test_a_matrix_of_vectors_says_how_to_get_its_product() -> None:
    with pytest.raises(ShapeError, match=r"Vj\(v\)"):
        (Vi(x) - Vj(y)) @ v


@mark.parity("L-183", "L-191")
def test_symbolic_matrices_multiply_later() -> None:
    later = (-Vi(0, 3).sqdist(Vj(1, 3))).exp() @ b
    assert_allclose(later(x, y), dense @ b)


# ── SciPy ─────────────────────────────────────────────────────────────────────────────────────────


@mark.parity("L-196")
@mark.parametrize(("dtype", "rtol"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_scipy_takes_it_as_an_operator(dtype: type, rtol: float) -> None:
    matrix: Any = (-Vi(x.astype(dtype)).sqdist(Vj(y.astype(dtype)))).exp()
    operator = aslinearoperator(matrix)
    assert isinstance(operator, LinearOperator)
    assert (operator.shape, operator.dtype) == ((5, 7), np.dtype(dtype))
    assert_allclose(operator.matvec(v.astype(dtype)), dense @ v, rtol=rtol)
    assert_allclose(operator.rmatvec(x[:, 0].astype(dtype)), dense.T @ x[:, 0], rtol=rtol)
    assert_allclose(operator.matmat(b.astype(dtype)), dense @ b, rtol=rtol)
    assert_allclose(operator.rmatmat(x.astype(dtype)), dense.T @ x, rtol=rtol)
    assert_allclose((operator.T @ (operator @ v.astype(dtype))), dense.T @ (dense @ v), rtol=rtol)


@mark.parity("L-196")
def test_eigenvalues_and_systems_through_scipy() -> None:
    points = rng.random((60, 2))
    lazy: Any = (-Vi(points).sqdist(Vj(points)) / 0.1).exp()
    full = np.exp(-((points[:, None] - points) ** 2).sum(-1) / 0.1)
    values, vectors = eigsh(aslinearoperator(lazy), k=4)
    assert_allclose(values, np.linalg.eigvalsh(full)[-4:], rtol=1e-8)
    assert_allclose(lazy @ vectors, vectors * values, atol=1e-8)
    ridge = aslinearoperator(lazy) + aslinearoperator(np.eye(60))
    solution, failed = cg(ridge, points[:, 0], rtol=1e-12)
    assert failed == 0
    assert_allclose(solution, np.linalg.solve(full + np.eye(60), points[:, 0]), rtol=1e-8)


@mark.parity("L-196", "L-195")
def test_singular_values_through_scipy() -> None:
    found = svds(aslinearoperator(K), k=3, return_singular_vectors=False, random_state=0)
    assert_allclose(np.sort(found), np.linalg.svd(dense, compute_uv=False)[2::-1], rtol=1e-8)


@mark.parity("L-190")
def test_the_transpose_of_a_symmetric_matrix_is_itself() -> None:
    assert_array_equal(square.T @ x, square @ x)
    assert_allclose(square @ x, dense_square @ x)
    p: Any = Pm([2.0])
    assert not isinstance((p * square).T, ComplexLazyTensor)
    assert_allclose((p * square).T @ x, 2 * dense_square @ x)
