"""A Gaussian mixture fitted by gradient: its log-likelihood is a log-sum-exp, and autograd goes through it.

Value and gradient are compared with dense PyTorch, the fit with scikit-learn's EM: python examples/torch_gmm.py
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from farsum.torch import Vi, Vj

COMPONENTS, STEPS = 5, 40


class Mixture(torch.nn.Module):
    """Gaussians of D = 2 dimensions: means, square roots of their precisions, and logits of their weights."""

    def __init__(self, means: Tensor, scale: float) -> None:
        super().__init__()
        count, dim = means.shape
        self.means = torch.nn.Parameter(means.clone())
        self.roots = torch.nn.Parameter(torch.eye(dim).repeat(count, 1, 1).double() / scale)
        self.logits = torch.nn.Parameter(torch.zeros(count).double())

    def offsets(self) -> Tensor:
        """What is added to each exponent: log w_j + log det of the root - log 2 pi."""
        (a, b), (c, d) = self.roots.permute(1, 2, 0)
        return self.logits.log_softmax(0) + (a * d - b * c).abs().log() - math.log(2 * math.pi)

    def densities(self, x: Tensor) -> Tensor:
        """log p(x_i) = log sum_j exp(offset_j - |A_j (x_i - m_j)|² / 2): (M, D) -> (M,)."""
        apart = Vj(self.roots.flatten(1)).matvecmult(Vi(x) - Vj(self.means))
        exponents = Vj(self.offsets()[:, None]) - (apart**2).sum(-1) / 2
        found: Tensor = exponents.logsumexp(axis=1)[:, 0]
        return found

    def dense(self, x: Tensor) -> Tensor:
        apart = torch.einsum("jkl,ijl->ijk", self.roots, x[:, None] - self.means)
        return (self.offsets() - apart.square().sum(-1) / 2).logsumexp(1)


def main() -> int:
    rng = np.random.default_rng(1)
    x = torch.from_numpy(petals(rng, 600))
    starts = x[torch.from_numpy(rng.choice(len(x), COMPONENTS, replace=False))]

    model = Mixture(starts, scale=0.3)
    first = compared(model, x, "at the start")
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value: Tensor = -model.densities(x).mean()
        value.backward()
        return value

    begun = time.perf_counter()
    optimiser.step(loss)
    took = time.perf_counter() - begun
    last = compared(model, x, "after the fit")
    print(f"  {len(x):,} points in {took:.2f} s: mean log-likelihood {first:.3f}, then {last:.3f}")

    # From here expectation-maximisation should find nothing to gain.
    mixture = GaussianMixture(
        COMPONENTS,
        weights_init=model.logits.softmax(0).detach().numpy(),
        means_init=model.means.detach().numpy(),
        precisions_init=(model.roots.mT @ model.roots).detach().numpy(),
        max_iter=500,
    )
    check("log-likelihood, next to scikit-learn's EM", last, mixture.fit(x.numpy()).score(x.numpy()), 0.01)

    # The share that each component has in each point is a soft-max over the same exponents.
    with torch.no_grad():
        apart = Vj(model.roots.flatten(1)).matvecmult(Vi(x) - Vj(model.means))
        exponents = Vj(model.offsets()[:, None]) - (apart**2).sum(-1) / 2
        drawn = exponents.sumsoftmaxweight(Vj(model.means), axis=1)
        dense = torch.einsum("jkl,ijl->ijk", model.roots, x[:, None] - model.means)
        shares = (model.offsets() - dense.square().sum(-1) / 2).softmax(1)
        check("the mean that each point is drawn to", drawn, shares @ model.means)
    return 0


def compared(model: Mixture, x: Tensor, when: str) -> float:
    """The mean log-likelihood; ends the script where it or a gradient is not what dense PyTorch finds."""
    parameters = dict(model.named_parameters())
    found, truth = model.densities(x), model.dense(x)
    check(f"log-densities {when}", found.detach(), truth.detach())
    gradients = [torch.autograd.grad(p.mean(), list(parameters.values())) for p in (found, truth)]
    for name, mine, theirs in zip(parameters, *gradients, strict=True):
        check(f"gradient by the {name} {when}", mine, theirs)
    return found.mean().item()


def petals(rng: np.random.Generator, count: int) -> Any:
    """Points in long clouds around the origin, one for each component."""
    turn = 2 * np.pi * rng.integers(0, COMPONENTS, count) / COMPONENTS
    out, across = 1 + 0.3 * rng.standard_normal(count), 0.1 * rng.standard_normal(count)
    cos, sin = np.cos(turn), np.sin(turn)
    return np.stack([out * cos - across * sin, out * sin + across * cos], axis=1)


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
