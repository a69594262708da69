"""Complex LazyTensors against NumPy's complex arithmetic; what has no clear meaning is refused, never guessed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse.linalg import aslinearoperator

from farsum.numpy import ComplexLazyTensor, LazyTensor, Pm, Vi, Vj
from farsum_kernels.errors import FarsumError, FormulaError, ShapeError

mark = pytest.mark
rng = np.random.default_rng(0)


def points(*shape: int) -> np.ndarray:
    """Complex numbers in all four quadrants, away from 0."""
    return rng.uniform(0.5, 1.5, shape) * np.exp(2j * np.pi * rng.random(shape))


z, w, x, y = points(5, 3), points(7, 3), rng.uniform(0.5, 1.5, (5, 3)), rng.uniform(-1.5, -0.5, (7, 3))
Z, W, X, Y = z[:, None], w[None], x[:, None], y[None]
# Any: what the type checker refuses is tried here too.
z_i: Any = Vi(z)
w_j: Any = Vj(w)
x_i: Any = Vi(x)
y_j: Any = Vj(y)
one_i: Any = Vi(z[:, :1].copy())  # one complex number per row
one_j: Any = Vj(w[:, :1].copy())
real_i: Any = Vi(x[:, :1].copy())  # one real number per row
real_j: Any = Vj(y[:, :1].copy())


def same(lazy: Any, dense: np.ndarray, kind: type = ComplexLazyTensor) -> None:
    """The sums over j agree, next to factors of both sides."""
    assert type(lazy) is kind
    dense = np.broadcast_to(dense, (5, 7, dense.shape[-1])) * X[..., :1] * Y[..., :1]
    full = lazy * real_i * real_j
    assert full.shape == (dense.shape if dense.shape[-1] > 1 else dense.shape[:-1])
    got = full.sum(axis=1)
    assert got.dtype == (np.complex128 if kind is ComplexLazyTensor else np.float64)
    assert_allclose(got, dense.sum(1), rtol=1e-11, atol=1e-12)


# ── where they come from ──────────────────────────────────────────────────────────────────────────

SOURCES = [
    (lambda: z_i, Z), (lambda: LazyTensor(Z), Z), (lambda: LazyTensor(W), W), (lambda: w_j, W), (lambda: LazyTensor(2 - 1j), np.array([2 - 1j])),
    (lambda: Pm(2 - 1j), np.array([2 - 1j])), (lambda: Pm([1j, 2, 3 - 1j]), np.array([1j, 2, 3 - 1j])), (lambda: Pm(z[0]), z[0]),
    (lambda: LazyTensor(z[None, :1]), z[0]), (lambda: x_i.real2complex(), X + 0j), (lambda: x_i.imag2complex(), 1j * X),
    (lambda: (x_i - y_j).exp1j(), np.exp(1j * (X - Y))), (lambda: x_i * 1j, 1j * X), (lambda: 1j * x_i, 1j * X),
    (lambda: (x_i - y_j) * (2 - 1j), (X - Y) * (2 - 1j)), (lambda: LazyTensor(3).real2complex(), np.array([3 + 0j])),
]  # fmt: skip


@mark.parity("L-230", "L-234", "L-19")
@mark.parametrize(("lazy", "dense"), SOURCES)
def test_where_complex_numbers_come_from(lazy: Callable[[], Any], dense: np.ndarray) -> None:
    same(lazy(), dense)


@mark.parity("L-230", "L-240")
@mark.parametrize("dtype", [np.complex64, np.complex128])
def test_shapes_count_complex_numbers(dtype: type) -> None:
    real = np.float32 if dtype is np.complex64 else np.float64
    lazy: Any = Vi(z.astype(dtype)) * Vj(w.astype(dtype))
    assert (lazy.shape, lazy._shape, lazy.ndim, lazy.dim()) == ((5, 7, 3), (5, 7, 6), 3, 3)
    assert (lazy.dtype, lazy.sum(-1).shape, abs(lazy).shape) == (dtype.__name__, (5, 7), (5, 7, 3))
    assert (abs(lazy).dtype, Vi(x.astype(real)).exp1j().dtype) == (np.dtype(real).name, dtype.__name__)
    got = lazy.sum(axis=1)
    assert type(got) is np.ndarray and got.dtype == dtype
    assert_allclose(got, (Z * W).sum(1), rtol=1e-5)


@mark.parity("L-240", "L-60")
def test_dtypes_promote_as_in_numpy() -> None:
    single: Any = Vi(z.astype(np.complex64))
    assert (single * y_j).sum(axis=1).dtype == np.complex128
    assert (single + w_j).dtype == "complex128"
    assert (single * Vj(y.astype(np.float32)) * 2.5 + 1j).sum(axis=1).dtype == np.complex64
    assert (x_i * np.array([1j, 2, 3], np.complex64)).dtype == "complex128"
    assert (Vi(x.astype(np.float16)) * 1j).sum(axis=1).dtype == np.complex64


# ── arithmetic ────────────────────────────────────────────────────────────────────────────────────

PAIRS: list[tuple[str, Any, np.ndarray, Any, np.ndarray]] = [
    ("complex, complex", z_i, Z, w_j, W),
    ("complex, real", z_i, Z, y_j, Y),
    ("real, complex", x_i, X, w_j, W),
    ("complex, one complex", z_i, Z, one_j, W[..., :1]),
    ("one complex, complex", one_i, Z[..., :1], w_j, W),
    ("complex, one real", z_i, Z, real_j, Y[..., :1]),
    ("one real, complex", real_i, X[..., :1], w_j, W),
    ("real, one complex", x_i, X, one_j, W[..., :1]),
    ("one complex, real", one_i, Z[..., :1], y_j, Y),
    ("one complex, one real", one_i, Z[..., :1], real_j, Y[..., :1]),
    ("one complex, one complex", one_i, Z[..., :1], one_j, W[..., :1]),
    ("complex, number", z_i, Z, LazyTensor(2 - 3j), np.array([2 - 3j])),
    ("complex, constant", z_i, Z, LazyTensor(2), np.array([2.0])),
]


@mark.parity("L-232", "L-234")
@mark.parametrize(("a", "A", "b", "B"), [case[1:] for case in PAIRS], ids=[case[0] for case in PAIRS])
def test_arithmetic_of_two(a: Any, A: np.ndarray, b: Any, B: np.ndarray) -> None:
    same(a + b, A + B)
    same(b + a, A + B)
    same(a - b, A - B)
    same(b - a, B - A)
    same(a * b, A * B)
    same(b * a, A * B)
    same(a / b, A / B)
    same(b / a, B / A)


OPERANDS: list[tuple[Any, Any]] = [
    (2, 2), (-1, -1), (2.5, 2.5), (1j, 1j), (2 - 3j, 2 - 3j), (np.float64(2.5), 2.5), (np.int64(2), 2), (np.complex128(1j), 1j),
    (np.complex64(1 - 1j), 1 - 1j), ([1.0, 2.0, 3.0], np.array([1, 2, 3])), ([1j, 2, 3 - 1j], np.array([1j, 2, 3 - 1j])),
    ([2 - 1j], 2 - 1j), (np.array([1.0, 2, 3]), np.array([1, 2, 3])), (np.array([1j, 2, 3]), np.array([1j, 2, 3])),
    (np.array(2 - 1j), 2 - 1j), (X, X), (Y, Y), (Z, Z), (W, W),
]  # fmt: skip


@mark.parity("L-233", "X-41")
@mark.parametrize(
    ("other", "dense"), OPERANDS, ids=[f"{type(o).__name__}-{n}" for n, (o, _) in enumerate(OPERANDS)]
)
def test_numbers_lists_and_arrays_are_lifted(other: Any, dense: Any) -> None:
    same(z_i + other, Z + dense)
    same(other + z_i, dense + Z)
    same(z_i - other, Z - dense)
    same(other - z_i, dense - Z)
    same(z_i * other, Z * dense)
    same(other * z_i, dense * Z)
    same(z_i / other, Z / dense)
    same(other / z_i, dense / Z)


@mark.parity("L-233", "X-44", "L-82")
def test_zero_and_one() -> None:
    for zero in (z_i * 0, 0 * z_i, 0.0 * z_i, 0 / z_i):
        assert type(zero) is ComplexLazyTensor and zero.shape == (5, 1, 3)
        assert_array_equal(zero.sum(axis=1), np.zeros((5, 3), complex))
    assert z_i + 0 is z_i and 0 + z_i is z_i and z_i * 1 is z_i and z_i - 0 is z_i
    same(sum([z_i, w_j]), Z + W)
    same(0 - z_i, -Z)
    with pytest.raises(FormulaError, match="division"):
        z_i / 0


@mark.parity("L-235")
def test_signs_joining_and_equality() -> None:
    same(-z_i, -Z)
    same(z_i.concat(w_j), np.concatenate(np.broadcast_arrays(Z, W), -1))
    a, b = np.round(z), np.round(w)
    parts = 1.0 * (a.real[:, None] == b.real) + 1j * (a.imag[:, None] == b.imag)
    same(Vi(a) == Vj(b), parts)
    same(Vi(a) != Vj(b), 1 + 1j - parts)


# ── functions ─────────────────────────────────────────────────────────────────────────────────────


@mark.parity("L-231")
def test_parts_magnitudes_and_angles_are_real() -> None:
    product, dense = z_i * w_j, Z * W
    same(product.real, dense.real, LazyTensor)
    same(product.imag, dense.imag, LazyTensor)
    same(abs(product), np.abs(dense), LazyTensor)
    same(product.abs(), np.abs(dense), LazyTensor)
    same(product.angle(), np.angle(dense), LazyTensor)
    same(product.conj(), dense.conj())
    same(product.exp(), np.exp(dense))
    same(product.sum(-1), dense.sum(-1, keepdims=True))
    same(product.sum(), dense.sum(-1, keepdims=True))
    same(product.sum(axis=2), dense.sum(-1, keepdims=True))


@mark.parity("L-231")
@mark.parametrize("name", ["real", "imag", "conj", "angle"])
def test_real_lazytensors_have_no_parts(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(x_i, name)


@mark.parity("L-236", "X-42")
@mark.parametrize("n", [-3, -2, -1, 0, 1, 2, 3, 4, 7])
def test_integer_powers(n: int) -> None:
    same(z_i**n, Z**n)
    same((z_i * w_j).power(n), (Z * W) ** n)
    same(z_i ** np.int64(n), Z**n)


@mark.parity("L-236", "X-42")
def test_reciprocals() -> None:
    same(1 / z_i, 1 / Z)
    same(1 / (z_i * w_j), 1 / (Z * W))
    same((2 - 1j) / z_i, (2 - 1j) / Z)


@mark.parity("L-236", "X-42")
def test_entries_are_complex_numbers() -> None:
    for k in range(3):
        same(z_i[k], Z[..., k : k + 1])
        same(z_i.elem(k), Z[..., k : k + 1])
        same((z_i * w_j)[:, :, k], (Z * W)[..., k : k + 1])
    same(z_i[1:3], Z[..., 1:3])
    same(z_i[:2], Z[..., :2])
    same(z_i[1:], Z[..., 1:])
    same(z_i.extract(1, 2), Z[..., 1:3])
    for wrong in (3, -1):
        with pytest.raises(FormulaError, match=str(wrong)):
            z_i[wrong]
    with pytest.raises(FormulaError, match=r"slice|entries"):
        z_i[1:5]


@mark.parity("L-237", "X-42")
def test_norms_are_real() -> None:
    product, dense = z_i * w_j, Z * W
    same(product.sqnorm2(), (np.abs(dense) ** 2).sum(-1, keepdims=True), LazyTensor)
    same(product.norm2(), np.linalg.norm(dense, axis=-1, keepdims=True), LazyTensor)


def right_or_refused(lazy: Callable[[], Any], *dense: np.ndarray) -> None:
    """A FormulaError, or one of these values: nothing that only looks like a result."""
    try:
        got = lazy().sum(axis=1)
    except FormulaError:
        return
    assert any(got.shape == d.sum(1).shape and np.allclose(got, d.sum(1)) for d in dense)


@mark.parity("L-237", "X-42")
def test_what_may_be_missing_is_never_wrong() -> None:
    bilinear, hermitian = (Z * W).sum(-1, keepdims=True), (Z.conj() * W).sum(-1, keepdims=True)
    for product in (lambda: z_i | w_j, lambda: w_j | z_i):
        right_or_refused(product, bilinear, hermitian, hermitian.conj())
    right_or_refused(lambda: x_i | w_j, (X * W).sum(-1, keepdims=True))
    right_or_refused(lambda: z_i | y_j, (Z * Y).sum(-1, keepdims=True), (Z.conj() * Y).sum(-1, keepdims=True))
    right_or_refused(lambda: (z_i * w_j).normalize(), Z * W / np.linalg.norm(Z * W, axis=-1, keepdims=True))
    right_or_refused(lambda: z_i.sqdist(w_j), (np.abs(Z - W) ** 2).sum(-1, keepdims=True))
    right_or_refused(lambda: z_i.norm(-1) * w_j[0], np.linalg.norm(Z, axis=-1, keepdims=True) * W[..., :1])
    right_or_refused(lambda: x_i.concat(w_j), np.concatenate(np.broadcast_arrays(X, W), -1))
    right_or_refused(lambda: z_i.concat(y_j), np.concatenate(np.broadcast_arrays(Z, Y), -1))
    right_or_refused(
        lambda: LazyTensor.concatenate((x_i, w_j)), np.concatenate(np.broadcast_arrays(X, W), -1)
    )
    right_or_refused(lambda: (z_i * w_j).square(), (Z * W) ** 2)
    right_or_refused(lambda: (z_i * w_j).tensorprod(w_j), np.einsum("ijk,ijl->ijkl", Z * W, np.broadcast_to(W, (5, 7, 3))).reshape(5, 7, 9))  # fmt: skip


@mark.parity("X-42")
@mark.parametrize(
    "name",
    [
        "sqdist",
        "atan2",
        "weightedsqnorm",
        "mod",
        "tensorprod",
        "matvecmult",
        "vecmatmult",
        "difference_matrix",
    ],
)
def test_methods_of_reals_do_not_read_pairs_as_vectors(name: str) -> None:
    # 1, 2 and 6 reals beside the 2 and 6 reals of 1 and 3 complex numbers: no dimension gives it away.
    for mine in (x_i[0], x_i[:2], x_i.concat(x_i)):
        for other in (one_j, w_j):
            with pytest.raises(FormulaError, match="complex"):
                getattr(mine, name)(other)


@mark.parity("X-42")
@mark.parametrize(
    "use",
    [
        lambda a: a < one_j, lambda a: a >= one_j, lambda a: one_j > a, lambda a: a.clamp(one_j, 1.0), lambda a: a.ifelse(one_j, 0.0),
        lambda a: a.ifelse(1.0, 1j), lambda a: a.sqdist(1j), lambda a: a**1j, lambda a: a**one_j, lambda a: a.weightedsqdist(one_j, 1.0),
    ],
)  # fmt: skip
def test_operators_of_reals_do_not_read_pairs_as_vectors(use: Callable[[Any], Any]) -> None:
    with pytest.raises(FormulaError):
        use(x_i[:2])


UNCLEAR = ["sqrt", "rsqrt", "log", "xlogx", "sin", "cos", "asin", "acos", "atan", "sinxdivx", "sinc", "sign", "step", "relu", "round"]  # fmt: skip


@mark.parity("L-236", "X-42")
@mark.parametrize("name", UNCLEAR)
def test_functions_of_reals_are_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(FormulaError, match=r"complex.*\.real.*\.abs") as caught:
        getattr(z_i, name)()
    assert name in str(caught.value)


@mark.parity("L-236", "X-42", "L-239")
@mark.parametrize(
    "use",
    [
        lambda: z_i.min(axis=1), lambda: z_i.max(-1), lambda: z_i.argmin(axis=0), lambda: z_i.argmax(), lambda: one_i.min_argmin(axis=1),
        lambda: one_i.Kmin(2, axis=1), lambda: one_i.argKmin(2, axis=1), lambda: one_i.logsumexp(axis=1), lambda: one_i.reduction("Min", axis=1),
        lambda: one_i.sumsoftmaxweight(w_j, axis=1), lambda: z_i < w_j, lambda: z_i >= 1, lambda: x_i < z_i, lambda: z_i**0.5,
        lambda: z_i**1.5, lambda: z_i**w_j, lambda: z_i.clamp(0, 1), lambda: z_i.atan2(1.0), lambda: z_i.ifelse(1.0, 2.0), lambda: z_i.mod(2),
        lambda: z_i.one_hot(3), lambda: z_i.weightedsqnorm(2.0), lambda: z_i.logsumexp_reduction(axis=1),
    ],
)  # fmt: skip
def test_what_needs_an_order_or_a_branch_is_refused(use: Callable[[], Any]) -> None:
    with pytest.raises(FormulaError, match=r"complex|order"):
        use()


@mark.parity("L-238")
@mark.parametrize(
    "use",
    [
        lambda: z_i.real2complex(), lambda: z_i.imag2complex(), lambda: z_i.exp1j(),
        lambda: z_i.keops_tensordot(w_j, (3,), (3,), (0,), (0,)), lambda: x_i.keops_tensordot(w_j, (3,), (3,), (0,), (0,)),
        lambda: x_i.concat(x_i).keops_tensordot(w_j, (6,), (6,), (0,), (0,)), lambda: z_i.keops_kron(w_j, (3,), (3,)),
        lambda: x_i.keops_kron(w_j, (3,), (6,)),
    ],
)  # fmt: skip
def test_conversions_and_tensors_of_complex_numbers_are_refused(use: Callable[[], Any]) -> None:
    with pytest.raises(FormulaError, match="complex"):
        use()


# ── reductions ────────────────────────────────────────────────────────────────────────────────────


@mark.parity("L-239")
def test_sums_over_both_axes_and_of_the_transpose() -> None:
    lazy, dense = (z_i * w_j).exp() + x_i, np.exp(Z * W) + X
    assert_allclose(lazy.sum(axis=1), dense.sum(1))
    assert_allclose(lazy.sum(axis=0), dense.sum(0))
    assert_allclose(lazy.sum_reduction(dim=-2), dense.sum(1))
    assert_allclose(lazy.reduction("Sum", axis=0), dense.sum(0))
    assert_allclose(lazy.sum(axis=1, call=False)(), dense.sum(1))
    assert_allclose(lazy.T.sum(axis=1), dense.sum(0))
    assert_allclose(lazy.t().sum(axis=0), dense.sum(1))
    assert lazy.T.shape == (7, 5, 3)


@mark.parity("L-239", "L-63")
def test_batches() -> None:
    a, b = points(2, 1, 5, 1, 3), points(4, 1, 7, 3)
    lazy: Any = LazyTensor(a) * LazyTensor(b).conj() + Pm(1j)
    dense = a * b.conj() + 1j
    assert (lazy.shape, lazy.batchdims) == ((2, 4, 5, 7, 3), (2, 4))
    assert_allclose(lazy.sum(axis=3), dense.sum(3))
    assert_allclose(lazy.sum(axis=2), dense.sum(2))
    assert_allclose(lazy.T.sum(axis=3), dense.sum(2))
    assert_allclose(abs(lazy).max(axis=3), np.abs(dense).max(3))
    p = points(2, 1, 1, 3)
    assert_allclose((LazyTensor(p) * w_j).sum(axis=2), (p * w).sum(2))


@mark.parity("L-239")
@mark.parametrize("axis", [0, 1])
def test_softmax_of_complex_weights(axis: int) -> None:
    f, F = (x_i | y_j), (X * Y).sum(-1)
    weights = np.exp(F) / np.exp(F).sum(axis, keepdims=True)
    got = f.sumsoftmaxweight(z_i * w_j, axis=axis)
    assert got.dtype == np.complex128
    assert_allclose(got, (weights[..., None] * Z * W).sum(axis))
    assert_allclose(f.sumsoftmaxweight(one_j, axis=1)[:, 0], (np.exp(F) @ w[:, 0]) / np.exp(F).sum(1))
    with pytest.raises(FormulaError):
        f.reduction("Sum", other=w_j, axis=axis)


@mark.parity("L-239", "X-42")
def test_a_complex_weight_of_a_logarithm_is_never_wrong() -> None:
    f, F = (x_i | y_j), (X * Y).sum(-1)
    want = np.log(np.exp(F) @ w)
    try:
        got = f.logsumexp(axis=1, weight=w_j)
    except FormulaError:
        return
    assert_allclose(got, want)


def test_magnitudes_reduce_as_reals_do() -> None:
    distance = abs(one_i - one_j)
    dense = np.abs(Z - W)[..., 0]
    assert_array_equal(distance.argmin(axis=1)[:, 0], dense.argmin(1))
    assert_allclose(distance.logsumexp(axis=0)[:, 0], np.log(np.exp(dense).sum(0)))


@mark.parity("L-21", "L-187")
@mark.parametrize("dtype", [np.complex64, np.complex128])
def test_symbolic_complex_variables(dtype: type) -> None:
    a: Any = LazyTensor((0, 6, 0), is_complex=True)
    assert (type(a), a.shape, a._shape, a.dtype) == (ComplexLazyTensor, (1, 1, 3), (1, 1, 6), None)
    got = (a * Vj(w.astype(dtype))).sum(axis=1)(z.astype(dtype))
    assert got.dtype == dtype
    assert_allclose(got, (Z * W).sum(1), rtol=1e-5)
    b: Any = LazyTensor((1, 6, 1), is_complex=True)
    both = (a.conj() * b + Pm(2, 1)).sum(axis=0)
    assert_allclose(both(z.astype(dtype), w.astype(dtype), 0.5), (Z.conj() * W + 0.5).sum(0), rtol=1e-5)
    with pytest.raises(FarsumError):
        LazyTensor((0, 5, 0), is_complex=True)


# ── as a matrix ───────────────────────────────────────────────────────────────────────────────────


@mark.parametrize(
    "right", [points(7), points(7, 2), rng.random(7), points(2, 7, 2)], ids=lambda a: str(a.shape)
)
def test_products_with_a_complex_matrix(right: np.ndarray) -> None:
    K, dense = (one_i * one_j).exp(), np.exp(Z * W)[..., 0]
    assert_allclose(K @ right, dense @ right)
    assert_allclose(K.matvec(right), dense @ right)
    with pytest.raises(ShapeError, match="scalar"):
        (z_i * w_j) @ right


@mark.parity("L-196")
def test_scipy_takes_a_complex_matrix() -> None:
    K, dense = (one_i * one_j).exp(), np.exp(Z * W)[..., 0]
    operator, v, u = aslinearoperator(K), points(7), points(5)
    assert (operator.shape, operator.dtype) == ((5, 7), np.dtype(complex))
    assert_allclose(operator @ v, dense @ v)
    assert_allclose(operator.H @ u, dense.conj().T @ u)


def test_a_fourier_sum() -> None:
    t, f, c = rng.random((6, 1)), np.arange(4.0)[:, None], points(4, 1)
    tau: Any = 2 * math.pi
    lazy = (-tau * Vi(t) * Vj(f)).exp1j() * Vj(c)
    assert_allclose(lazy.sum(axis=1), np.exp(-2j * np.pi * t @ f.T) @ c)
