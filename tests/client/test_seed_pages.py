"""What the documentation of the original promises, where page and behaviour differ; and its GPU words on a CPU."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from farsum.numpy import ComplexLazyTensor, Genred, KernelSolve, LazyTensor, Vi, Vj
from farsum_kernels.errors import DeviceMissing, FormulaError

mark = pytest.mark
rng = np.random.default_rng(0)
x, y = rng.random((5, 3)), rng.random((7, 3))
x_i: Any = Vi(x)
y_j: Any = Vj(y)
D2 = ((x[:, None] - y) ** 2).sum(-1)

# fmt: off
ON_THE_PAGE = """
    abs acos argKmin argKmin_reduction argmax argmax_reduction argmin argmin_reduction asin atan atan2 bspline cat clamp
    concat concatenate cos dim elem exp extract grad ifelse keops_kron keops_tensordot Kmin Kmin_argKmin
    Kmin_argKmin_reduction Kmin_reduction log logsumexp logsumexp_reduction matvecmult max max_argmax
    max_argmax_reduction max_reduction min min_argmin min_argmin_reduction min_reduction mod norm norm2 normalize
    one_hot power reduction relu round rsqrt sign sin sinc sinxdivx solve sqdist sqnorm2 sqrt square step sum
    sum_reduction sumsoftmaxweight sumsoftmaxweight_reduction t tensorprod vecmatmult weightedsqdist weightedsqnorm
    xlogx real2complex imag2complex exp1j
"""
BEYOND_IT = """
    __lt__ __le__ __gt__ __ge__ __eq__ __ne__ diff factorize auto_factorize grad_matrix divergence laplacian
    trace_operator softdtw_sqdist difference_matrix
"""
# fmt: on


@mark.parity("Z-04")
@pytest.mark.parametrize("name", ON_THE_PAGE.split())
def test_methods_of_the_page(name: str) -> None:
    assert callable(getattr(LazyTensor, name))
    assert (inspect.getdoc(getattr(LazyTensor, name)) or "").strip(), "it says what it does"


@mark.parity("Z-03")
@pytest.mark.parametrize("name", BEYOND_IT.split())
def test_methods_beyond_the_page(name: str) -> None:
    assert name in dir(LazyTensor) and callable(getattr(x_i, name))


@mark.parity("Z-04", "L-231")
def test_methods_of_complex_tensors() -> None:
    for name in ("real", "imag", "angle", "conj", "abs", "exp", "sum"):
        assert hasattr(ComplexLazyTensor, name)
        assert name in ("abs", "exp", "sum") or not hasattr(LazyTensor, name)


@mark.parity("Z-05", "G-51")
def test_defaults_that_the_page_lost() -> None:
    def default(function: Any, name: str) -> Any:
        return inspect.signature(function).parameters[name].default

    assert default(Genred.__call__, "device_id") == -1
    assert default(LazyTensor.sum, "axis") == -1
    assert (default(KernelSolve.__call__, "alpha"), default(KernelSolve.__call__, "eps")) == (1e-10, 1e-6)
    assert x_i.sum().shape == (5, 1) and (x_i - y_j).max().shape == (5, 7)


@mark.parity("Z-11")
def test_slices_may_end_before_the_intervals_do() -> None:
    ranges = [[[0, 2], [2, 5]], [1, 2], [[0, 3], [3, 7], [0, 7]], [[0, 7]], [0], [[0, 5]]]
    got = x_i.sqdist(y_j).sum(axis=1, ranges=[np.array(r) for r in ranges])[:, 0]
    np.testing.assert_allclose(got, np.r_[D2[:2, :3].sum(1), D2[2:, 3:].sum(1)])


@mark.parity("Z-12", "L-238")
def test_no_tensordot_of_complex_tensors() -> None:
    z_i: Any = Vi(x + 1j)
    with pytest.raises(FormulaError, match="keops_tensordot is not written for complex"):
        z_i.keops_tensordot(z_i, (3,), (3,), (0,), (0,))
    with pytest.raises(FormulaError, match="complex"):
        x_i.keops_tensordot(z_i, (3,), (3,), (0,), (0,))


@mark.parity("G-90", "G-91", "G-92")
@pytest.mark.parametrize(
    "word", ["GPU", *(f"GPU_{d}D{where}" for d in (1, 2) for where in ("", "_device", "_host"))]
)
def test_gpu_words_are_known_and_refused_without_a_gpu(word: str) -> None:
    calls = [
        lambda: x_i.sqdist(y_j).sum(axis=1, backend=word),
        lambda: Genred("SqDist(x,y)", ["x = Vi(3)", "y = Vj(3)"], axis=1)(x, y, backend=word),
        lambda: x_i.sqdist(y_j).sum(axis=1, call=False)(backend=word),
    ]
    for call in calls:
        with pytest.raises(DeviceMissing, match="needs a CUDA engine") as caught:
            call()
        assert isinstance(caught.value, KeyError)


@mark.parity("G-94")
@pytest.mark.parametrize("dim", [98, 99, 100, 101, 102, 120, 133, 138, 142, 145, 146, 200])
def test_wide_vectors_have_no_modes(dim: int) -> None:
    a, c = rng.random((6, dim)), rng.random((9, dim))
    want = np.exp(-((a[:, None] - c) ** 2).sum(-1) / dim)
    lazy: Any = (-(Vi(a) - Vj(c)).sqnorm2() / dim).exp()
    np.testing.assert_allclose(lazy.sum(axis=1, enable_chunks=False), want.sum(1, keepdims=True), rtol=1e-13)
    np.testing.assert_allclose((lazy * Vj(c)).sum(axis=1), want @ c, rtol=1e-13)


@mark.parity("X-05", "G-93")
def test_powers_are_computed_in_the_dtype_of_the_data() -> None:
    base = rng.uniform(0.5, 2.0, (50, 1))
    for exponent in (7, -3, 1.5, 2.7):
        got = (Vi(base) ** exponent).sum(axis=1, use_fast_math=True)
        np.testing.assert_allclose(got, base**exponent, rtol=2e-15)
