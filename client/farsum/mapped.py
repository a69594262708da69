"""A mapped axis of tensors, that of `vmap`, as a batch axis of one job. Knows no formula's numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from farsum.tensors import Tensor, in_front
from farsum_kernels.formula.expr import Expr, P


def batched(tensors: Sequence[Tensor], dims: Sequence[int | None], inputs: Iterable[Expr]) -> list[Tensor]:
    """The tensors of these variables with their mapped axes as a first batch axis, in line with all other batches."""
    own = [1 if v.params[2] == P else 2 for v in inputs]
    mapped = list(zip(tensors, dims, own, strict=True))
    rank = max(x.ndim - n - (d is not None) for x, d, n in mapped)
    return [x if d is None else _first(x, d, rank + n) for x, d, n in mapped]


def each_of(tensors: Sequence[Tensor], dims: Sequence[int | None], k: Any) -> list[Tensor]:
    """The tensors at one place of their mapped axes."""
    return [x if d is None else in_front(x, d)[k] for x, d in zip(tensors, dims, strict=True)]


def _first(x: Tensor, d: int, rank: int) -> Tensor:
    """Axis d as the first, and after it as many axes of 1 as it takes to leave `rank` axes behind it."""
    x = in_front(x, d)
    return x.reshape(x.shape[0], *(1,) * (rank + 1 - x.ndim), *x.shape[1:])
