"""Eigenvalues of a lazy matrix of tensors: their values, their first derivative, and what has none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from farsum.torch import LazyTensor, Vi, Vj
from farsum_kernels.errors import NoDerivative

mark = pytest.mark
generator = torch.Generator().manual_seed(0)
points = torch.rand(40, 2, generator=generator, dtype=torch.float64)
width = torch.tensor([0.5], dtype=torch.float64)


def lazily(x: torch.Tensor, s: torch.Tensor) -> Any:
    found: LazyTensor = (-Vi(x).sqdist(Vj(x)) / s**2).exp()
    return found


def densely(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    return torch.exp(-(x[:, None] - x).square().sum(-1) / s**2)


def followed() -> tuple[torch.Tensor, torch.Tensor]:
    return points.clone().requires_grad_(), width.clone().requires_grad_()


def test_eigenvalues_have_the_gradient_of_the_dense_ones() -> None:
    inputs, weights = followed(), torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    values, vectors = lazily(*inputs).eigsh(3)
    truth = torch.linalg.eigvalsh(densely(*inputs))[-3:]
    torch.testing.assert_close(values, truth)
    assert values.requires_grad and vectors.shape == (40, 3)
    gradients = [torch.autograd.grad((v * weights).sum(), inputs) for v in (values, truth)]
    for found, want in zip(*gradients, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-8, atol=1e-8)


def test_half_precision_and_a_tensor_that_is_not_followed() -> None:
    x, s = followed()
    values, _ = lazily(x, s.detach()).eigsh(1)
    truth = torch.linalg.eigvalsh(densely(x, s.detach()))[-1:]
    (want,) = torch.autograd.grad(truth.sum(), x)
    torch.testing.assert_close(torch.autograd.grad(values.sum(), x)[0], want, rtol=1e-8, atol=1e-8)
    half = points.to(torch.bfloat16).requires_grad_()
    values, _ = lazily(half, width.to(torch.bfloat16)).eigsh(1)
    (found,) = torch.autograd.grad(values.sum(), half)
    assert values.dtype == found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), want, rtol=0.05, atol=0.05 * float(want.abs().max()))


def test_without_gradients_nothing_is_recorded() -> None:
    with torch.no_grad():
        values, vectors = lazily(*followed()).eigsh(2)
    assert not values.requires_grad and not vectors.requires_grad
    K = densely(points, width)
    torch.testing.assert_close(K @ vectors, vectors * values, rtol=1e-8, atol=1e-8)


def of_vectors(x: Any, values: Any, vectors: Any) -> None:
    (values.sum() + vectors.sum()).backward()


def twice(x: Any, values: Any, vectors: Any) -> None:
    (slope,) = torch.autograd.grad(values.sum(), x, create_graph=True)
    assert slope.isfinite().all()
    slope.square().sum().backward()


@mark.parametrize(
    ("wanted", "error", "words"),
    [(of_vectors, NoDerivative, "eigenvectors have no derivative"), (twice, NoDerivative, "no second one")],
)  # fmt: skip
def test_what_has_no_derivative_says_so(wanted: Any, error: type[Exception], words: str) -> None:
    x, s = followed()
    with pytest.raises(error, match=words):
        wanted(x, *lazily(x, s).eigsh(2))


def test_forward_mode_is_refused() -> None:
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(points, torch.ones_like(points))
        with pytest.raises(RuntimeError, match="forward"):
            lazily(x, width).eigsh(2)
