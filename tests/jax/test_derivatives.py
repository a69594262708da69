"""Derivatives beside those that JAX finds for dense jax.numpy: both modes, every order, every input, float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import grad, hessian, jacfwd, jacrev, jit, jvp, vjp

from farsum.jax import ComplexLazyTensor, KernelSolve, LazyTensor, Vi, Vj
from farsum_kernels.errors import NoDerivative
from tests.jax.pairs import PAIRS, Function, close, host, inputs, scalar, squares

mark = pytest.mark
pytestmark = mark.usefixtures("float64")
EACH = (0, 1, 2, 3)


def both_modes(f: Function) -> Function:
    return jit(lambda *args: (f(*args), jacrev(f, EACH)(*args), jacfwd(f, EACH)(*args)))


@mark.parametrize("name", PAIRS)
def test_forward_and_reverse_mode_of_every_input(name: str) -> None:
    ours, dense = PAIRS[name]
    args = inputs()
    close(both_modes(ours)(*args), both_modes(dense)(*args))


@mark.parametrize("name", ["softmax", "Kmin"])
def test_outside_jit(name: str) -> None:
    ours, dense = PAIRS[name]
    args = inputs()
    value, moved = jvp(ours, args, args)
    close((value, moved), jit(lambda *args: jvp(dense, args, args))(*args))
    _, back = vjp(ours, *args)
    close(back(value), jit(lambda *args: vjp(dense, *args)[1](dense(*args)))(*args))


@mark.parametrize("name", ["sum", "softmax"])
def test_hessians_of_every_pair_of_inputs(name: str) -> None:
    ours, dense = (jit(hessian(scalar(f), EACH)) for f in PAIRS[name])
    close(ours(*inputs()), dense(*inputs()))


@mark.slow
def test_hessians_by_every_road_and_the_third_order() -> None:
    x, *rest = inputs()
    ours, dense = (lambda x, f=scalar(f): f(x, *rest) for f in PAIRS["logsumexp"])

    def roads(f: Function) -> Function:
        return lambda x: (jacrev(jacrev(f))(x), jacrev(jacfwd(f))(x), jacfwd(jacfwd(f))(x), third(f)(x))

    def third(f: Function) -> Function:
        return jacrev(jacfwd(grad(f)))

    want = jit(lambda x: (hessian(dense)(x), third(dense)(x)))(x)
    close(jit(roads(ours))(x), (want[0], want[0], want[0], want[1]))


def test_indices_have_no_tangent_and_pass_beside_values() -> None:
    x, y, *_ = inputs()

    def ours(x: Any) -> Any:
        values, places = Vi(x).sqdist(Vj(y)).min_argmin(axis=1)
        return values.sum(), places

    moved, places = grad(ours, has_aux=True)(x)
    nx, ny, *_ = host()
    close(places, squares(nx, ny).argmin(1)[:, None])
    close(moved, 2 * (nx - ny[np.asarray(places)[:, 0]]))
    _, none = jvp(lambda x: Vi(x).sqdist(Vj(y)).argmin(axis=1), (x,), (x,))
    assert none.dtype == jax.dtypes.float0


def test_inputs_that_are_broadcast_over_a_batch_and_numbers() -> None:
    _, y, _, p = inputs()
    many = jnp.asarray(np.stack([host()[0], 2 * host()[0]]))

    def ours(many: Any, y: Any, s: Any) -> Any:
        return (-LazyTensor(many[:, :, None]).sqdist(LazyTensor(y[None, None])) * s).exp().sum(axis=2)

    def dense(many: Any, y: Any, s: Any) -> Any:
        return jnp.exp(-squares(many, y) * s).sum(-1, keepdims=True)

    args = (many, y, p[0])
    assert args[2].ndim == 0
    found, want = (
        jit(lambda *args, f=scalar(f): (grad(f, (0, 1, 2))(*args), grad(grad(f, 2), 2)(*args)))(*args)
        for f in (ours, dense)
    )
    close(found, want)


def test_complex_gradients_are_those_of_jax() -> None:
    x, y, *_ = host()
    z, w = jnp.asarray(x * (1 + 2j)), jnp.asarray(y + 1j * (y - 1))

    def ours(z: Any, w: Any) -> Any:
        found = (Vi(z) * Vj(w)).exp()
        assert isinstance(found, ComplexLazyTensor)
        return jnp.abs(found.sum(axis=1)).sum()

    def dense(z: Any, w: Any) -> Any:
        return jnp.abs(jnp.exp(z[:, None] * w).sum(1)).sum()

    found, want = (
        jit(lambda *zw, f=f: (grad(f, (0, 1))(*zw), jvp(f, zw, (zw[1][:4], zw[1]))))(z, w)
        for f in (ours, dense)
    )
    close(found, want)


@mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves(dtype: str) -> None:
    x, y, b, p = (jnp.asarray(a.astype(dtype)) for a in host())
    wide = tuple(np.asarray(a, np.float64) for a in (x, y, b, p))
    for name in ("sum", "min"):
        ours, dense = (scalar(f) for f in PAIRS[name])
        found = jit(grad(ours, EACH))(x, y, b, p)
        assert all(g.dtype == dtype for g in found)
        want = jit(grad(dense, EACH))(*wide)
        for have, true in zip(found, want, strict=True):
            np.testing.assert_allclose(np.asarray(have, np.float64), true, rtol=0.1, atol=0.1)


def test_a_choice_among_many_rows_has_its_gradient_in_halves() -> None:
    far = np.linspace(0, 1, 3000).reshape(-1, 1).astype("bfloat16")  # a place past 2048 is no float16
    at = np.array([[0.999]], "bfloat16")
    moved = grad(lambda at: Vi(at).sqdist(Vj(far)).min(axis=1).sum())(jnp.asarray(at))
    place = np.abs(at - far).argmin()
    close(np.asarray(moved, np.float32), 2 * (at - far[place]).astype("float32"), 1e-2)


def test_selected_pairs() -> None:
    x, y, *_ = inputs()
    near = squares(*host()[:2]) <= 0.25

    def ours(x: Any, **options: Any) -> Any:
        return (-Vi(x).sqdist(Vj(y))).exp().sum(axis=1, **options).sum()

    def dense(x: Any) -> Any:
        return jnp.where(near, jnp.exp(-squares(x, y)), 0).sum()

    want = jit(grad(dense))(x)
    close(grad(lambda x: ours(x, radius=0.5))(x), want)
    both = jit(lambda x: (grad(ours)(x, mask=near), jacfwd(lambda x: ours(x, mask=near))(x)))
    close(both(x), (want, want))


def test_what_is_linear_is_transposed() -> None:
    x, y, b, _ = inputs()
    nx, ny, *_ = host()
    K, e = np.exp(-squares(nx, ny)), jnp.asarray(np.ones((4, 3)))
    (found,) = jax.linear_transpose(lambda b: (-Vi(x).sqdist(Vj(y))).exp() @ b, b)(e)
    close(found, K.T @ np.ones((4, 3)))
    # Nothing but b says how many rows there are along j.
    (found,) = jax.linear_transpose(lambda b: (Vi(x).exp().sum(-1) * Vj(b)).sum(axis=1), b)(e)
    close(found, np.full((5, 3), np.exp(nx).sum()))
    value, push = jax.linearize(lambda x: (-Vi(x).sqdist(Vj(y))).exp() @ b, x)
    close((value, push(x)), jit(lambda x: jvp(lambda x: jnp.exp(-squares(x, y)) @ b, (x,), (x,)))(x))


def test_a_reduction_without_a_derivative_says_so() -> None:
    x, y, *_ = inputs()
    f = lambda x: (-Vi(x).sqdist(Vj(y))).reduction("Max_SumShiftExp", axis=1)[..., 0].sum()
    f(x)
    for asked in (grad(f), jit(grad(f)), jacfwd(f)):
        with pytest.raises(NoDerivative, match="LogSumExp"):
            asked(x)
    spectrum = lambda x: (-Vi(x).sqdist(Vj(x))).exp().eigsh(2)[0].sum()
    for asked in (grad(spectrum), jit(spectrum)):
        with pytest.raises(NoDerivative, match="stop_gradient"):
            asked(x)


# ── solutions ─────────────────────────────────────────────────────────────────────────────────────

solve = KernelSolve("Exp(-p*SqDist(x,y))*b", ["x=Vi(2)", "y=Vj(2)", "b=Vj(3)", "p=Pm(1)"], "b", axis=1)


def by_name(x: Any, b: Any, p: Any, alpha: Any) -> Any:
    return solve(x, x, b, p, alpha=alpha, eps=1e-13)


def lazily(x: Any, b: Any, p: Any, alpha: Any) -> Any:
    return (-p * Vi(x).sqdist(Vj(x))).exp().solve(Vi(b), alpha=alpha, eps=1e-13)


def dense_solved(x: Any, b: Any, p: Any, alpha: Any) -> Any:
    return jnp.linalg.solve(jnp.exp(-p * squares(x, x)) + alpha * jnp.eye(5), b)


def test_solutions_in_both_modes() -> None:
    args = (*inputs()[1:], jnp.asarray(0.3))
    close(both_modes(lazily)(*args), both_modes(dense_solved)(*args), 1e-7)
    value, moved = jvp(by_name, args, args)
    close((value, moved), jit(lambda *args: jvp(dense_solved, args, args))(*args), 1e-7)


def test_solutions_are_differentiated_twice_and_mapped() -> None:
    y, b, p, alpha = *inputs()[1:], jnp.asarray(0.3)
    want = jit(hessian(scalar(dense_solved), (2, 3)))(y, b, p, alpha)
    ours = scalar(by_name)
    found = jit(lambda *args: (hessian(ours, (2, 3))(*args), jacrev(jacrev(ours, (2, 3)), (2, 3))(*args)))
    close(found(y, b, p, alpha), (want, want), 1e-6)
    _, ny, _, np_ = host()
    many = (jnp.asarray(np.stack([ny, ny * 2], 1)), b, jnp.asarray(np.stack([np_, np_ + 1])), alpha)
    alphas = (y, b, p, jnp.asarray(np.array([0.3, 0.6])))
    for dims, args in (((1, None, 0, None), many), ((None, None, None, 0), alphas)):
        found, want = (jit(jax.vmap(f, dims))(*args) for f in (by_name, dense_solved))
        close(found, want, 1e-7)
