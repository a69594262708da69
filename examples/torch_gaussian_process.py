"""Gaussian process regression: hyperparameters by the gradient of the marginal likelihood, from products and solutions.

Likelihood, gradients and predictions are compared with dense PyTorch: python examples/torch_gaussian_process.py
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farsum.torch import LazyTensor, Vi, Vj

POINTS, PROBES, STEPS, EPS = 160, 10, 25, 1e-9
RNG = np.random.default_rng(7)
EYE = torch.eye(POINTS, dtype=torch.float64)


def logarithm(value: float) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([math.log(value)], dtype=torch.float64))


class Process(torch.nn.Module):
    """A Gaussian process with a Matérn kernel: logarithms of its length, its scale and the variance of the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.length, self.scale, self.noise = map(logarithm, (1.0, 1.0, 0.1))

    def covariance(self, x: Tensor, y: Tensor) -> LazyTensor:
        """s (1 + r) exp(-r) with r = sqrt(3) |x_i - y_j| / length."""
        r = 3**0.5 * (Vi(x) - Vj(y)).norm2() * (-self.length).exp()
        found: LazyTensor = self.scale.exp() * (1 + r) * (-r).exp()
        return found

    def dense(self, x: Tensor, y: Tensor) -> Tensor:
        apart = (x[:, None] - y).square().sum(-1)
        # sqrt has no derivative at 0, where the product below has one, 0.
        r = 3**0.5 * torch.where(apart > 0, apart, 1).sqrt() * (apart > 0) * (-self.length).exp()
        return self.scale.exp() * (1 + r) * (-r).exp()

    def solved(self, x: Tensor, b: Tensor) -> Tensor:
        """(K + noise)⁻¹ b by conjugate gradients."""
        found: Tensor = self.covariance(x, x).solve(Vi(b), alpha=self.noise.exp(), eps=EPS)
        return found

    def objective(self, x: Tensor, b: Tensor, probes: Tensor) -> Tensor:
        """A number with the gradient of minus the log-likelihood, over POINTS; its value is not that of the likelihood.

        That of b' A⁻¹ b goes through the solution. That of log det A is the trace of A⁻¹ dA, which is the mean of
        z' A⁻¹ dA z over probes z of independent signs (Hutchinson): A⁻¹ z is held, A z followed.
        """
        fit = (b * self.solved(x, b)).sum()
        with torch.no_grad():
            held = self.solved(x, probes)
        followed = self.covariance(x, x) @ probes + self.noise.exp() * probes
        trace = (held * followed).sum() * POINTS / probes.square().sum()
        return (fit + trace) / (2 * POINTS)

    def likelihood(self, x: Tensor, b: Tensor) -> Tensor:
        """Minus the log-likelihood over POINTS, by a dense Cholesky decomposition."""
        root = torch.linalg.cholesky(self.dense(x, x) + self.noise.exp() * EYE)
        fit = (b * torch.cholesky_solve(b, root)).sum()
        return (fit / 2 + root.diagonal().log().sum()) / POINTS + math.log(2 * math.pi) / 2


def main() -> int:
    x, b = measured(POINTS)
    model = Process()
    parameters = dict(model.named_parameters())

    # With N orthogonal probes the trace is exact.
    exact = model.objective(x, b, EYE)
    slopes = torch.autograd.grad(exact, list(parameters.values()))
    truth = torch.autograd.grad(model.likelihood(x, b), list(parameters.values()))
    for name, mine, theirs in zip(parameters, slopes, truth, strict=True):
        check(f"slope of the likelihood in the {name}", mine, theirs)

    begun, first = time.perf_counter(), model.likelihood(x, b).item()
    for _ in range(STEPS):
        probes = torch.from_numpy(RNG.choice([-1.0, 1.0], (POINTS, PROBES)))
        slopes = torch.autograd.grad(model.objective(x, b, probes), list(parameters.values()))
        with torch.no_grad():
            for parameter, slope in zip(parameters.values(), slopes, strict=True):
                parameter.sub_(slope)
    took, last = time.perf_counter() - begun, model.likelihood(x, b).item()
    learnt = ", ".join(f"{name} {parameter.exp().item():.3f}" for name, parameter in parameters.items())
    print(f"  {STEPS} steps with {PROBES} probes in {took:.2f} s: {learnt}")
    print(f"  log-likelihood per point: {-first:.3f} before, {-last:.3f} after")

    t = torch.linspace(-0.2, 1.2, 100, dtype=torch.float64)[:, None]
    with torch.no_grad():
        mean, variance = predicted(model, x, b, t)
        K, K_t = model.dense(x, x) + model.noise.exp() * EYE, model.dense(t, x)
        check("mean of the prediction", mean, K_t @ torch.linalg.solve(K, b), 1e-6)
        drop = (K_t * torch.linalg.solve(K, K_t.T).T).sum(1, keepdim=True)
        check("its variance", variance, model.scale.exp() - drop, 1e-6)
        inside = (t[:, 0] > 0) & (t[:, 0] < 1)
        away = ((mean - wave(t))[inside].abs() / variance[inside].sqrt()).mean().item()
        noise = model.noise.exp().item()
    print(f"  from the clean wave: {away:.2f} standard deviations of the prediction")
    if not (last < first - 0.2 and away < 1.5 and 0.02 < noise < 0.08):
        sys.exit("what is learnt should explain the values, with a noise of variance 0.04")
    return 0


def predicted(model: Process, x: Tensor, b: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the function at new points, given noisy values b at x."""
    K_tx = model.covariance(t, x)
    mean = K_tx @ model.solved(x, b)
    # K(x, t) for every new point is a right-hand side of its own.
    columns: Any = model.covariance(x, t).dense()
    explained = K_tx @ model.solved(x, columns)
    return mean, model.scale.exp() - explained.diagonal()[:, None]


def measured(count: int) -> tuple[Tensor, Tensor]:
    """Points on a line, and noisy values of a wave there."""
    x = torch.from_numpy(RNG.random((count, 1)))
    return x, wave(x) + 0.2 * torch.from_numpy(RNG.standard_normal((count, 1)))


def wave(x: Tensor) -> Tensor:
    return torch.sin(12 * x) + 0.5 * torch.cos(25 * x)


def check(what: str, found: Any, truth: Any, tolerance: float = 1e-7) -> None:
    """Print how far apart the two are; end the script where that is too far."""
    if np.shape(found) != np.shape(truth):
        sys.exit(f"{what}: the shape is {np.shape(found)} and should be {np.shape(truth)}")
    error = np.abs(np.asarray(found) - np.asarray(truth)).max() / np.abs(np.asarray(truth)).max()
    if not error <= tolerance:
        sys.exit(f"{what}: wrong, the relative error is {error:.1e}")
    print(f"  {what}: relative error {error:.0e}")


if __name__ == "__main__":
    sys.exit(main())
