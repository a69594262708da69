"""Jobs of tensors as functions that PyTorch differentiates: backward, forward, under vmap, to any order.

Imports torch; imported when the first tensor is computed with. Which formulas the derivatives are is said in
`farsum.gradient`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual
from torch.autograd.function import Function

from farsum.compute import Call, computed, evaluate
from farsum.gradient import keeps_places, needs_results, outputs_of, pull, push, remembering
from farsum.handle import Content, Handle, content_of
from farsum.target import remote
from farsum.tensors import recast, to_numpy, to_tensor
from farsum_kernels.formula.expr import Expr, P
from farsum_kernels.job import RANGES, Spec, output_dtypes

# A row number past this is not exact in float32.
_EXACT_ROWS = 1 << 24


def reduced(spec: Spec, arrays: Mapping[int, Tensor], call: Call) -> tuple[Tensor, ...]:
    """The results of a job of tensors, all on one device and of the dtype of the job; ranges stand among them."""
    if len(arrays) > len(spec.inputs):
        ranges: dict[int, Any] = {n: arrays[n] for n in RANGES if n in arrays}
        call = replace(call, ranges=ranges) if ranges else call
    tensors = [arrays[n] for n in spec.inputs]
    if not followed(tensors):
        return Reduce.forward(spec, call, *tensors)
    dtype = _exact_dtype(spec, tensors)
    if dtype != spec.dtype:
        wide = replace(spec, dtype=dtype)
        held = {n: recast(arrays[n], dtype) for n in spec.inputs}
        results = reduced(wide, held, replace(call, guarded={}))
        kinds = outputs_of(spec)
        return tuple(recast(y, spec.dtype) if v else y for y, (_, v) in zip(results, kinds, strict=True))
    whole, own = remembering(spec)
    if call.device is None and remote() is not None:
        call = replace(call, guarded={n: call.guarded.get(n) for n in whole.inputs})
    # Outside torch.func the context goes to `forward`: else torch spells its signature at each call, for 35 µs.
    function = Reduce if torch._C._are_functorch_transforms_active() else Recorded
    results = function.apply(whole, call, *tensors)  # type: ignore[no-untyped-call]
    return tuple([results[n] for n in own])


def followed(tensors: Sequence[Tensor]) -> bool:
    """Whether somebody may ask for a derivative, or maps over a batch."""
    if _forward_mode():
        return True
    return torch.is_grad_enabled() and any([x.requires_grad for x in tensors])


def _exact_dtype(spec: Spec, tensors: list[Tensor]) -> str:
    """What a job is computed in for its derivative to be right: halves hold neither its saved sums nor row numbers."""
    if spec.dtype in ("float16", "bfloat16"):
        return "float32"
    if spec.dtype == "float32" and keeps_places(spec):
        rows = (x.shape[-2] for x, v in zip(tensors, spec.inputs.values(), strict=True) if v.params[2] != P)
        return "float64" if max(rows, default=0) > _EXACT_ROWS else "float32"
    return spec.dtype


class Reduce(Function):
    """The results of a job, all of them: Reduce.apply(spec, call, *tensors in the order of spec.inputs)."""

    @staticmethod
    def forward(spec: Spec, call: Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        arrays: dict[int, Any] = dict(zip(spec.inputs, map(to_numpy, tensors), strict=True))
        device = tensors[0].device
        if call.guarded and call.device is None and remote() is not None:
            arrays = {n: _hashed_once(n, a, call.guarded) for n, a in arrays.items()}
        values = computed(spec, arrays, call)
        return tuple([to_tensor(v, t, device) for v, t in zip(values, output_dtypes(spec), strict=True)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.spec, ctx.call, *tensors = inputs
        ctx.set_materialize_grads(False)
        if "int64" in output_dtypes(ctx.spec):
            kinds = outputs_of(ctx.spec)
            ctx.mark_non_differentiable(*(y for y, (_, v) in zip(output, kinds, strict=True) if not v))
        forward = _forward_mode()
        held = (*tensors, *output) if forward or needs_results(ctx.spec) else tensors
        ctx.save_for_backward(*held)
        if forward:
            ctx.save_for_forward(*held)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        arrays, results = _saved(ctx)
        wanted = [n for n, need in zip(arrays, ctx.needs_input_grad[2:], strict=True) if need]
        found = pull(ctx.spec, ctx.call, arrays, results, cotangents, wanted)
        return None, None, *map(found.get, arrays)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        with outer_tangents():
            arrays, results = _saved(ctx, primal)
            given = {n: u for n, u in zip(arrays, tangents[2:], strict=True) if u is not None}
            return tuple(push(ctx.spec, ctx.call, arrays, results, given, results))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], spec: Spec, call: Call, *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """The mapped axis becomes the first batch axis; with ranges, which take no batch, the jobs run one by one."""
        call = replace(call, guarded={})
        if call.ranges:
            each = [
                evaluate(spec, dict(zip(spec.inputs, each_of(tensors, in_dims[2:], k), strict=True)), call)
                for k in range(info.batch_size)
            ]
            return tuple(torch.stack(values) for values in zip(*each, strict=True)), (0,) * len(each[0])
        moved = batched(tensors, in_dims[2:], spec.inputs.values())
        values = evaluate(spec, dict(zip(spec.inputs, moved, strict=True)), call)
        return values, (0,) * len(values)


class Recorded(Reduce):
    """The same function, to be recorded outside torch.func."""

    @staticmethod
    def forward(ctx: Any, spec: Spec, call: Call, *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        output = Reduce.forward(spec, call, *tensors)
        Reduce.setup_context(ctx, (spec, call, *tensors), output)
        return output

    setup_context = Function.setup_context


def _forward_mode() -> bool:
    """Whether tangents may go through what is computed now."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def outer_tangents() -> Any:
    """In a jvp torch switches all tangents off; this lets those of an outer forward mode through, see `primal`."""
    return _set_fwd_grad_enabled(True)


def primal(x: Tensor) -> Tensor:
    """A saved tensor without its tangent of this forward mode."""
    found: Tensor = unpack_dual(x).primal  # type: ignore[no-untyped-call]
    return found


def _saved(
    ctx: Any, of: Callable[[Tensor], Tensor] | None = None
) -> tuple[dict[int, Tensor], tuple[Any, ...]]:
    """The inputs, and the results, or None for each where no derivative needs them."""
    held, count = ctx.saved_tensors, len(ctx.spec.inputs)
    held = tuple(map(of, held)) if of else held
    results = held[count:] or (None,) * len(outputs_of(ctx.spec))
    return dict(zip(ctx.spec.inputs, held[:count], strict=True)), results


def _hashed_once(n: int, array: Any, guarded: dict[int, Content | None]) -> Any:
    """An array as what an engine hashes once, if autograd sees to it that its numbers stay: see `Call.guarded`."""
    if n not in guarded:
        return array
    content = guarded[n] = guarded[n] or content_of(array)
    return Handle(content, array.dtype, array.shape)


def batched(tensors: Sequence[Tensor], dims: Sequence[int | None], inputs: Iterable[Expr]) -> list[Tensor]:
    """The tensors of these variables with their mapped axes as a first batch axis, in line with all other batches."""
    own = [1 if v.params[2] == P else 2 for v in inputs]
    mapped = list(zip(tensors, dims, own, strict=True))
    rank = max(x.ndim - n - (d is not None) for x, d, n in mapped)
    return [x if d is None else _in_front(x, d, rank + n) for x, d, n in mapped]


def each_of(tensors: Sequence[Tensor], dims: Sequence[int | None], k: int) -> list[Tensor]:
    """The tensors at one place of their mapped axes."""
    return [x if d is None else x.select(d, k) for x, d in zip(tensors, dims, strict=True)]


def _in_front(x: Tensor, d: int, rank: int) -> Tensor:
    """Axis d as the first, and after it as many axes of 1 as it takes to leave `rank` axes behind it."""
    x = x.movedim(d, 0)
    return x.reshape(x.shape[0], *(1,) * (rank + 1 - x.ndim), *x.shape[1:])
