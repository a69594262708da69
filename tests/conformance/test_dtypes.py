"""Halves are computed in float32 and come back as halves; factors of rows leave the sum unchanged."""

from __future__ import annotations

import numpy as np
import pytest

from farsum_kernels.errors import FormulaTooLarge
from farsum_kernels.formula.expr import I, J, P, node, variable
from farsum_kernels.formula.lower import Want, lower
from farsum_kernels.job import Extent, Spec
from tests.evaluate import run, worker

x, y, b, e = variable(0, 3, I), variable(1, 3, J), variable(2, 2, J), variable(3, 1, I)


def _bfloat16(a: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _float32(a: np.ndarray) -> np.ndarray:
    return (a.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parity("L-23", "E-31")
def test_float16() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.random((40, 3)).astype(np.float16), rng.random((3000, 3)).astype(np.float16)
    d = node("SqDist", x, y)
    (got,) = run("cpu", Spec(d, "Sum", 1, "float16"), {0: p, 1: q})
    want = ((p[:, None].astype(float) - q[None].astype(float)) ** 2).sum(-1)
    assert got.dtype == np.float16
    # Only the last step rounds to half: the error is one rounding, not 3,000 of them.
    np.testing.assert_allclose(got[:, 0].astype(float), want.sum(1), rtol=2.0**-10)
    (nearest,) = run("cpu", Spec(d, "ArgMin", 1, "float16"), {0: p, 1: q})
    assert nearest.dtype == np.int64 and nearest.max() > 2048
    np.testing.assert_array_equal(nearest[:, 0], want.argmin(1))


@pytest.mark.parity("X-71", "R-43")
def test_rows_that_float32_cannot_count_are_refused() -> None:
    compiler = worker()._compiler
    nearest = compiler.kernel(Spec(node("SqDist", x, y), "ArgMin", 1, "float32"))
    nearest.check_indices(Extent(1, 2**31 - 1, ()))  # past 1.6e7, where indices kept as floats end
    with pytest.raises(FormulaTooLarge, match="need float64"):
        nearest.check_indices(Extent(1, 2**31, ()))
    numbered = compiler.kernel(Spec(node("Mult", x, node("RowIndex", y)), "Sum", 1, "float32"))
    with pytest.raises(FormulaTooLarge, match="row numbers"):
        numbered.check_indices(Extent(1, 2**24 + 1, ()))


def test_bfloat16_travels_as_uint16() -> None:
    rng = np.random.default_rng(0)
    p, q = _bfloat16(rng.random((40, 3))), _bfloat16(rng.random((50, 3)))
    (got,) = run("cpu", Spec(node("SqDist", x, y), "Sum", 1, "bfloat16"), {0: p, 1: q})
    want = ((_float32(p)[:, None] - _float32(q)[None]) ** 2).sum((1, 2))
    assert got.dtype == np.uint16
    np.testing.assert_allclose(_float32(got)[:, 0], want, rtol=2.0**-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_factors_of_rows_leave_the_sum(dtype: str) -> None:
    kernel = node("Exp", node("Minus", node("SqDist", x, y)))
    formula = node("Mult", node("Minus", node("Mult", e, node("Mult", x, kernel))), variable(4, 1, P))
    formula = node("Mult", formula, node("Sum", b))
    program = lower([Want(formula, additive=True)], 6)
    assert all(f is not None for f in program.terms[0].factor)
    rng = np.random.default_rng(0)
    arrays = {
        n: rng.normal(size=s).astype(dtype) for n, s in enumerate([(30, 3), (40, 3), (40, 2), (30, 1), (1,)])
    }
    (got,) = run("cpu", Spec(formula, "Sum", 1, dtype), arrays)
    p, q, w, f, c = (a.astype(float) for a in arrays.values())
    k = np.exp(-((p[:, None] - q[None]) ** 2).sum(-1)) * w.sum(1)
    np.testing.assert_allclose(
        got, -f * p * k.sum(1)[:, None] * c, rtol=1e-5 if dtype == "float32" else 1e-12
    )


def test_vector_dimensions_from_1_to_4096_compile_to_text_of_one_size() -> None:
    sizes = {}
    for dim in (64, 4096):
        d = node("SqDist", variable(0, dim, I), variable(1, dim, J))
        wide = node("Mult", node("Exp", node("Minus", d)), variable(2, dim, J))
        sizes[dim] = len(lower([Want(wide)], 6).code)
        rng = np.random.default_rng(0)
        arrays = {0: rng.random((20, dim)) / dim, 1: rng.random((30, dim)) / dim, 2: rng.random((30, dim))}
        (got,) = run("cpu", Spec(wide, "Sum", 1, "float64"), arrays)
        k = np.exp(-((arrays[0][:, None] - arrays[1][None]) ** 2).sum(-1))
        np.testing.assert_allclose(got, k @ arrays[2], rtol=1e-12)
    assert sizes[64] == sizes[4096]
