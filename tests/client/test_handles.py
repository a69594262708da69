"""Handles in this process: the same object as with a server, and usable wherever an array is."""

from __future__ import annotations

import gc
import pickle
import weakref
from typing import Any

import numpy as np
import pytest

import farsum
from farsum.handle import Handle
from farsum.numpy import Genred, LazyTensor, Pm, Vi, Vj
from farsum_kernels.errors import DtypeError, HandleGone, OperandError, ShapeError

RNG = np.random.default_rng(0)
X, Y, B = (RNG.random(shape).astype("float32") for shape in ((40, 3), (50, 3), (50, 1)))
GAUSSIAN = Genred("Exp(-g*SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "g = Pm(1)"], axis=1)
G = np.array([2.0], "float32")


def kernel(x: Any, y: Any) -> Any:
    return (-Vi(x).sqdist(Vj(y))).exp()


@pytest.fixture
def handles() -> tuple[Handle, Handle, Handle]:
    return farsum.put(X), farsum.put(Y), farsum.put(B)


Handles = tuple[Handle, Handle, Handle]


def test_wherever_arrays_are(handles: Handles) -> None:
    x, y, b = handles
    want = kernel(X, Y) @ B
    for found in (
        kernel(x, y) @ b,
        kernel(x, Y) @ b,
        (kernel(x, y) * Vj(b)).sum(axis=1),
        (-((LazyTensor(x.reshape(40, 1, 3)) - LazyTensor(y.reshape(1, 50, 3))) ** 2).sum(-1)).exp() @ b,
        (-Vi(0, 3).sqdist(Vj(1, 3))).exp().__mul__(Vj(2, 1)).sum(axis=1)(x, y, b),
    ):
        np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(GAUSSIAN(x, y, b, farsum.put(G)), GAUSSIAN(X, Y, B, G))
    scaled = (-Pm(farsum.put(G)) * Vi(x).sqdist(Vj(y))).exp() @ b
    np.testing.assert_array_equal(scaled, (-Pm(G) * Vi(X).sqdist(Vj(Y))).exp() @ B)
    np.testing.assert_array_equal(kernel(x, y) @ b.reshape(50), want[:, 0])


def test_matrix_views_of_handles(handles: Handles) -> None:
    x, y, _ = handles
    for ask in (
        lambda k: k.dense(),
        lambda k: k[[3, 1]].dense(),
        lambda k: k.T.sum(axis=0),
        lambda k: k[2, 5],
    ):
        np.testing.assert_array_equal(ask(kernel(x, y)), ask(kernel(X, Y)))
    np.testing.assert_array_equal(kernel(x, y).sum(axis=1, radius=0.5), kernel(X, Y).sum(axis=1, radius=0.5))
    assert kernel(x, y).explain().array_bytes == X.nbytes + Y.nbytes


def test_gradient(handles: Handles) -> None:
    x, y, _ = handles
    e = np.ones((40, 1), "float32")
    found = kernel(x, y).sum(axis=1, call=False).grad(Vi(x), e)
    np.testing.assert_array_equal(found, kernel(X, Y).sum(axis=1, call=False).grad(Vi(X), e))


def test_dtypes_meet_as_those_of_arrays_do(handles: Handles) -> None:
    x, y, _ = handles
    wide = B.astype("float64")
    np.testing.assert_array_equal(kernel(x, y) @ farsum.put(wide), kernel(X, Y) @ wide)
    np.testing.assert_array_equal(
        kernel(x, y).sum(axis=1, use_double_acc=True), kernel(X, Y).sum(axis=1, use_double_acc=True)
    )
    assert x.astype("float64").content is x.astype("float64").content, "converted once"


def test_complex_numbers() -> None:
    z = (RNG.random((50, 2)) + 1j * RNG.random((50, 2))).astype("complex64")
    handle = farsum.put(z)
    assert (handle.dtype, handle.shape) == (np.complex64, (50, 2))
    want = kernel(X, Y) @ z
    np.testing.assert_array_equal(kernel(X, Y) @ handle, want)
    kept = kernel(X, Y).matvec(handle, keep=True)
    assert (kept.dtype, kept.shape) == (want.dtype, want.shape)
    np.testing.assert_array_equal(farsum.get(kept), want)


def test_kept_results(handles: Handles) -> None:
    x, y, b = handles
    kept = kernel(x, y).matvec(b, keep=True)
    assert isinstance(kept, Handle) and kept.shape == (40, 1) and kept.dtype == np.float32
    np.testing.assert_array_equal(
        farsum.get(kernel(x, y).T.matvec(kept, keep=True)), kernel(X, Y).T @ (kernel(X, Y) @ B)
    )
    assert kernel(x, y).matvec(b.reshape(50), keep=True).shape == (40,)
    values, indices = Vi(x).sqdist(Vj(y)).Kmin_argKmin(3, axis=1, keep=True)
    assert indices.dtype == np.int64 and values.shape == indices.shape == (40, 3)
    masked = kernel(x, y).sum(axis=1, mask="causal", keep=True)
    np.testing.assert_array_equal(farsum.get(masked), kernel(X, Y).sum(axis=1, mask="causal"))
    np.testing.assert_array_equal(farsum.get(GAUSSIAN(x, y, b, G, keep=True)), GAUSSIAN(X, Y, B, G))
    with pytest.raises(OperandError, match="give one of them"):
        GAUSSIAN(x, y, b, G, keep=True, out=np.zeros((40, 1), "float32"))
    with pytest.raises(OperandError, match="keep belong"):
        kernel(x, y).sum(axis=1, call=False, keep=True)


def test_a_handle_does_not_change() -> None:
    mine = X.copy()
    handle = farsum.put(mine)
    mine[:] = 0
    np.testing.assert_array_equal(farsum.get(handle), X)
    got = farsum.get(handle)
    got[:] = 0
    np.testing.assert_array_equal(np.asarray(handle), X)
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(handle)[0] = 1
    with pytest.raises(AttributeError, match="immutable"):
        handle.shape = (3, 40)


def test_it_looks_like_an_array() -> None:
    handle = farsum.put(X[::-1])
    assert (handle.ndim, handle.size, handle.nbytes, len(handle)) == (2, 120, 480, 40)
    np.testing.assert_array_equal(handle[3:5], X[::-1][3:5])
    np.testing.assert_array_equal(handle.reshape(3, -1)[0], X[::-1].reshape(3, -1)[0])
    assert "farsum.get" in repr(handle) and "480 bytes" in repr(handle) and "in this process" in repr(handle)
    again = pickle.loads(pickle.dumps(handle))
    np.testing.assert_array_equal(farsum.get(again), X[::-1])
    assert farsum.get(farsum.put(np.array(3.0))).shape == ()
    with pytest.raises(ShapeError, match=r"\(40, 3\)"):
        handle.reshape(7, -1)
    with pytest.raises(TypeError, match="truth"):
        bool(handle)
    with pytest.raises(TypeError):
        np.ones((40, 3)) + handle


def test_dropped(handles: Handles) -> None:
    x, y, b = handles
    view = x.reshape(3, 40)
    farsum.drop(x)
    farsum.drop(x)
    for use in (
        lambda: kernel(x, y) @ b,
        lambda: farsum.get(x),
        lambda: farsum.put(view),
        lambda: np.asarray(x),
    ):
        with pytest.raises(HandleGone, match="was dropped"):
            use()
    assert "dropped" in repr(x)
    np.testing.assert_array_equal(farsum.get(farsum.put(X)), X)
    with pytest.raises(KeyError):
        farsum.get(x)


def test_out_of_scope_is_free() -> None:
    content = weakref.ref(farsum.put(X).content)
    gc.collect()
    assert content() is None


@pytest.mark.parametrize("wrong", [[1.0, 2.0], 3.0, "x", None])
def test_what_cannot_be_put(wrong: Any) -> None:
    with pytest.raises(OperandError, match=r"farsum\.put takes"):
        farsum.put(wrong)
    with pytest.raises(OperandError, match=r"farsum\.get takes"):
        farsum.get(wrong)
    with pytest.raises(OperandError, match=r"farsum\.drop takes"):
        farsum.drop(wrong)


@pytest.mark.parametrize("dtype", ["int32", "bool", "object", "U3"])
def test_dtypes_that_do_not_travel(dtype: str) -> None:
    with pytest.raises(DtypeError, match="convert it"):
        farsum.put(np.zeros(3, dtype))


def test_wrong_shapes_are_named_as_those_of_arrays(handles: Handles) -> None:
    x, _, b = handles
    with pytest.raises(ShapeError, match="50 rows"):
        GAUSSIAN(x, x, b, G)
    with pytest.raises(ShapeError, match="2-D array of shape"):
        LazyTensor(x)
