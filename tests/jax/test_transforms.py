"""Maps, loops, checkpoints, donated buffers and many devices around reductions."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import grad, jit, vmap
from jax.sharding import Mesh, PartitionSpec

from farsum.jax import LazyTensor, Vi, Vj
from tests.jax.pairs import PAIRS, Function, close, gauss, host, inputs, scalar, squares

mark = pytest.mark
pytestmark = mark.usefixtures("float64")


# Every way in which each of the four is mapped or not, and axes other than the first.
IN_AXES = [
    (0, None, None, None), (None, 0, None, None), (None, None, 0, None), (None, None, None, 0),
    (1, 0, None, None), (2, None, 2, 0), (-1, 1, 0, None), (0, 0, 1, 1),
]  # fmt: skip


@mark.parametrize("in_axes", IN_AXES)
def test_maps_over_any_axis(in_axes: tuple[int | None, ...]) -> None:
    args = [
        jnp.asarray(a if d is None else np.stack([a, 2 * a, a * a], d))
        for a, d in zip(host(), in_axes, strict=True)
    ]
    ours, dense = PAIRS["sum"]
    close(vmap(gauss, in_axes)(*args), jit(vmap(dense, in_axes))(*args))
    found, want = (
        jit(lambda *a, f=f: [vmap(f, in_axes, d)(*a) for d in (1, 2, -2)])(*args) for f in (ours, dense)
    )
    close(found, want)
    jaxpr = str(jax.make_jaxpr(vmap(ours, in_axes))(*args))
    # One job: the axis rides among its batch axes.
    assert jaxpr.count("farsum_reduce[") == 1 and "scan[" not in jaxpr


@mark.parametrize("name", ["softmax", "Kmin"])
def test_gradients_within_and_through_a_map(name: str) -> None:
    x, *rest = host()
    many = jnp.asarray(np.stack([x, 2 * x, x * x], 1))

    def each(f: Function) -> Function:
        mapped = [vmap(inner, (1, None, None, None)) for inner in (f, grad(scalar(f)))]
        return jit(lambda many: [(m(many, *rest), grad(scalar(m))(many, *rest)) for m in mapped])

    got, want = (each(f)(many) for f in PAIRS[name])
    close(got, want)


def test_maps_within_maps_and_over_batches() -> None:
    x, y, b, p = host()
    cells = np.stack([np.stack([x, 2 * x, x + 1], 1), np.stack([x - 1, x * x, x * 3], 1)], 2)
    grid, bs = jnp.asarray(cells), jnp.asarray(np.stack([b, 2 * b]))
    got, want = (
        jit(vmap(vmap(f, (1, None, None, None)), (2, None, 0, None), out_axes=1))(grid, y, bs, p)
        for f in PAIRS["sum"]
    )
    close(got, want)
    batches, scale = (
        np.stack([cells[..., 0, :], 2 * cells[..., 0, :]]),
        np.array([1.0, 2.0]).reshape(2, 1, 1, 1),
    )

    def batched(x: Any, s: Any) -> Any:
        return (
            (-LazyTensor(x[:, :, None]).sqdist(LazyTensor(y[None, None])) * LazyTensor(s)).exp().sum(axis=2)
        )

    got = vmap(batched, (2, None))(jnp.asarray(batches), jnp.asarray(scale))
    want = np.exp(-squares(np.moveaxis(batches, 2, 0), y) * scale[:, 0]).sum(-1, keepdims=True)
    close(got, want)
    places = vmap(lambda x: Vi(x).sqdist(Vj(y)).argKmin(2, axis=1), in_axes=1)(
        jnp.asarray(np.stack([x, -x], 1))
    )
    close(places, np.argsort(squares(np.stack([x, -x]), y), -1)[..., :2])


def test_a_map_with_ranges_runs_one_by_one() -> None:
    x, y, *_ = host()
    many = jnp.asarray(np.stack([x, 2 * x, x + 1], 1))
    lower = jnp.arange(5) <= jnp.arange(4)[:, None]

    def ours(x: Any) -> Any:
        return (-Vi(x).sqdist(Vj(y))).exp().sum(axis=1, mask="causal")

    def dense(x: Any) -> Any:
        return (jnp.exp(-squares(x, y)) * lower).sum(1, keepdims=True)

    got, want = (jit(lambda m, f=f: (vmap(f, 1)(m), vmap(jax.jacrev(f), 1)(m)))(many) for f in (ours, dense))
    close(got, want)
    close(vmap(ours, 1)(many), got[0])


def step(f: Function) -> Function:
    """A step of gradient descent that also says where it was."""
    return lambda x, _: (x - 0.1 * grad(f)(x), f(x))


def loops(f: Function) -> Function:
    def run(x: Any) -> Any:
        moved, story = jax.lax.scan(step(f), x, None, length=4)
        far, _ = jax.lax.while_loop(lambda s: s[1] > 0.5, lambda s: (s[0] * 1.5, f(s[0])), (x, f(x)))
        near = jax.lax.fori_loop(0, 3, lambda k, x: step(f)(x, k)[0], x)
        chosen = jax.lax.cond(x.sum() > 0, f, lambda x: 0 * f(x), x)
        return moved, story, far, near, chosen

    return run


def test_loops_and_branches_around_a_reduction() -> None:
    x, y, *_ = inputs()
    ours, dense = (
        lambda x: (-Vi(x).sqdist(Vj(y))).exp().sum(axis=1).sum(),
        lambda x: jnp.exp(-squares(x, y)).sum(),
    )
    close(*(jit(loops(f))(x) for f in (ours, dense)))
    through = [
        jit(grad(lambda x, f=f: jax.lax.scan(step(f), x, None, length=3)[0].sum()))(x) for f in (ours, dense)
    ]
    close(*through)
    close(jax.lax.scan(step(ours), x, None, length=4), jit(loops(dense))(x)[:2])


def test_checkpoints_donated_buffers_and_no_jit() -> None:
    x, *rest = inputs()
    ours, dense = (lambda x, f=f: jnp.sin(f(x, *rest)).sum() for f in PAIRS["logsumexp"])
    want = jit(grad(dense))(x)
    close(grad(jax.checkpoint(ours))(x), want)
    close(jit(grad(jax.checkpoint(ours)))(x), want)
    given = x + 0
    close(jit(lambda x: x + ours(x), donate_argnums=0)(given), jit(lambda x: x + dense(x))(x))
    assert given.is_deleted()
    with jax.disable_jit():
        close(jit(grad(ours))(x), want)
    close(jit(ours).lower(x).compile()(x), jit(dense)(x))
    assert jax.eval_shape(PAIRS["sum"][0], x, *rest).shape == (4, 3)


def test_jit_is_traced_once_for_each_shape() -> None:
    _, y, *_ = inputs()
    traced = []

    @jit
    def nearest(x: Any) -> Any:
        traced.append(x.shape)
        return Vi(x).sqdist(Vj(y)).argmin(axis=1)

    nx, ny, *_ = host()
    for given in (nx, 2 * nx, nx - 1):
        close(nearest(given), squares(given, ny).argmin(1)[:, None])
    assert traced == [(4, 2)]


def test_many_calls_under_way_at_once() -> None:
    x = np.linspace(0, 1, 60_000).reshape(-1, 3)

    @jit
    def many(x: Any) -> Any:
        return sum((-Vi(x).sqdist(Vj(x[:8] + k))).exp().sum(axis=1).sum() for k in range(6))

    found = [many(x + k) for k in range(6)]  # nobody waits in between
    want = [sum(np.exp(-squares(x + k, x[:8] + k + n)).sum() for n in range(6)) for k in range(6)]
    close(found, want)


def test_shards() -> None:
    x, *rest = inputs()
    mesh = Mesh(jax.devices()[:1], ("rows",))
    spec = PartitionSpec("rows")
    cut = jax.shard_map(lambda x: PAIRS["sum"][0](x, *rest), mesh=mesh, in_specs=spec, out_specs=spec)
    close(jit(cut)(x), PAIRS["sum"][1](x, *rest))


@mark.slow
def test_results_stay_on_the_device_of_the_arrays() -> None:
    script = """if True:
        import jax, jax.numpy as jnp
        jax.config.update("jax_num_cpu_devices", 2)
        from farsum.jax import Vi, Vj
        f = lambda x: Vi(x).sqdist(Vj(jnp.ones((3, 2)))).sum(axis=1)
        first, second = jax.devices()
        x = jax.device_put(jnp.ones((4, 2)), second)
        assert f(x).devices() == jax.jit(f)(x).devices() == jax.grad(lambda x: f(x).sum())(x).devices() == {second}
        assert f(jnp.ones((4, 2))).devices() == {first}
        many = jax.device_put(jnp.ones((4, 2)), jax.NamedSharding(jax.make_mesh((2,), ("i",)), jax.P("i")))
        assert float(f(many).sum()) == float(jax.jit(lambda x: f(x).sum())(many)) == 0
    """
    subprocess.run([sys.executable, "-c", script], check=True)
