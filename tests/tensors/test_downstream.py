"""Libraries written for pykeops, as they are on PyPI, on our engine: they agree with their own dense computations."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow]

START = """
import farsum.pykeops_alias as alias; alias.install()
import torch, warnings
warnings.simplefilter("ignore")
torch.manual_seed(0)
"""


def runs(script: str) -> None:
    command = [sys.executable, "-c", START + script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("loss", ["sinkhorn", "gaussian", "laplacian", "energy"])
def test_geomloss_online_and_multiscale(loss: str) -> None:
    # The multiscale backend leaves out what is far: its gradients are those of the others to a per cent or so.
    runs(f"""
from geomloss import SamplesLoss
x, y = torch.rand(300, 2, requires_grad=True), torch.rand(400, 2)
def gradient(backend):
    value = SamplesLoss({loss!r}, p=2, blur=0.05, backend=backend)(x, y)
    return value, torch.autograd.grad(value, x)[0]
want, slope = gradient("tensorized")
for backend, near in (("online", 1e-3), ("multiscale", 3e-2)):
    value, found = gradient(backend)
    assert abs(value - want) <= near * want, (backend, value, want)
    assert (found - slope).norm() <= near * slope.norm(), (backend, (found - slope).norm() / slope.norm())
""")


KERNELS = [("RBFKernel", {}), ("MaternKernel", {"nu": 0.5}), ("MaternKernel", {"nu": 1.5}), ("MaternKernel", {"nu": 2.5}),
           ("PeriodicKernel", {})]  # fmt: skip


@pytest.mark.parametrize(("kernel", "options"), KERNELS)
def test_gpytorch_keops_kernels(kernel: str, options: dict[str, float]) -> None:
    """The marginal likelihood of a Gaussian process and its gradient in every parameter."""
    runs(f"""
import gpytorch
from gpytorch import kernels, settings
x = torch.rand(200, 3, dtype=torch.float64)
y = torch.sin(4 * x.sum(-1))
class Process(gpytorch.models.ExactGP):
    def __init__(self, kernel, likelihood):
        super().__init__(x, y, likelihood)
        self.mean, self.kernel = gpytorch.means.ConstantMean(), kernels.ScaleKernel(kernel)
    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))
def likelihood(module):
    noise = gpytorch.likelihoods.GaussianLikelihood()
    process = Process(getattr(module, {kernel!r})(**{options!r}), noise).double()
    torch.manual_seed(1)
    with settings.max_cholesky_size(1), settings.cg_tolerance(1e-8), settings.max_cg_iterations(1000), \\
         settings.num_trace_samples(4), settings.max_preconditioner_size(0):
        value = gpytorch.mlls.ExactMarginalLogLikelihood(noise, process)(process(x), y)
        value.backward()
    return [value.detach().reshape(()), *(p.grad.sum() for p in process.parameters())]
for found, want in zip(likelihood(kernels.keops), likelihood(kernels), strict=True):
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-7)
""")
