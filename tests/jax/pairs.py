"""Reductions as farsum writes them, each beside the dense jax.numpy that defines it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from farsum.jax import Genred, Pm, Vi, Vj

Function = Callable[..., Any]

RNG = np.random.default_rng(0)
X, Y, B, P = RNG.random((4, 2)), RNG.random((5, 2)), RNG.random((5, 3)), RNG.random(1)


def inputs() -> tuple[jax.Array, ...]:
    """x (4, 2), y (5, 2), b (5, 3), p (1,), of the widest dtype that JAX has now."""
    return tuple(jnp.asarray(a) for a in (X, Y, B, P))


def host() -> tuple[np.ndarray, ...]:
    """The same as NumPy arrays, for oracles that JAX need not compile."""
    return tuple(map(np.asarray, inputs()))


def close(found: Any, want: Any, error: float = 1e-9) -> None:
    """Raise unless two trees of arrays have the same shapes, dtypes and, but for an error, numbers."""
    jax.tree.map(lambda have, true: _close(have, true, error), found, want)


def _close(have: Any, true: Any, error: float) -> None:
    assert have.dtype == true.dtype and have.shape == true.shape
    kind = np.complex128 if jnp.iscomplexobj(true) else np.float64
    np.testing.assert_allclose(
        np.asarray(have).astype(kind), np.asarray(true).astype(kind), rtol=error, atol=error
    )


def squares(x: Any, y: Any) -> Any:
    return ((x[..., :, None, :] - y[..., None, :, :]) ** 2).sum(-1)


gauss = Genred("Exp(-p*SqDist(x,y))*b", ["x=Vi(2)", "y=Vj(2)", "b=Vj(3)", "p=Pm(1)"], axis=1)

# fmt: off
PAIRS: dict[str, tuple[Function, Function]] = {
    "sum": (lambda x, y, b, p: ((-p * Vi(x).sqdist(Vj(y))).exp() * Vj(b)).sum(axis=1),
            lambda x, y, b, p: jnp.exp(-p * squares(x, y)) @ b),
    "text": (gauss, lambda x, y, b, p: jnp.exp(-p * squares(x, y)) @ b),
    "logsumexp": (lambda x, y, b, p: (Pm(p) * Vi(x).sqdist(Vj(y)) + Vj(b).sum(-1)).logsumexp(axis=0),
                  lambda x, y, b, p: jax.nn.logsumexp(p * squares(x, y) + b.sum(-1), 0)[:, None]),
    "softmax": (lambda x, y, b, p: (-p * Vi(x).sqdist(Vj(y))).sumsoftmaxweight(Vj(b), axis=1),
                lambda x, y, b, p: jax.nn.softmax(-p * squares(x, y), 1) @ b),
    "min": (lambda x, y, b, p: (Vi(x).sqdist(Vj(y)) * p).min(axis=1) + b.sum(),
            lambda x, y, b, p: (squares(x, y) * p).min(1, keepdims=True) + b.sum()),
    "max": (lambda x, y, b, p: (Vi(x) * Vj(y) * p).max(axis=0) * b[0, 0],
            lambda x, y, b, p: (x[:, None] * y * p).max(0) * b[0, 0]),
    "Kmin": (lambda x, y, b, p: (Vi(x).sqdist(Vj(y)) * Pm(p)).Kmin(2, axis=1) * b[0, 0],
             lambda x, y, b, p: jnp.sort(squares(x, y) * p, 1)[:, :2] * b[0, 0]),
}
# fmt: on


def scalar(f: Function) -> Function:
    return lambda *args: jnp.square(f(*args)).sum()
