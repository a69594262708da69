"""Arrays of JAX in, arrays of JAX out: every way of writing a reduction, inside jit and outside, every dtype."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import farsum
import farsum.jax
import farsum.numpy
from farsum.cluster import cluster_ranges_centroids, from_matrix, grid_cluster, sort_clusters
from farsum.jax import (
    ComplexLazyTensor,
    KernelSolve,
    LazyTensor,
    Vi,
    Vj,
    generic_argkmin,
    generic_argmin,
    generic_logsumexp,
    generic_sum,
)
from tests.jax.pairs import PAIRS, close, gauss, host, inputs, squares

mark = pytest.mark


def test_the_names_of_the_front_end_are_those_of_numpy() -> None:
    assert set(farsum.jax.__all__) == set(farsum.numpy.__all__)
    assert all(getattr(farsum.jax, n) is getattr(farsum.numpy, n) for n in farsum.jax.__all__)


def test_numpy_arrays_never_load_jax() -> None:
    script = (
        "import sys, numpy as np\n"
        "from farsum.numpy import Vi, Vj\n"
        "x = np.random.rand(9, 3); K = (-Vi(x).sqdist(Vj(x))).exp()\n"
        "K.sum(axis=1); K @ x; K.solve(Vi(x), alpha=1.0); K.dense(); K[[0]]; K.sum(axis=1, radius=0.5)\n"
        "raise SystemExit('jax' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@mark.parametrize("name", PAIRS)
def test_values_inside_and_outside_jit(name: str) -> None:
    ours, dense = PAIRS[name]
    x, y, b, p = inputs()
    assert x.dtype == jnp.float32  # the default of JAX, which has no float64 then
    want = jax.jit(dense)(x, y, b, p)
    for found in (ours(x, y, b, p), jax.jit(ours)(x, y, b, p)):
        assert isinstance(found, jax.Array)
        close(found, want, 1e-5)


@mark.parametrize("axis", [0, 1])
@mark.parametrize("x64", [False, True])
def test_indices_have_the_int_of_jax(axis: int, x64: bool) -> None:
    with jax.enable_x64(x64):
        x, y, *_ = inputs()
        d = squares(*host()[:2])
        order = np.argsort(d, axis).astype(jnp.int64 if x64 else jnp.int32)
        want = (
            order[:, :2] if axis else order[:2].T,
            d.min(axis)[:, None],
            d.argmin(axis)[:, None].astype(order.dtype),
        )

        def found(x: Any, y: Any) -> Any:
            D = Vi(x).sqdist(Vj(y))
            return D.argKmin(2, axis=axis), *D.min_argmin(axis=axis)

        close(found(x, y), want, 1e-5)
        close(jax.jit(found)(x, y), want, 1e-5)


@mark.parametrize(
    ("dtype", "error"), [("float64", 1e-13), ("float32", 1e-6), ("float16", 2e-3), ("bfloat16", 2e-2)]
)
def test_dtypes_go_in_and_come_out(dtype: str, error: float) -> None:
    with jax.enable_x64(True):
        x, y, b, p = (jnp.asarray(a.astype(dtype)) for a in host())
        nx, ny, nb, np_ = (np.asarray(a, np.float64) for a in (x, y, b, p))
        want = np.exp(-np_ * squares(nx, ny)) @ nb
        for f in (PAIRS["sum"][0], gauss, lambda x, y, b, p: (-p * Vi(x).sqdist(Vj(y))).exp() @ b):
            for found in (f(x, y, b, p), jax.jit(f)(x, y, b, p)):
                assert found.dtype == dtype
                close(np.asarray(found, np.float64), want, 4 * error)


@mark.parametrize("x64", [False, True])
def test_complex_numbers(x64: bool) -> None:
    with jax.enable_x64(x64):
        x, y, *_ = host()
        nz, nw = x * (1 + 2j), y + 1j * (y - 1)
        z, w = jnp.asarray(nz), jnp.asarray(nw)
        assert isinstance(Vi(z), ComplexLazyTensor)

        def ours(z: Any, w: Any) -> Any:
            return (Vi(z) * Vj(w)).exp().sum(axis=1)

        want = np.exp(nz[:, None] * nw).sum(1)
        for found in (ours(z, w), jax.jit(ours)(z, w)):
            close(found, want, 1e-5)


def test_arrays_of_two_dtypes_and_of_numpy_promote_as_in_jax() -> None:
    x, y, *_ = inputs()
    wide = np.asarray(y, np.float64)  # JAX holds it as float32 here
    want = squares(*host()[:2]).sum(1, keepdims=True)
    for f in (
        lambda x: Vi(x).sqdist(Vj(wide)).sum(axis=1),
        lambda x: Vi(x).sqdist(Vj(0, 2)).sum(axis=1)(wide),
        lambda x: farsum.jax.Genred("SqDist(x,y)", ["x=Vi(2)", "y=Vj(2)"], axis=1)(x, wide),
        lambda x: Vi(x).sqdist(Vj(farsum.put(wide))).sum(axis=1),
    ):
        for found in (f(x), jax.jit(f)(x)):
            assert isinstance(found, jax.Array)
            close(found, want, 1e-5)
    half = Vi(x.astype(jnp.bfloat16)).sqdist(Vj(y.astype(jnp.float16)))
    assert half.dtype == "float32" and half.sum(axis=1).dtype == jnp.float32
    assert isinstance(Vi(wide).sqdist(Vj(wide)).sum(axis=1), np.ndarray)


def test_sums_in_float64_come_back_in_the_dtype_of_jax() -> None:
    many = jnp.full((1, 1), 1e-4), jnp.ones((300_000, 1))
    exact = (Vi(many[0]) * Vj(many[1])).sum(axis=1, dtype_acc="float64")
    assert exact.dtype == jnp.float32
    np.testing.assert_allclose(exact, 30.0, rtol=1e-7)
    wide = farsum.jax.Genred("x*y", ["x=Vi(1)", "y=Vj(1)"], axis=1, dtype_acc="float64")
    close(jax.jit(wide)(*many), exact, 1e-9)
    close(jax.grad(lambda x: wide(x, many[1]).sum())(many[0]), jnp.full((1, 1), 3e5), 1e-6)


def test_batches_numbers_and_parameters() -> None:
    nx, ny, _, np_ = host()
    stack = np.stack([nx, 2 * nx, nx * nx])
    many, x, y, p = (jnp.asarray(a) for a in (stack, nx, ny, np_))

    def ours(many: Any, p: Any) -> Any:
        return (
            (-LazyTensor(many[:, :, None]).sqdist(LazyTensor(y[None, None])) * p * 0.5 + 1).exp().sum(axis=2)
        )

    want = np.exp(-squares(stack, ny) * np_ * 0.5 + 1).sum(-1, keepdims=True)
    close(ours(many, p), want, 1e-5)
    close(jax.jit(ours)(many, jnp.float32(p[0])), want, 1e-5)
    close((jnp.float32(2) * Vi(x) + jnp.ones(2)).sum(axis=0), (2 * nx + 1).sum(0, keepdims=True), 1e-5)


def test_a_matrix() -> None:
    x, y, b, _ = inputs()
    nx, ny, nb, _ = host()
    want, square = np.exp(-squares(nx, ny)), np.exp(-squares(ny, ny))

    def parts(x: Any, y: Any) -> Any:
        K, L = (-Vi(x).sqdist(Vj(y))).exp(), (-Vi(y).sqdist(Vj(y))).exp()
        return (
            K.dense(),
            K @ b,
            K @ b[:, 0],
            K.T @ x,
            K[[0, 2]].dense(),
            K[1, :],
            K[[0, 1], [1, 2]],
            L.diagonal(),
            L.trace(),
        )

    ones = np.ones(5, np.float32)
    true = (
        want,
        want @ nb,
        want @ nb[:, 0],
        want.T @ nx,
        want[[0, 2]],
        want[1],
        want[[0, 1], [1, 2]],
        ones,
        ones.sum(),
    )
    close(parts(x, y), true, 1e-5)
    close(jax.jit(parts)(x, y), true, 1e-5)
    K = (-Vi(x).sqdist(Vj(y))).exp()
    close(K[jnp.array([0, 2])].dense(), true[4], 1e-5)
    for again in (copy.deepcopy(K), pickle.loads(pickle.dumps(K))):
        close(again.dense(), want, 1e-5)
    values, vectors = (-Vi(y).sqdist(Vj(y))).exp().eigsh(2)
    assert isinstance(vectors, jax.Array)
    close((values, square @ vectors), (np.linalg.eigvalsh(square)[-2:], np.asarray(values * vectors)), 1e-4)


def test_chosen_pairs() -> None:
    x, y, *_ = inputs()
    d = squares(*host()[:2])
    lower = np.arange(5) <= np.arange(4)[:, None]

    def ours(x: Any, **options: Any) -> Any:
        return Vi(x).sqdist(Vj(y)).sum(axis=1, **options)

    for mask in ("causal", jnp.asarray(lower), lambda i, j: j <= i):
        close(ours(x, mask=mask), (d * lower).sum(1, keepdims=True), 1e-5)
    close(ours(x, radius=0.5), np.where(d <= 0.25, d, 0).sum(1, keepdims=True), 1e-5)
    segments = ours(x, segments=(jnp.array([2, 2]), [3, 2]))
    close(segments, np.concatenate([d[:2, :3].sum(1), d[2:, 3:].sum(1)])[:, None], 1e-5)
    close(jax.jit(lambda x: ours(x, mask="causal"))(x), (d * lower).sum(1, keepdims=True), 1e-5)


def test_the_device_that_a_call_asks_for_goes_with_its_derivatives() -> None:
    x, y, *_ = inputs()

    def ours(x: Any) -> Any:
        return (-Vi(x).sqdist(Vj(y))).exp().sum(axis=1, backend="CPU").sum()

    asked = [
        e.params["job"].call.device
        for e in jax.make_jaxpr(jax.value_and_grad(ours))(x).eqns
        if e.primitive.name == "farsum_reduce"
    ]
    assert asked == ["cpu", "cpu"]
    close(jax.jit(ours)(x), np.exp(-squares(*host()[:2])).sum(), 1e-5)


def test_clusters() -> None:
    x = jnp.array([[0.1, 0.1], [5.2, 5.1], [0.3, 0.2], [5.3, 5.4]])
    labels = grid_cluster(x, 1.0)
    assert isinstance(labels, jax.Array) and labels.dtype == jnp.int32
    ranges, centroids, _ = cluster_ranges_centroids(x, labels)
    assert centroids.dtype == jnp.float32
    near = from_matrix(ranges, ranges, squares(centroids, centroids) < 4)
    ordered, _ = sort_clusters(x, labels)
    close(ordered, x[jnp.array([0, 2, 1, 3])], 1e-6)
    close(Vi(ordered).sqdist(Vj(ordered)).sum(axis=1, ranges=near)[0, 0], squares(x, x)[0, 2], 1e-5)


def test_formulas_as_text_and_deferred_calls() -> None:
    x, y, b, _ = inputs()
    nx, ny, nb, _ = host()
    d = squares(nx, ny)
    aliases = ["x = Vi(2)", "y = Vj(2)"]
    close(generic_sum("SqDist(x,y)", "a = Vi(1)", *aliases)(x, y), d.sum(1, keepdims=True), 1e-5)
    close(
        generic_logsumexp("SqDist(x,y)", "a = Vj(1)", *aliases)(x, y), np.log(np.exp(d).sum(0))[:, None], 1e-5
    )
    close(generic_argmin("SqDist(x,y)", "a = Vi(1)", *aliases)(x, y), d.argmin(1)[:, None].astype(np.int32))
    close(
        generic_argkmin("SqDist(x,y)", "a = Vi(2)", *aliases)(x, y), np.argsort(d, 1)[:, :2].astype(np.int32)
    )
    later = ((-Vi(0, 2).sqdist(Vj(1, 2))).exp() * Vj(b)).sum(axis=1)
    close(jax.jit(lambda x, y: later(x, y))(x, y), np.exp(-d) @ nb, 1e-5)
    kept = Vi(x).sqdist(Vj(y)).sum(axis=1, call=False)
    close(kept(), d.sum(1, keepdims=True), 1e-5)
    close(kept.grad(Vi(x), jnp.ones((4, 1))), 2 * (5 * nx - ny.sum(0)), 1e-5)
    assert "float32" in str(kept.explain())


@mark.parametrize("dtype", ["float32", "bfloat16"])
def test_solutions(dtype: str) -> None:
    _, y, b, p = (jnp.asarray(a.astype(dtype)) for a in host())
    text = KernelSolve("Exp(-p*SqDist(x,y))*b", ["x=Vi(2)", "y=Vj(2)", "b=Vj(3)", "p=Pm(1)"], "b", axis=1)
    wide = [np.asarray(a, np.float32) for a in (y, b, p)]
    want = np.linalg.solve(
        np.exp(-wide[2] * squares(wide[0], wide[0])) + 0.3 * np.eye(5, dtype="f4"), wide[1]
    )
    for f in (
        lambda y, b, p: text(y, y, b, p, alpha=0.3, eps=1e-7),
        lambda y, b, p: (-p * Vi(y).sqdist(Vj(y))).exp().solve(Vi(b), alpha=0.3, eps=1e-7),
    ):
        for found in (f(y, b, p), jax.jit(f)(y, b, p)):
            assert found.dtype == dtype
            close(np.asarray(found, np.float32), want, 1e-4 if dtype == "float32" else 5e-2)
