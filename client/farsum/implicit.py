"""The solution of a linear system of tensors as a function that PyTorch differentiates: no iteration is unrolled.

From (alpha + A)·a = b follows (alpha + A)·da = db - dA·a - dalpha·a, and A is symmetric: every derivative is one
more solution of the same system, and a derivative of A·p. Imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import Function

from farsum.arrays import as_ranges
from farsum.autograd import batched, each_of, outer_tangents, primal
from farsum.compute import Call
from farsum.gradient import pull, push
from farsum.systems import System
from farsum.tensors import recast, to_numpy, to_tensor
from farsum_kernels.errors import OperandError
from farsum_kernels.job import Spec

_NARROW = ("float16", "bfloat16")


def solved(system: System, arrays: Mapping[int, Tensor], alpha: Any) -> Tensor:
    """The solution, of the shape and dtype of the right-hand side."""
    if system.keep:
        raise OperandError("keep leaves a handle, which is no tensor: of tensors come tensors")
    wide = system.computation.accuracy.wide and system.dtype != "float64"
    if wide or system.dtype in _NARROW:
        dtype = "float64" if wide else "float32"
        held = {n: recast(x, dtype) for n, x in arrays.items()}
        found: Tensor = recast(solved(replace(system, dtype=dtype), held, alpha), system.dtype)
        return found
    if isinstance(alpha, Tensor) and alpha.numel() != 1:
        raise OperandError(
            f"alpha is one number, or a tensor of one, not a tensor of shape {tuple(alpha.shape)}"
        )
    order = sorted(arrays)
    made: Tensor = Solve.apply(system, tuple(order), alpha, *(arrays[n] for n in order))  # type: ignore[no-untyped-call]
    return made


class Solve(Function):
    """Solve.apply(system, numbers of the tensors, alpha, *tensors); alpha a number, None or a tensor of one."""

    @staticmethod
    def forward(system: System, order: tuple[int, ...], alpha: Any, *tensors: Tensor) -> Tensor:
        arrays = {n: np.ascontiguousarray(to_numpy(x)) for n, x in zip(order, tensors, strict=True)}
        found: Tensor = to_tensor(
            system.solved(arrays, alpha.item() if isinstance(alpha, Tensor) else alpha),
            system.dtype,
            tensors[0].device,
        )
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.system, ctx.order, ctx.alpha, *tensors = inputs
        ctx.is_tensor = isinstance(ctx.alpha, Tensor)
        held = (*tensors, output, ctx.alpha) if ctx.is_tensor else (*tensors, output)
        ctx.alpha = None if ctx.is_tensor else ctx.alpha
        ctx.save_for_backward(*held)
        ctx.save_for_forward(*held)

    @staticmethod
    def backward(ctx: Any, e: Tensor) -> tuple[Any, ...]:
        system, arrays, a, alpha = _saved(ctx)
        g = system.solved({**arrays, system.unknown: e}, alpha)
        needs = dict(zip(ctx.order, ctx.needs_input_grad[3:], strict=True))
        wanted = [n for n in ctx.order if needs[n] and n != system.unknown]
        found = pull(*_map(system), {**arrays, system.unknown: a}, [None], [-g], wanted) if wanted else {}
        found[system.unknown] = g
        of_alpha = -(g * a).sum().reshape(alpha.shape).to(alpha.dtype) if ctx.needs_input_grad[2] else None
        return None, None, of_alpha, *(found[n] if needs[n] else None for n in ctx.order)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        with outer_tangents():
            system, arrays, a, alpha = _saved(ctx, primal)
            of_alpha, given = tangents[2], dict(zip(ctx.order, tangents[3:], strict=True))
            of_b = given.pop(system.unknown)
            rhs = torch.zeros_like(a) if of_b is None else of_b
            moved = {n: u for n, u in given.items() if u is not None}
            if moved:
                (change,) = push(*_map(system), {**arrays, system.unknown: a}, [None], moved, [a])
                rhs = rhs - change
            if of_alpha is not None:
                rhs = rhs - of_alpha.to(a.dtype) * a
            found: Tensor = system.solved({**arrays, system.unknown: rhs}, alpha)
            return found

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        system: System,
        order: tuple[int, ...],
        alpha: Any,
        *tensors: Tensor,
    ) -> tuple[Tensor, int]:
        """The mapped axis becomes the first batch axis; one by one with ranges or many alphas."""
        inputs = system.computation.spec(system.dtype).inputs
        if system.ranges is not None or in_dims[2] is not None:
            return torch.stack([
                system.solved(
                    dict(zip(order, each_of(tensors, in_dims[3:], k), strict=True)),
                    alpha if in_dims[2] is None else alpha.select(in_dims[2], k),
                )
                for k in range(info.batch_size)
            ]), 0  # fmt: skip
        arrays = dict(zip(order, batched(tensors, in_dims[3:], [inputs[n] for n in order]), strict=True))
        b = arrays[system.unknown]
        if in_dims[3 + order.index(system.unknown)] is None:
            arrays[system.unknown] = b.expand(info.batch_size, *b.shape)
        return system.solved(arrays, alpha), 0


def _saved(
    ctx: Any, of: Callable[[Tensor], Tensor] = lambda x: x
) -> tuple[System, dict[int, Tensor], Tensor, Any]:
    held, count = tuple(map(of, ctx.saved_tensors)), len(ctx.order)
    arrays = dict(zip(ctx.order, held[:count], strict=True))
    system = replace(ctx.system, deadline_s=None)  # it was for the solution itself
    return system, arrays, held[count], held[count + 1] if ctx.is_tensor else ctx.alpha


def _map(system: System) -> tuple[Spec, Call]:
    """The job A·p."""
    return system.computation.spec(system.dtype), Call(ranges=as_ranges(system.ranges), device=system.device)
