"""Optimal transport in the log domain: a cloud of points that flows down the gradient of a Sinkhorn divergence.

Potentials and gradients are compared with dense PyTorch: python examples/torch_sinkhorn.py
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farsum.torch import Vi, Vj

BLUR, SCALING, DIAMETER = 0.05, 0.7, 2.0
RNG = np.random.default_rng(6)

# softmin(eps, x, y, h): -eps log sum_j exp(h_j - |x_i - y_j|² / 2 eps), for each point x_i: (M, D) -> (M, 1).
Softmin = Callable[[float, Tensor, Tensor, Tensor], Tensor]


def main() -> int:
    x, y = torch.from_numpy(ring(150)), torch.from_numpy(bars(140))

    leaf = x.clone().requires_grad_()
    f, g = potentials(lazily, leaf.detach(), y)
    true_f, true_g = potentials(densely, leaf.detach(), y)
    check("dual potential of the source", f, true_f)
    check("dual potential of the target", g, true_g)
    found, truth = divergence(lazily, leaf, y), divergence(densely, leaf, y)
    check("Sinkhorn divergence", found.detach()[None], truth.detach()[None], 1e-8)
    slope, true_slope = (torch.autograd.grad(value, leaf)[0] for value in (found, truth))
    check("its gradient", slope, true_slope, 1e-8)

    # The plan moves each point to the mean of what it is sent to: a soft-max over the same exponents.
    eps = BLUR**2
    exponents = (Vj(g) - Vi(x).sqdist(Vj(y)) / 2) / eps
    targets = exponents.sumsoftmaxweight(Vj(y), axis=1)
    plan = ((true_g[:, 0] - (x[:, None] - y).square().sum(-1) / 2) / eps).softmax(1)
    check("where the plan sends the points", targets, plan @ y)

    begun, moved, costs = time.perf_counter(), x.clone().requires_grad_(), []
    for _ in range(6):
        cost = divergence(lazily, moved, y)
        (slope,) = torch.autograd.grad(cost, moved)
        costs.append(cost.item())
        with torch.no_grad():
            moved -= 0.8 * len(x) * slope  # len(x): each point has the weight 1 / len(x)
    costs.append(divergence(lazily, moved.detach(), y).item())
    print(
        f"  {len(costs) - 1} steps in {time.perf_counter() - begun:.2f} s, "
        + " ".join(f"{c:.5f}" for c in costs)
    )
    if not costs[-1] < 0.01 * costs[0]:
        sys.exit("the flow should end near the target")
    return 0


def lazily(eps: float, x: Tensor, y: Tensor, h: Tensor) -> Tensor:
    found: Tensor = -eps * (Vj(h) - Vi(x).sqdist(Vj(y)) / (2 * eps)).logsumexp(axis=1)
    return found


def densely(eps: float, x: Tensor, y: Tensor, h: Tensor) -> Tensor:
    cost = (x.square().sum(-1, keepdim=True) + y.square().sum(-1)) / 2 - x @ y.T
    return -eps * (h[:, 0] - cost / eps).logsumexp(1, keepdim=True)


def potentials(softmin: Softmin, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The dual potentials of two clouds of equal weights, from a large blur to a small one."""
    log_m, log_n = -math.log(len(x)), -math.log(len(y))
    f, g = (torch.zeros(len(points), 1, dtype=x.dtype) for points in (x, y))
    blurs = [DIAMETER]
    while blurs[-1] > BLUR:
        blurs.append(max(BLUR, SCALING * blurs[-1]))
    for eps in [blur**2 for blur in [*blurs, *10 * [BLUR]]]:
        new_f, new_g = softmin(eps, x, y, log_n + g / eps), softmin(eps, y, x, log_m + f / eps)
        f, g = (f + new_f) / 2, (g + new_g) / 2
    return f, g


def transport(softmin: Softmin, x: Tensor, y: Tensor) -> Tensor:
    """The dual cost. At the optimum a potential has no say in the gradient, so only the last step is followed."""
    with torch.no_grad():
        f, g = potentials(softmin, x, y)
    eps, log_m, log_n = BLUR**2, -math.log(len(x)), -math.log(len(y))
    last_f, last_g = (
        softmin(eps, x, y.detach(), log_n + g / eps),
        softmin(eps, y, x.detach(), log_m + f / eps),
    )
    return last_f.mean() + last_g.mean()


def divergence(softmin: Softmin, x: Tensor, y: Tensor) -> Tensor:
    """The transport from x to y, less what it takes from each to itself: 0 when the two are the same."""
    return transport(softmin, x, y) - (transport(softmin, x, x) + transport(softmin, y, y)) / 2


def ring(count: int) -> Any:
    turn, out = 2 * np.pi * RNG.random(count), 0.3 + 0.08 * RNG.random(count)
    return 0.35 + np.stack([out * np.cos(turn), out * np.sin(turn)], axis=1)


def bars(count: int) -> Any:
    upright = RNG.integers(0, 2, count)[:, None]
    across, along = 0.1 * RNG.random((count, 1)), RNG.random((count, 1))
    bar = np.hstack([across, along])
    return np.where(upright, bar + np.array([1.0, 0.0]), bar[:, ::-1] + np.array([0.5, 0.5]))


def check(what: str, found: Any, truth: Any, tolerance: float = 1e-9) -> None:
    """Print how far apart the two are; end the script where that is too far."""
    if np.shape(found) != np.shape(truth):
        sys.exit(f"{what}: the shape is {np.shape(found)} and should be {np.shape(truth)}")
    error = np.abs(np.asarray(found) - np.asarray(truth)).max() / np.abs(np.asarray(truth)).max()
    if not error <= tolerance:
        sys.exit(f"{what}: wrong, the relative error is {error:.1e}")
    print(f"  {what}: relative error {error:.0e}")


if __name__ == "__main__":
    sys.exit(main())
