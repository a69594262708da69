"""Kernel interpolation whose width and ridge are learnt: the gradient goes through the solution of the system.

Solutions and gradients are compared with torch.linalg.solve: python examples/torch_interpolation.py
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from farsum.torch import KernelSolve, LazyTensor, Vi, Vj

RNG = np.random.default_rng(5)
SOLVE = KernelSolve(
    "Exp(-g * SqDist(x, y)) * b", ["x = Vi(2)", "y = Vj(2)", "b = Vj(1)", "g = Pm(1)"], "b", axis=1
)


def main() -> int:
    x, b = measured(260)
    seen, left_out = slice(0, 200), slice(200, 260)
    log_g, log_alpha = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (2.0, 0.0))

    def error(value: Any) -> Tensor:
        """The mean square error at the points that are left out, of the values predicted from the others."""
        predicted = value(x[seen], b[seen], x[left_out], log_g.exp(), log_alpha.exp())
        return (predicted - b[left_out]).square().mean()

    same_gradients("by symbols", error(lazily), error(densely), [log_g, log_alpha])
    same_gradients("by KernelSolve", error(as_text), error(densely), [log_g, log_alpha])

    def value_and_slope(logs: Any) -> tuple[float, Any]:
        with torch.no_grad():
            log_g[:], log_alpha[:] = torch.from_numpy(logs)
        value = error(lazily)
        return value.item(), np.concatenate(torch.autograd.grad(value, [log_g, log_alpha]))

    begun, start = time.perf_counter(), np.array([log_g.item(), log_alpha.item()])
    first, _ = value_and_slope(start)
    best = minimize(value_and_slope, start, jac=True, method="L-BFGS-B", options={"maxiter": 8})
    last, _ = value_and_slope(best.x)
    took = time.perf_counter() - begun
    with torch.no_grad():
        width, alpha = float(log_g.exp() ** -0.5), float(log_alpha.exp())
        grid = torch.rand(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        held = (x[seen], b[seen], grid, log_g.exp(), log_alpha.exp())
        check("values at new points", lazily(*held), densely(*held))
        away = float((lazily(*held) - wave(grid)).square().mean().sqrt())
    print(f"  learnt in {took:.2f} s: width {width:.2f}, ridge {alpha:.0e}")
    print(f"  error at the points left out: {first:.4f} before, {last:.4f} after; the noise alone is 0.01")
    print(f"  from the clean wave: {away:.2f}")
    if not (last < 0.2 * first and away < 0.1):
        sys.exit("the learnt kernel should predict much better than the first one, and follow the wave")
    return 0


def lazily(x: Tensor, b: Tensor, t: Tensor, g: Tensor, alpha: Tensor) -> Tensor:
    """The values at t of the function that passes by b at x: K(t, x) (K(x, x) + alpha)⁻¹ b."""
    found: Tensor = gaussian(Vi(t), Vj(x), g) @ gaussian(Vi(x), Vj(x), g).solve(Vi(b), alpha=alpha, eps=1e-10)
    return found


def as_text(x: Tensor, b: Tensor, t: Tensor, g: Tensor, alpha: Tensor) -> Tensor:
    found: Tensor = gaussian(Vi(t), Vj(x), g) @ SOLVE(x, x, b, g, alpha=alpha, eps=1e-10)
    return found


def densely(x: Tensor, b: Tensor, t: Tensor, g: Tensor, alpha: Tensor) -> Tensor:
    K_xx, K_tx = (torch.exp(-g * (rows[:, None] - x).square().sum(-1)) for rows in (x, t))
    return K_tx @ torch.linalg.solve(K_xx + alpha * torch.eye(len(x), dtype=x.dtype), b)


def gaussian(x_i: LazyTensor, y_j: LazyTensor, g: Tensor) -> LazyTensor:
    return (-g * x_i.sqdist(y_j)).exp()


def same_gradients(what: str, found: Tensor, truth: Tensor, by: list[Tensor]) -> None:
    check(f"error at the points left out, {what}", found.detach(), truth.detach())
    mine, theirs = (torch.stack(torch.autograd.grad(e, by)) for e in (found, truth))
    check(f"its gradient in width and ridge, {what}", mine, theirs, 1e-5)


def measured(count: int) -> tuple[Tensor, Tensor]:
    """Points in the unit square, and noisy values of a wave there."""
    x = torch.from_numpy(RNG.random((count, 2)))
    return x, wave(x) + 0.1 * torch.from_numpy(RNG.standard_normal((count, 1)))


def wave(x: Tensor) -> Tensor:
    return torch.sin(7 * x[:, :1]) * torch.cos(9 * x[:, 1:])


def check(what: str, found: Any, truth: Any, tolerance: float = 1e-6) -> None:
    """Print how far apart the two are; end the script where that is too far."""
    if np.shape(found) != np.shape(truth):
        sys.exit(f"{what}: the shape is {np.shape(found)} and should be {np.shape(truth)}")
    error = np.abs(np.asarray(found) - np.asarray(truth)).max() / np.abs(np.asarray(truth)).max()
    if not error <= tolerance:
        sys.exit(f"{what}: wrong, the relative error is {error:.1e}")
    print(f"  {what}: relative error {error:.0e}")


if __name__ == "__main__":
    sys.exit(main())
