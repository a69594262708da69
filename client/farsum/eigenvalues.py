"""Eigenvalues of a lazy matrix of tensors as a function that PyTorch differentiates, once. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from farsum.autograd import followed
from farsum_kernels.errors import NoDerivative

Pairs = tuple[Tensor, Tensor]


def differentiated(
    find: Callable[[], Pairs],
    product: Callable[[Sequence[Tensor], Tensor], Tensor],
    tensors: Sequence[Tensor],
) -> Pairs:
    """Eigenvalues (k,) and eigenvectors (N, k) of a symmetric K that stands on these tensors.

    find      gives both
    product   K @ v for other tensors in place of these
    """
    if not followed(tensors):
        return find()
    found: Pairs = Eigenvalues.apply(find, product, *tensors)  # type: ignore[no-untyped-call]
    return found


class Eigenvalues(Function):
    """Eigenvalues.apply(find, product, *tensors). Of an eigenvalue that stands alone, dλ = v' dK v with |v| = 1."""

    @staticmethod
    def forward(ctx: Any, find: Callable[[], Pairs], product: Any, *tensors: Tensor) -> Pairs:
        ctx.product = product
        ctx.set_materialize_grads(False)
        values, vectors = find()
        ctx.save_for_backward(*tensors, vectors)
        return values, vectors

    @staticmethod
    def backward(ctx: Any, e: Tensor | None, of_vectors: Tensor | None) -> tuple[Tensor | None, ...]:
        if of_vectors is not None:
            raise NoDerivative(
                "eigsh: eigenvectors have no derivative here, eigenvalues have one; detach the eigenvectors"
            )
        *tensors, vectors = ctx.saved_tensors
        if e is None:
            return None, None, *(None for _ in tensors)
        needs = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            held = [x.detach().requires_grad_(need) for x, need in zip(tensors, needs, strict=True)]
            moved = ctx.product(held, vectors)
        wanted = [x for x in held if x.requires_grad]
        slopes = torch.autograd.grad(moved, wanted, vectors * e, allow_unused=True)
        if torch.is_grad_enabled():  # somebody may ask for a second derivative
            slopes = tuple(x if x is None else Once.apply(x, e, *tensors) for x in slopes)  # type: ignore[no-untyped-call]
        found = iter(slopes)
        return None, None, *(next(found) if need else None for need in needs)


class Once(Function):
    """Once.apply(x, *tensors): x, which depends on the tensors in a way that is not differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *tensors: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, e: Tensor) -> Any:
        raise NoDerivative("eigsh: eigenvalues have a first derivative here, and no second one")
