"""Every method that writes a formula, on dense NumPy values; and what each refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from farsum.numpy import LazyTensor, Pm, Vi, Vj
from farsum_kernels.errors import AxisError, DimensionError, FormulaError

mark = pytest.mark
rng = np.random.default_rng(0)
x, y = rng.uniform(0.2, 0.9, (7, 3)), rng.uniform(0.2, 0.9, (9, 3))
m = rng.uniform(0.2, 0.9, (9, 6))
# Any: what the type checker refuses is tried here too.
x_i: Any = Vi(x)
y_j: Any = Vj(y)
m_j: Any = Vj(m)
s_i: Any = Vi(x[:, :1].copy())
joined: Any = LazyTensor.cat
X, Y, M, S = x[:, None], y[None], m[None], x[:, None, :1]


def _same(lazy: Any, dense: np.ndarray) -> None:
    """The sums over j agree."""
    got = (lazy + 0 * Vj(y[:, :1].copy()) + 0 * s_i).sum(axis=1)
    want = np.broadcast_to(dense, (7, 9, dense.shape[-1])).sum(1)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


# fmt: off
UNARY: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [
    ("exp", np.exp), ("log", np.log), ("xlogx", lambda a: a * np.log(a)), ("cos", np.cos), ("sin", np.sin),
    ("sinxdivx", lambda a: np.sin(a) / a), ("asin", np.arcsin), ("acos", np.arccos), ("atan", np.arctan),
    ("sqrt", np.sqrt), ("rsqrt", lambda a: 1 / np.sqrt(a)), ("square", np.square), ("sign", np.sign),
    ("step", lambda a: (a >= 0) * 1.0), ("relu", lambda a: np.maximum(a, 0)), ("abs", np.abs),
]
# fmt: on


@mark.parity("L-100")
@mark.parametrize(("name", "dense"), UNARY, ids=[n for n, _ in UNARY])
def test_component_by_component(name: str, dense: Callable[[np.ndarray], np.ndarray]) -> None:
    shift = 0.0 if name in ("log", "xlogx", "sqrt", "rsqrt", "sinxdivx") else 0.5
    _same(getattr(x_i - shift, name)(), dense(X - shift))


@mark.parity("L-101", "L-102", "L-103", "L-104", "L-105", "L-106")
def test_with_arguments() -> None:
    _same(x_i.sinc(), np.sinc(X))
    _same(x_i.atan2(y_j), np.arctan2(X, Y))
    _same((5 * x_i).clamp(1, 3), np.clip(5 * X, 1, 3))
    _same(x_i.clamp(0.3, y_j), np.where(X < 0.3, 0.3, np.where(X > Y, Y, X)))
    _same((x_i - y_j).ifelse(x_i, 2), np.where(X >= Y, X, 2.0))
    _same((9 * x_i).mod(2, 1), (9 * X - 1) % 2 + 1)
    _same((9 * x_i).round(1), np.floor(90 * X + 0.5) / 10)


@mark.parity("L-110", "L-111", "L-112", "L-113", "L-114", "L-115")
def test_norms_and_distances() -> None:
    square = (X**2).sum(-1, keepdims=True)
    _same(x_i.sqnorm2(), square)
    _same(x_i.norm2(), np.sqrt(square))
    _same(x_i.norm(-1), np.sqrt(square))
    _same(x_i.norm(2), np.sqrt(square))
    _same(x_i.normalize(), X / np.sqrt(square))
    d = X - Y
    _same(x_i.sqdist(y_j), (d**2).sum(-1, keepdims=True))
    _same(x_i.weightedsqnorm(y_j), (Y * X**2).sum(-1, keepdims=True))
    _same(x_i.weightedsqnorm(s_i), S * square)
    matrix = rng.random(9)
    full = np.einsum("ijk,kl,ijl->ij", d, matrix.reshape(3, 3), d)[..., None]
    _same(x_i.weightedsqdist(y_j, matrix), full)


@mark.parity("L-116", "L-117", "L-118", "L-119", "L-120")
def test_entries() -> None:
    _same(m_j.elem(4), M[..., 4:5])
    _same(m_j.extract(1, 3), M[..., 1:4])
    for lazy, dense in [(m_j[2], M[..., 2:3]), (m_j[1:4], M[..., 1:4]), (m_j[:2], M[..., :2]), (m_j[3:], M[..., 3:]),
                        (m_j[:], M), (m_j[:, :, 5], M[..., 5:6]), (m_j[:, :, 1:3], M[..., 1:3])]:  # fmt: skip
        _same(lazy, dense)
    _same((4 * s_i).one_hot(5), (np.floor(4 * S + 0.5) == np.arange(5)) * 1.0)


@mark.parity("L-122", "L-123", "L-124")
def test_joining() -> None:
    both = np.concatenate(np.broadcast_arrays(X, Y), -1)
    _same(x_i.concat(y_j), both)
    _same(LazyTensor.concatenate((x_i, y_j)), both)
    _same(LazyTensor.cat((x_i, y_j), dim=2), both)
    assert LazyTensor.concatenate((x_i,)) is x_i


@mark.parity("L-125", "L-126", "L-127", "L-128", "L-129")
def test_matrices_and_tensors() -> None:
    a = m.reshape(9, 2, 3)
    _same(m_j.matvecmult(x_i), np.einsum("jab,ib->ija", a, x))
    _same(x_i[:2].vecmatmult(m_j), np.einsum("ia,jab->ijb", x[:, :2], a))
    _same(x_i.tensorprod(y_j), np.einsum("ia,jb->ijab", x, y).reshape(7, 9, 9))
    _same(m_j.keops_tensordot(x_i, (2, 3), (3,), (1,), (0,)), np.einsum("jab,ib->ija", a, x))
    swapped = np.einsum("jab,ic->ijcab", a, x).reshape(7, 9, 18)
    _same(m_j.keops_tensordot(x_i, (2, 3), (3,), (), (), (1, 2, 0)), swapped)
    kron = np.array([[np.kron(q.reshape(2, 3), p.reshape(1, 3)).ravel() for q in m] for p in x])
    _same(m_j.keops_kron(x_i, (2, 3), (1, 3)), kron)


@mark.parity("L-121", "L-130")
def test_splines_and_warping() -> None:
    knots = Pm(np.arange(5.0))
    t = 3 * S - 0.2
    hats = np.maximum(0, 1 - np.abs(t - np.array([1.0, 2.0, 3.0])))
    _same(knots.bspline(3 * s_i - 0.2, 1), hats)
    _same(s_i.softdtw_sqdist(y_j[0], 0.1), (S - Y[..., :1]) ** 2)


@mark.parity("L-87", "L-88")
def test_comparisons_are_numbers() -> None:
    a, b = Vi(np.round(4 * x)), Vj(np.round(4 * y))
    da, db = np.round(4 * X), np.round(4 * Y)
    for lazy, dense in [(a < b, da < db), (a <= b, da <= db), (a > b, da > db), (a >= b, da >= db), (a == b, da == db),
                        (a != b, da != db), (a > 2, da > 2), (a == 2, da == 2), (a <= 2, da <= 2)]:  # fmt: skip
        _same(lazy, np.broadcast_to(dense * 1.0, (7, 9, 3)))


@mark.parity("L-84")
def test_scalar_product_needs_equal_dimensions() -> None:
    _same(x_i | y_j, (X * Y).sum(-1, keepdims=True))
    _same(X | y_j, (X * Y).sum(-1, keepdims=True))
    with pytest.raises(DimensionError, match="same dimension"):
        x_i | s_i


@mark.parity("L-131", "L-150", "X-48")
def test_reductions_along_the_vector_are_lazy() -> None:
    _same(m_j.sum(), M.sum(-1, keepdims=True))
    _same(m_j.sum(-1, keepdim=True), M.sum(-1, keepdims=True))
    _same(m_j.min(axis=2), M.min(-1, keepdims=True))
    _same(m_j.max(), M.max(-1, keepdims=True))
    _same(m_j.argmin(dim=-1), M.argmin(-1)[..., None] * 1.0)
    _same(m_j.argmax(), M.argmax(-1)[..., None] * 1.0)
    with pytest.raises(AxisError, match="needs an axis"):
        x_i.sqdist(y_j).max()
    with pytest.raises(TypeError, match=r"takes no option .backendd"):
        m_j.sum(-1, backendd="CPU")


@mark.parity("L-140", "L-141", "L-142", "L-143", "L-144", "L-145")
def test_calculus() -> None:
    d = X - Y
    gaussian = (-x_i.sqdist(y_j)).exp()
    k = np.exp(-(d**2).sum(-1, keepdims=True))
    _same(gaussian.grad(x_i, 1), -2 * d * k)
    _same(gaussian.grad(Vi(x), s_i), -2 * d * k * S)  # the same array is the same variable
    _same(gaussian.diff(x_i, y_j), (-2 * d * k * Y).sum(-1, keepdims=True))
    _same((x_i * x_i).grad_matrix(x_i), (2 * X[..., None] * np.eye(3)).reshape(7, 1, 9))
    _same((x_i * x_i * y_j).divergence(x_i), (2 * X * Y).sum(-1, keepdims=True))
    _same(gaussian.laplacian(x_i), (4 * (d**2).sum(-1, keepdims=True) - 6) * k)
    _same((y_j * x_i).trace_operator(x_i), Y.sum(-1, keepdims=True))
    _same(gaussian.factorize(x_i).auto_factorize(), k)


@mark.parity("L-152", "L-153", "R-09", "R-11")
def test_weights() -> None:
    f = (x_i - y_j).sqnorm2()
    dense = ((X - Y) ** 2).sum(-1)
    p = np.exp(dense)
    np.testing.assert_allclose(f.logsumexp(axis=1, weight=Vj(m)), np.log(p @ m))
    np.testing.assert_allclose(f.sumsoftmaxweight(Vj(m), axis=1), p @ m / p.sum(1)[:, None])
    np.testing.assert_allclose(f.sumsoftmaxweight(x_i, axis=0), p.T @ x / p.sum(0)[:, None])


@mark.parity("L-173", "L-210", "L-211")
def test_block_sparse_reductions() -> None:
    ranges = [[[0, 4], [4, 7]], [1, 2], [[0, 5], [2, 9]], [[0, 9]], [1], [[0, 7]]]
    d = ((X - Y) ** 2).sum(-1)
    got = x_i.sqdist(y_j).sum(axis=1, ranges=[np.array(r) for r in ranges])
    np.testing.assert_allclose(got[:, 0], np.r_[d[:4, :5].sum(1), d[4:, 2:].sum(1)])


ERRORS = [
    pytest.param(lambda: m_j[7], DimensionError, "entry 7", marks=mark.parity("E-13", "L-116")),
    pytest.param(lambda: m_j[-1], DimensionError, "entry -1", marks=mark.parity("E-13", "L-118")),
    pytest.param(lambda: m_j[1:9], DimensionError, "no slice of a vector axis of 6", marks=mark.parity("E-13", "L-117")),
    pytest.param(lambda: m_j[::2], FormulaError, "step 1", marks=mark.parity("E-13", "L-118")),
    pytest.param(lambda: m_j[0, 1, 2, 3], AxisError, r"X\[:, :, k\]", marks=mark.parity("E-13", "L-119")),
    pytest.param(lambda: x_i.one_hot(3), DimensionError, "OneHot", marks=mark.parity("E-14", "L-120")),
    pytest.param(lambda: s_i.one_hot(2.0), FormulaError, "int", marks=mark.parity("E-14")),
    pytest.param(lambda: Pm(np.arange(5.0)).bspline(x_i, 1), DimensionError, "scalar", marks=mark.parity("E-15")),
    pytest.param(lambda: x_i.weightedsqnorm(y_j[:2]), DimensionError, "1, 3 or 9", marks=mark.parity("E-16")),
    pytest.param(lambda: x_i.concat(y), FormulaError, "takes a LazyTensor, not ndarray", marks=mark.parity("E-17")),
    pytest.param(lambda: LazyTensor.concatenate(()), FormulaError, "at least one", marks=mark.parity("E-18")),
    pytest.param(lambda: LazyTensor.cat((x_i, y_j), 0), AxisError, "vector axis", marks=mark.parity("E-18", "L-124")),
    pytest.param(lambda: joined((x, y_j), -1), FormulaError, "takes a LazyTensor", marks=mark.parity("X-55")),
    pytest.param(lambda: m_j.matvecmult(y_j[:2].concat(y_j[:2])), DimensionError, "divide", marks=mark.parity("E-34", "X-69")),
    pytest.param(lambda: x_i.grad(y_j, 1), FormulaError, "does not occur", marks=mark.parity("E-35")),
    pytest.param(lambda: (x_i + y_j).grad(x_i, s_i), DimensionError, "Grad", marks=mark.parity("E-08")),
    pytest.param(lambda: (x_i | y_j).logsumexp(axis=1, weight=m), FormulaError, "LazyTensor", marks=mark.parity("E-25")),
    pytest.param(lambda: x_i.sum(axis=1, ranges=[np.zeros(1, int)] * 3), ValueError, "holds 6 arrays", marks=mark.parity("X-11")),
    pytest.param(lambda: 2**x_i, TypeError, "unsupported operand", marks=mark.parity("E-12")),
    pytest.param(lambda: x_i % 2, TypeError, "unsupported operand", marks=mark.parity("E-12", "L-89")),
    pytest.param(lambda: [1.0] @ x_i, TypeError, "unsupported operand", marks=mark.parity("E-12", "L-192")),
]  # fmt: skip


@mark.parametrize(("wrong", "error", "words"), ERRORS)
def test_mistakes_are_explained(wrong: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        wrong()
