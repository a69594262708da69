"""Jobs of JAX's arrays as a primitive that JAX compiles, batches, and differentiates forward and backward.

The tangent of a reduction is a Sum that is linear in the tangents of its arrays: the same primitive, with another
formula. The transpose of that Sum is again a reduction, so two rules make every order. Imports jax.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from farsum.compute import Call, evaluate
from farsum.gradient import exact_dtype, outputs_of, pull, push, remembering
from farsum.mapped import batched, each_of
from farsum.tensors import held_as, in_front, is_jax, recast, to_numpy
from farsum_kernels.errors import DtypeError
from farsum_kernels.job import RANGES, Spec, check_ranges, dtype_name, extent_of, output_dtypes, output_shapes

Tensor = Any


class Asked:
    """A job without its arrays, as the parameter of a primitive: equal to another where the same is computed."""

    __slots__ = ("_key", "call", "spec")

    def __init__(self, spec: Spec, call: Call) -> None:
        self.spec = spec
        self.call = call
        digest = hashlib.blake2b(digest_size=16)
        for place in sorted(call.ranges):
            held = np.ascontiguousarray(call.ranges[place])
            digest.update(f"{place}|{held.shape}|".encode())
            digest.update(held.data)
        self._key = spec, call.deadline_s, call.device, digest.digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Asked) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        words = " and ".join(f"{part.reduction} of {part.formula}" for part in self.spec.parts)
        return f"{words if len(words) <= 200 else words[:199] + '…'}, over {'ij'[self.spec.axis]}"


reduce_p = Primitive("farsum_reduce")  # reduce_p.bind(*arrays in the order of spec.inputs, job=Asked(…))
reduce_p.multiple_results = True


def reduced(spec: Spec, arrays: Mapping[int, Any], call: Call) -> tuple[Tensor, ...]:
    """The results of a job of arrays, JAX's and NumPy's; ranges stand among them, or in the call.

    Values have the dtype of the arrays, which may be narrower than that of the job, and indices JAX's int.
    """
    ranges = {place: arrays[place] for place in RANGES if place in arrays} or call.ranges
    held = [x if is_jax(x := arrays[n]) else jnp.asarray(x) for n in spec.inputs]
    asked = Asked(spec, Call(call.deadline_s, ranges=ranges, device=call.device))
    return tuple(reduce_p.bind(*held, job=asked))


# ── values ────────────────────────────────────────────────────────────────────────────────────────


def _faces(job: Asked, arrays: Sequence[Any]) -> list[tuple[tuple[int, ...], Any]]:
    """The shape and dtype of each result. Raises ShapeError for arrays that do not fit, while JAX still traces."""
    spec = job.spec
    extent = extent_of(spec, {n: tuple(x.shape) for n, x in zip(spec.inputs, arrays, strict=True)})
    if job.call.ranges:
        check_ranges(job.call.ranges, extent)
    return list(zip(output_shapes(spec, extent), _dtypes(job, arrays), strict=True))


def _dtypes(job: Asked, arrays: Sequence[Any]) -> list[Any]:
    index = np.dtype(held_as("int64"))
    return [index if name == "int64" else arrays[0].dtype for name in output_dtypes(job.spec)]


def _host(job: Asked, dtypes: Sequence[Any], *arrays: Any) -> tuple[Any, ...]:
    """The results as NumPy arrays, of arrays whose numbers are there."""
    spec = job.spec
    check_thread(dtypes)
    given = {n: _as_asked(x, spec.dtype) for n, x in zip(spec.inputs, arrays, strict=True)}
    values = evaluate(spec, given, job.call)
    return tuple(_as_held(v, dtype) for v, dtype in zip(values, dtypes, strict=True))


def check_thread(dtypes: Sequence[Any]) -> None:
    """Raise DtypeError where this thread of JAX narrows what the thread that called it does not."""
    for dtype in dtypes:
        if held_as(dtype_name(dtype)) != dtype_name(dtype):
            raise DtypeError(
                f"{dtype} was traced under jax.enable_x64 as a context, which holds in one thread, and JAX runs this in "
                f"another: write jax.config.update('jax_enable_x64', True)"
            )


def _as_asked(x: Any, dtype: str) -> Any:
    return to_numpy(x) if dtype_name(x.dtype) == dtype else np.asarray(x).astype(dtype)


def _as_held(x: Any, dtype: Any) -> Any:
    return x.view(dtype) if x.dtype == np.uint16 else x.astype(dtype, copy=False)


def placed(values: Any, like: Any) -> Any:
    """Numbers as an array of JAX, where the user has put another one."""
    if getattr(like, "committed", False) and len(like.sharding.device_set) == 1:
        return jax.device_put(values, like.sharding)
    return jnp.asarray(values)


def _now(*arrays: Any, job: Asked) -> list[Any]:
    """Outside jit nothing is compiled, and errors come as they are."""
    return [placed(v, arrays[0]) for v in _host(job, _dtypes(job, arrays), *arrays)]


def _within_jit(*arrays: Any, job: Asked) -> Any:
    made = [jax.ShapeDtypeStruct(*face) for face in _faces(job, arrays)]
    return jax.pure_callback(partial(_host, job, _dtypes(job, arrays)), made, *arrays)


# ── derivatives ───────────────────────────────────────────────────────────────────────────────────


def _tangents(primals: Sequence[Any], tangents: Sequence[Any], *, job: Asked) -> tuple[list[Any], list[Any]]:
    spec, held = job.spec, dtype_name(primals[0].dtype)
    exact = exact_dtype(replace(spec, dtype=held), primals)
    if held_as(exact) != exact:
        raise DtypeError(
            f"the derivative of {spec.reduction} holds row numbers, which float32 does over {1 << 24} rows alone, and "
            f"these arrays have more: jax.config.update('jax_enable_x64', True) gives it float64"
        )
    wide = spec.dtype if spec.dtype == "float64" else exact
    spec, own = remembering(replace(spec, dtype=wide))
    arrays = {n: recast(x, exact) for n, x in zip(spec.inputs, primals, strict=True)}
    given = {
        n: recast(u, exact) for n, u in zip(spec.inputs, tangents, strict=True) if not isinstance(u, ad.Zero)
    }
    results = evaluate(spec, arrays, job.call)
    values = [results[n] for n in own]
    moved = push(
        spec, job.call, arrays, results, given, [y if n in own else None for n, y in enumerate(results)]
    )
    halves = held != exact
    kinds = [is_value for n, (_, is_value) in enumerate(outputs_of(spec)) if n in own]
    values = [recast(y, held) if v and halves else y for y, v in zip(values, kinds, strict=True)]
    return values, [
        _no_tangent(y) if u is None else recast(u, dtype_name(y.dtype))
        for y, u in zip(values, (moved[n] for n in own), strict=True)
    ]


def _no_tangent(x: Any) -> Any:
    return ad.Zero(jax.typeof(x).to_tangent_aval())


def _transposed(cotangents: Sequence[Any], *arrays: Any, job: Asked) -> list[Any]:
    """The cotangents of the arrays that the job is linear in, those of which JAX knows no numbers."""
    spec = job.spec
    linear = [n for n, x in zip(spec.inputs, arrays, strict=True) if ad.is_undefined_primal(x)]
    held = {
        n: jnp.zeros(x.aval.shape, x.aval.dtype) if n in linear else x
        for n, x in zip(spec.inputs, arrays, strict=True)
    }
    given = [None if isinstance(e, ad.Zero) else e for e in cotangents]
    found = pull(spec, job.call, held, [None] * len(given), given, linear, linear=True)
    return [found.get(n) for n in spec.inputs]


# ── maps ──────────────────────────────────────────────────────────────────────────────────────────


def _mapped(arrays: Sequence[Any], dims: Sequence[Any], *, job: Asked) -> tuple[Sequence[Any], list[int]]:
    """The mapped axis is the first batch axis of one job; with ranges, which take no batch, jobs run one by one."""
    if job.call.ranges:
        found = one_by_one(lambda each: reduce_p.bind(*each, job=job), arrays, dims)
    else:
        found = reduce_p.bind(*batched(arrays, dims, job.spec.inputs.values()), job=job)
    return found, [0] * len(found)


def one_by_one(function: Any, arrays: Sequence[Any], dims: Sequence[Any]) -> Any:
    moved = [x if d is None else in_front(x, d) for x, d in zip(arrays, dims, strict=True)]
    fronts = [None if d is None else 0 for d in dims]
    size = next(x.shape[0] for x, d in zip(moved, fronts, strict=True) if d is not None)
    return jax.lax.map(lambda k: function(each_of(moved, fronts, k)), jnp.arange(size))


reduce_p.def_impl(_now)
reduce_p.def_abstract_eval(lambda *arrays, job: [jax.core.ShapedArray(*face) for face in _faces(job, arrays)])
ad.primitive_jvps[reduce_p] = _tangents
ad.primitive_transposes[reduce_p] = _transposed
batching.primitive_batchers[reduce_p] = _mapped
mlir.register_lowering(reduce_p, mlir.lower_fun(_within_jit, multiple_results=True), cacheable=False)
