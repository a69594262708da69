"""What GeomLoss and GPyTorch compute with a KeOps engine, as numbers in a file.

python downstream.py (geomloss | gpytorch) FILE.npz [--alias]    with pykeops, or with farsum in its place
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

Numbers = Iterator[tuple[str, Tensor]]  # what was computed, under its names

LOSSES: dict[str, dict[str, Any]] = {
    "sinkhorn-online": {"loss": "sinkhorn", "p": 2, "blur": 0.05, "backend": "online"},
    "sinkhorn-online-p1": {"loss": "sinkhorn", "p": 1, "blur": 0.05, "backend": "online"},
    "sinkhorn-online-unbalanced": {
        "loss": "sinkhorn",
        "p": 2,
        "blur": 0.1,
        "reach": 0.5,
        "backend": "online",
    },
    "sinkhorn-online-biased": {
        "loss": "sinkhorn",
        "p": 2,
        "blur": 0.1,
        "debias": False,
        "backend": "online",
    },
    "sinkhorn-multiscale": {"loss": "sinkhorn", "p": 2, "blur": 0.05, "backend": "multiscale"},
    "sinkhorn-multiscale-p1": {"loss": "sinkhorn", "p": 1, "blur": 0.05, "backend": "multiscale"},
    "gaussian-online": {"loss": "gaussian", "blur": 0.3, "backend": "online"},
    "gaussian-multiscale": {"loss": "gaussian", "blur": 0.1, "truncate": 5, "backend": "multiscale"},
    "laplacian-online": {"loss": "laplacian", "blur": 0.3, "backend": "online"},
    "laplacian-multiscale": {"loss": "laplacian", "blur": 0.05, "truncate": 5, "backend": "multiscale"},
    "energy-online": {"loss": "energy", "backend": "online"},
    "energy-multiscale": {"loss": "energy", "backend": "multiscale"},
}

KERNELS: dict[str, tuple[str, dict[str, Any]]] = {
    "rbf": ("RBFKernel", {}),
    "rbf-ard": ("RBFKernel", {"ard_num_dims": 3}),
    "matern-1/2": ("MaternKernel", {"nu": 0.5}),
    "matern-3/2": ("MaternKernel", {"nu": 1.5}),
    "matern-5/2": ("MaternKernel", {"nu": 2.5}),
    "periodic": ("PeriodicKernel", {}),
}


# ── GeomLoss ──────────────────────────────────────────────────────────────────────────────────────


def clouds(dtype: torch.dtype) -> list[Tensor]:
    """Weights and points of two measures of the same mass, in the order that SamplesLoss takes."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(n, generator=generator, dtype=torch.float64) + 0.5 for n in (250, 300))
    x, y = (torch.rand(n, 2, generator=generator, dtype=torch.float64) for n in (250, 300))
    return [z.to(dtype).requires_grad_() for z in (a / a.sum(), x, b / b.sum(), 0.7 * y**2 + 0.2)]


def distance(options: dict[str, Any]) -> Numbers:
    """A loss between two clouds, and its gradient in weights and points."""
    samples_loss = importlib.import_module("geomloss").SamplesLoss
    inputs = clouds(torch.float64)
    value = samples_loss(**options)(*inputs)
    yield "value", value
    for name, slope in zip("axby", torch.autograd.grad(value, inputs), strict=True):
        yield f"gradient by {name}", slope


def potentials() -> Numbers:
    """The dual potentials of the transport, and those of a batch."""
    samples_loss = importlib.import_module("geomloss").SamplesLoss
    a, x, b, y = (z.detach() for z in clouds(torch.float64))
    loss = samples_loss("sinkhorn", p=2, blur=0.1, potentials=True, backend="online")
    yield from zip("FG", loss(a, x, b, y), strict=True)
    pairs = [torch.stack([z, z.flip(0)]).requires_grad_() for z in (a, x, b, y)]
    value = samples_loss("sinkhorn", p=2, blur=0.1, backend="online")(*pairs)
    yield "values of a batch", value
    yield "gradient of a batch", torch.autograd.grad(value.sum(), pairs[1])[0]


def flow(loss: str) -> Numbers:
    """A gradient flow, after the gallery of GeomLoss: points that descend a loss."""
    samples_loss = importlib.import_module("geomloss").SamplesLoss
    _, x, _, y = (z.detach() for z in clouds(torch.float32))
    distance = samples_loss(loss, p=2, blur=0.1, backend="online")
    for step in range(6):
        x.requires_grad_()
        value = distance(x, y)
        x = (x - 0.5 * len(x) * torch.autograd.grad(value, x)[0]).detach()
        yield f"value {step}", value
    yield "points at the end", x


def curvature() -> Numbers:
    """A second derivative through the kernel norm."""
    samples_loss = importlib.import_module("geomloss").SamplesLoss
    _, x, _, y = clouds(torch.float64)
    value = samples_loss("gaussian", blur=0.4, backend="online")(x, y)
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    for name, second in zip("xy", torch.autograd.grad(slope.square().sum(), (x, y)), strict=True):
        yield f"of the slope by {name}", second


# ── GPyTorch ──────────────────────────────────────────────────────────────────────────────────────


def process(kernel: str, options: dict[str, Any]) -> Numbers:
    """Gaussian process regression after GPyTorch's KeOps tutorial: a few steps of Adam, then predictions."""
    gpytorch: Any = importlib.import_module("gpytorch")
    kernels, settings = gpytorch.kernels, gpytorch.settings
    generator = torch.Generator().manual_seed(1)
    x, t = (torch.rand(n, 3, generator=generator, dtype=torch.float64) for n in (150, 40))
    y = torch.sin(4 * x.sum(-1)) + 0.1 * torch.randn(150, generator=generator, dtype=torch.float64)

    class Process(gpytorch.models.ExactGP):  # type: ignore[misc]
        def __init__(self, likelihood: Any) -> None:
            super().__init__(x, y, likelihood)
            self.mean = gpytorch.means.ConstantMean()
            self.kernel = kernels.ScaleKernel(getattr(kernels.keops, kernel)(**options))

        def forward(self, x: Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = Process(likelihood).double()
    torch.manual_seed(2)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    with (
        settings.max_cholesky_size(2), settings.cg_tolerance(1e-6), settings.eval_cg_tolerance(1e-6),
        settings.max_cg_iterations(200), settings.num_trace_samples(4), settings.max_preconditioner_size(0),
    ):  # fmt: skip
        covariance = model.kernel(x, t)
        yield "exact: covariance times a matrix", covariance @ t
        yield "exact: diagonal", model.kernel(x).diagonal(dim1=-1, dim2=-2)
        for step in range(4):
            optimiser.zero_grad()
            value = -objective(model(x), y)
            value.backward()
            yield f"likelihood {step}", value
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                yield f"gradient {step} by {name}", parameter.grad.clone()
            optimiser.step()
        model.eval()
        likelihood.eval()
        found = likelihood(model(t))
        yield "mean at new points", found.mean
        yield "variance at new points", found.variance


# ── the cases ─────────────────────────────────────────────────────────────────────────────────────

CASES: dict[str, dict[str, Callable[[], Numbers]]] = {
    "geomloss": {
        **{name: partial(distance, options) for name, options in LOSSES.items()},
        "potentials": potentials,
        **{f"flow-{loss}": partial(flow, loss) for loss in ("sinkhorn", "gaussian", "energy")},
        "curvature": curvature,
    },
    "gpytorch": {name: partial(process, *which) for name, which in KERNELS.items()},
}


def main(library: str, path: str, *, alias: bool) -> None:
    if alias:
        from farsum import pykeops_alias

        pykeops_alias.install()
    warnings.simplefilter("ignore")
    engine = importlib.import_module("pykeops.torch").LazyTensor.__module__
    found: dict[str, Any] = {"engine": np.array(engine)}
    for case, compute in CASES[library].items():
        try:
            for name, numbers in compute():
                found[f"{case}: {name}"] = numbers.detach().numpy()
        except Exception as error:  # the other cases are compared all the same
            found[f"{case}: error"] = np.array(f"{type(error).__name__}: {error}")
    np.savez(path, **found)


if __name__ == "__main__":
    main(*sys.argv[1:3], alias="--alias" in sys.argv)
