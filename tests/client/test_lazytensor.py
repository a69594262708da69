"""The NumPy front end on the embedded engine: values, shapes, conventions, and errors that teach."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import farsum
from farsum.numpy import LazyTensor, Pm, Vi, Vj
from farsum_kernels.errors import (
    AxisError,
    DimensionError,
    DtypeError,
    FormulaError,
    OperandError,
    ShapeError,
)

rng = np.random.default_rng(0)
x, y, b = rng.random((40, 3)), rng.random((50, 3)), rng.random((50, 2))
x_i, y_j = LazyTensor(x[:, None, :]), LazyTensor(y[None, :, :])
dense = ((x[:, None] - y[None]) ** 2).sum(-1)
D_ij = ((x_i - y_j) ** 2).sum(-1)
K_ij = (-D_ij / (2 * 0.3**2)).exp()
kernel = np.exp(-dense / (2 * 0.3**2))


@pytest.mark.parity("L-09", "L-10", "L-13", "L-14", "L-30")
def test_all_ways_to_name_the_axes() -> None:
    for xi, yj in [(x_i, y_j), (Vi(x), Vj(y)), (LazyTensor(x, axis=0), LazyTensor(y, axis=1))]:
        np.testing.assert_allclose(xi.sqdist(yj).sum(axis=1)[:, 0], dense.sum(1))


@pytest.mark.parity("L-159", "X-72")
def test_reductions_keep_the_vector_axis() -> None:
    assert K_ij.sum(axis=1).shape == (40, 1)
    assert K_ij.sum(axis=0).shape == (50, 1)
    assert (x_i - y_j).sum(axis=1).shape == (40, 3)
    assert D_ij.argKmin(4, axis=1).shape == (40, 4)
    assert (x_i - y_j).Kmin(4, axis=1).shape == (40, 4, 3)


@pytest.mark.parity("L-150", "L-151", "L-152", "L-154", "L-155")
def test_values_of_the_reductions() -> None:
    np.testing.assert_allclose(K_ij.sum(axis=1)[:, 0], kernel.sum(1))
    np.testing.assert_allclose(K_ij.sum_reduction(axis=0)[:, 0], kernel.sum(0))
    np.testing.assert_allclose(D_ij.logsumexp(axis=1)[:, 0], np.log(np.exp(dense).sum(1)))
    np.testing.assert_array_equal(D_ij.argmin(dim=1)[:, 0], dense.argmin(1))
    np.testing.assert_array_equal(D_ij.argmax(axis=0)[:, 0], dense.argmax(0))
    np.testing.assert_array_equal(D_ij.argKmin(K=4, dim=1), np.argsort(dense, 1)[:, :4])
    values, indices = D_ij.Kmin_argKmin(4, axis=1)
    np.testing.assert_allclose(values, np.sort(dense, 1)[:, :4])
    values, indices = D_ij.min_argmin(axis=1)
    np.testing.assert_allclose(values[:, 0], dense.min(1))
    assert indices.dtype == np.int64


@pytest.mark.parity("L-191", "L-190")
def test_products_with_arrays() -> None:
    np.testing.assert_allclose(K_ij @ b, kernel @ b)
    assert (K_ij @ b[:, 0]).shape == (40,)
    np.testing.assert_allclose(K_ij.T @ x, kernel.T @ x)
    assert K_ij.T.shape == (50, 40)
    np.testing.assert_allclose(K_ij.t() @ x[:, 0], kernel.T @ x[:, 0])


@pytest.mark.parity("L-80", "L-81", "L-83", "L-86")
def test_arithmetic_with_numbers_and_arrays() -> None:
    p = np.array([0.5, 1.0, 2.0])
    cases = [
        (x_i + 2, x[:, None] + 2), (2.5 - x_i, 2.5 - x[:, None]), (x_i * p, x[:, None] * p), (p / (1 + x_i), p / (1 + x[:, None])),
        (x_i**3, x[:, None] ** 3), (x_i**0.5, x[:, None] ** 0.5), (x_i**-0.5, x[:, None] ** -0.5),
        (x_i**1.7, x[:, None] ** 1.7), (1 / (x_i + 1), 1 / (x[:, None] + 1)), (x_i / 3, x[:, None] / 3),
        (abs(-x_i), x[:, None]), (x_i.sqrt().square(), x[:, None]), (sum([x_i, x_i]), 2 * x[:, None]),
        (x_i * [1, 2, 3], x[:, None] * [1, 2, 3]), (np.float64(2) * x_i, 2 * x[:, None]),
    ]  # fmt: skip
    for lazy, want in cases:
        np.testing.assert_allclose((lazy + 0 * y_j).sum(axis=1), (want + 0 * y[None]).sum(1), rtol=1e-12)


@pytest.mark.parity("X-01")
def test_dividing_by_an_integer_is_exact() -> None:
    (got,) = (Vi(np.array([[1.0]])) / 3).sum(axis=1)[0]
    assert got == 1 / 3


@pytest.mark.parity("L-70")
def test_raw_operands_on_the_left() -> None:
    a = x[:, None, :]
    np.testing.assert_allclose((a - y_j).sum(axis=1), (a - y[None]).sum(1))
    np.testing.assert_allclose((np.float64(2) * x_i).sum(axis=1)[:, 0], 2 * x[:, 0])


@pytest.mark.parity("L-67")
def test_the_same_memory_is_one_variable() -> None:
    assert len((Vi(x) * Vi(x) + LazyTensor(x[:, None, :])).inputs) == 1
    assert len((Vi(x) - Vj(x)).inputs) == 2


@pytest.mark.parity("L-63")
def test_batch_dimensions_broadcast() -> None:
    a, c = rng.random((4, 1, 10, 1, 3)), rng.random((3, 1, 20, 3))
    d = ((LazyTensor(a) - LazyTensor(c)) ** 2).sum(-1)
    assert d.shape == (4, 3, 10, 20)
    want = ((a - c) ** 2).sum(-1)
    np.testing.assert_allclose(d.sum(axis=3)[..., 0], want.sum(3))
    np.testing.assert_allclose(d.sum(axis=-2)[..., 0], want.sum(3))
    np.testing.assert_allclose(d.sum(axis=2)[..., 0], want.sum(2))


@pytest.mark.parity("L-25")
def test_any_memory_layout() -> None:
    views = [np.asfortranarray(x), x[::-1][::-1], np.repeat(x, 2, axis=0)[::2], x.copy()]
    views[-1].flags.writeable = False
    for view in views:
        np.testing.assert_allclose(Vi(view).sqdist(Vj(y)).sum(axis=1)[:, 0], dense.sum(1))


@pytest.mark.parity("R-36", "R-37")
def test_empty_arrays() -> None:
    assert Vi(x[:0]).sqdist(Vj(y)).sum(axis=1).shape == (0, 1)
    np.testing.assert_array_equal(Vi(x).sqdist(Vj(y[:0])).sum(axis=1), np.zeros((40, 1)))
    assert (Vi(x).sqdist(Vj(y[:0])).min(axis=1) == np.inf).all()


def test_changes_in_place_are_seen() -> None:
    a = x.copy()
    d = Vi(a).sqdist(Vj(y))
    before = d.sum(axis=1)
    a[0] += 1
    assert d.sum(axis=1)[0, 0] != before[0, 0]


def test_shape_and_repr_teach() -> None:
    assert (x_i.shape, y_j.shape, D_ij.shape, D_ij.ndim, D_ij.dim()) == (
        (40, 1, 3),
        (1, 50, 3),
        (40, 50),
        2,
        3,
    )
    assert ".sum(axis=1)" in repr(D_ij) and "(40, 50)" in repr(D_ij)


ERRORS = [
    pytest.param(lambda: LazyTensor(x), ShapeError, r"\(40, 3\).*Vi\(x\)", marks=pytest.mark.parity("E-01")),
    pytest.param(lambda: x_i + y, ShapeError, "operand of Add", marks=pytest.mark.parity("E-01")),
    pytest.param(lambda: LazyTensor(rng.random((4, 5, 3))), ShapeError, r"\(\.\.\., M, 1, D\)", marks=pytest.mark.parity("E-02", "L-16")),
    pytest.param(lambda: LazyTensor(x[:, None], axis=0), AxisError, "takes no axis", marks=pytest.mark.parity("E-03", "L-17")),
    pytest.param(lambda: LazyTensor([1.0], axis=0), AxisError, "parameters", marks=pytest.mark.parity("E-04")),
    pytest.param(lambda: LazyTensor("x"), OperandError, "not str", marks=pytest.mark.parity("E-06")),
    pytest.param(lambda: LazyTensor(True), OperandError, "not bool", marks=pytest.mark.parity("L-24")),
    pytest.param(lambda: x_i - Vj(y[:, :2]), DimensionError, r"3 and 2 .*\(1, 50, 2\)", marks=pytest.mark.parity("E-07")),
    pytest.param(lambda: Vi(x) - Vi(x[:5]), ShapeError, "40 rows with 5 rows along i", marks=pytest.mark.parity("E-09", "L-62")),
    pytest.param(lambda: LazyTensor(rng.random((4, 5, 1, 3))) - LazyTensor(rng.random((3, 5, 1, 3))), ShapeError, "do not broadcast", marks=pytest.mark.parity("E-10")),
    pytest.param(lambda: x_i ** "2", FormulaError, "exponent", marks=pytest.mark.parity("E-11")),
    pytest.param(lambda: x_i**True, FormulaError, "exponent", marks=pytest.mark.parity("E-11")),
    pytest.param(lambda: K_ij.sum(axis=5), AxisError, "axis=0 .over i.*axis=1 .over j", marks=pytest.mark.parity("E-21")),
    pytest.param(lambda: K_ij.logsumexp(), AxisError, "needs an axis", marks=pytest.mark.parity("E-22")),
    pytest.param(lambda: K_ij.sum(axis=0, dim=1), AxisError, "two axes", marks=pytest.mark.parity("X-46")),
    pytest.param(lambda: (x_i - y_j).logsumexp(axis=1), DimensionError, "reduces scalars", marks=pytest.mark.parity("E-24")),
    pytest.param(lambda: K_ij.argKmin(0, axis=1), FormulaError, "K, an int", marks=pytest.mark.parity("R-18")),
    pytest.param(lambda: Vi(x.astype(int)), DtypeError, "int64", marks=pytest.mark.parity("E-30", "L-22")),
    pytest.param(lambda: (x_i - y_j) @ b, ShapeError, "scalar K", marks=pytest.mark.parity("E-37")),
    pytest.param(lambda: K_ij @ b[:7], ShapeError, "50 rows with 7", marks=pytest.mark.parity("E-38")),
    pytest.param(lambda: x_i.norm(0), AxisError, "vector axis", marks=pytest.mark.parity("E-19")),
    pytest.param(lambda: x_i / 0, FormulaError, "division", marks=pytest.mark.parity("E-32")),
    pytest.param(lambda: LazyTensor(3).sum(axis=1), FormulaError, "no array"),
    pytest.param(lambda: Vi(x[0]), ShapeError, "2-D array", marks=pytest.mark.parity("L-30")),
    pytest.param(lambda: Pm(x), ShapeError, "one vector", marks=pytest.mark.parity("X-51")),
    pytest.param(lambda: bool(K_ij), TypeError, "truth value", marks=pytest.mark.parity("X-45")),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "error", "words"), ERRORS)
def test_mistakes_are_explained(wrong: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        wrong()
    assert issubclass(error, ValueError | TypeError)


@pytest.mark.parity("X-15", "L-60")
def test_dtypes_promote_as_in_numpy() -> None:
    single, half = y.astype(np.float32), x.astype(np.float16)
    mixed = (Vi(x) - Vj(single)).sum(axis=1)
    assert mixed.dtype == np.float64
    np.testing.assert_allclose(mixed, (x[:, None] - single[None]).sum(1))
    assert (Vi(half) - Vj(single)).sum(axis=1).dtype == np.float32
    assert (K_ij @ b.astype(np.float32)).dtype == np.float64
    assert (Vi(half) * 2.5 + [1, 2, 3]).sum(
        axis=1
    ).dtype == np.float16  # numbers take the dtype of the arrays


def test_errors_are_at_hand() -> None:
    assert farsum.errors.ShapeError is ShapeError


def test_a_deadline_stops_long_work() -> None:
    big = np.random.default_rng(0).random((60_000, 3))
    with pytest.raises(farsum.errors.DeadlineExceeded):
        Vi(big).sqdist(Vj(big)).sqrt().exp().log().sum(axis=1, deadline_s=0.05)
