"""A cloud of points that flows onto another one: a loop of gradient steps under `jit`, kernels by `vmap`, a Hessian.

Everything is compared with dense jax.numpy: python examples/jax_flow.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from farsum.jax import Vi, Vj

RNG = np.random.default_rng(8)
STEPS, RATE, SIGMA = 40, 0.3, 0.5

# Of points x (M, 2), y (N, 2) and a bandwidth: the sums over j of exp(-|x_i - y_j|² / 2 sigma²), (M, 1).
Sums = Callable[[Any, Any, Any], Any]


def main() -> int:
    x = jnp.asarray(0.3 * RNG.standard_normal((400, 2)), "float32")
    y = jnp.asarray(ring(300), "float32")

    check("sums over a Gaussian kernel", lazily(x, y, SIGMA), densely(x, y, SIGMA))
    check("the same under jit", jax.jit(lazily)(x, y, SIGMA), densely(x, y, SIGMA))

    begun = time.perf_counter()
    moved, costs = flow(lazily, x, y)
    costs.block_until_ready()
    took = time.perf_counter() - begun
    true_moved, true_costs = flow(densely, x, y)
    check(f"{STEPS} steps of the flow in one call, {took:.2f} s: costs", costs, true_costs, 1e-3)
    check("where it ends", moved, true_moved, 1e-3)
    print(f"  the cost falls from {costs[0]:.4f} to {costs[-1]:.4f}")
    if not costs[-1] < 0.1 * costs[0]:
        sys.exit("the flow should end near the ring")

    # Many bandwidths are one job: the mapped axis rides among the batch axes.
    sigmas = jnp.asarray([0.2, 0.5, 1.0])
    found, truth = (
        jax.vmap(jax.value_and_grad(lambda s, k=k: cost(k, x, y, s)))(sigmas) for k in (lazily, densely)
    )
    check("the cost for three bandwidths", found[0], truth[0])
    check("its derivative by the bandwidth", found[1], truth[1])

    # Forward over reverse: the Hessian times a direction, of 800 numbers, without the matrix.
    u = jnp.asarray(RNG.standard_normal(x.shape), "float32")
    found, truth = (
        jax.jvp(jax.grad(lambda x, k=k: cost(k, x, y, SIGMA)), (x,), (u,))[1] for k in (lazily, densely)
    )
    check("Hessian times a direction", found, truth)

    nearest = jax.jit(lambda x: Vi(x).sqdist(Vj(y)).argmin(axis=1))(moved)
    apart = jnp.linalg.norm(moved - y[nearest[:, 0]], axis=1).mean()
    print(f"  the mean distance to the nearest point of the ring is {apart:.3f}")
    return 0


def lazily(x: Any, y: Any, sigma: Any) -> Any:
    return (-Vi(x).sqdist(Vj(y)) / (2 * sigma**2)).exp().sum(axis=1)


def densely(x: Any, y: Any, sigma: Any) -> Any:
    squares = ((x[:, None] - y) ** 2).sum(-1)
    return jnp.exp(-squares / (2 * sigma**2)).sum(1, keepdims=True)


def cost(sums: Sums, x: Any, y: Any, sigma: Any) -> Any:
    """Half the squared distance of two clouds, as measures: the maximum mean discrepancy of the kernel."""
    own, across, theirs = (sums(a, b, sigma).mean() / len(b) for a, b in ((x, x), (x, y), (y, y)))
    return (own + theirs) / 2 - across


def flow(sums: Sums, x: Any, y: Any) -> tuple[Any, Any]:
    """Where the steps end, and the cost before each of them."""

    def step(x: Any, _: None) -> tuple[Any, Any]:
        now, slope = jax.value_and_grad(lambda x: cost(sums, x, y, SIGMA))(x)
        return x - RATE * len(x) * slope, now

    moved, costs = jax.jit(lambda x: jax.lax.scan(step, x, None, length=STEPS))(x)
    return moved, costs


def ring(count: int) -> np.ndarray:
    angle = RNG.uniform(0, 2 * np.pi, count)
    return np.stack([np.cos(angle), np.sin(angle)], 1) + 0.05 * RNG.standard_normal((count, 2))


# ── words ─────────────────────────────────────────────────────────────────────────────────────────


def check(what: str, found: Any, truth: Any, tolerance: float = 1e-4) -> None:
    """Print how far apart the two are; end the script where that is too far."""
    if np.shape(found) != np.shape(truth):
        sys.exit(f"{what}: the shape is {np.shape(found)} and should be {np.shape(truth)}")
    error = np.abs(np.subtract(found, truth)).max() / np.abs(truth).max()
    if not error <= tolerance:
        sys.exit(f"{what}: wrong, the relative error is {error:.1e}")
    print(f"  {what}: relative error {error:.0e}")


if __name__ == "__main__":
    sys.exit(main())
