"""The solution of a linear system of JAX's arrays as a primitive that JAX differentiates: no iteration is unrolled.

From (alpha + A)·a = b follows (alpha + A)·da = db - dA·a - dalpha·a: the tangent is one more solution of the same
system, linear in its right-hand side, and A is symmetric, so the transpose is another. Imports jax.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from farsum.arrays import as_ranges
from farsum.compute import Call
from farsum.gradient import push
from farsum.mapped import batched
from farsum.primitives import Tensor, check_thread, one_by_one, placed
from farsum.systems import System, solve_by
from farsum.tensors import broadcast, is_jax, recast, to_numpy
from farsum_kernels.errors import OperandError

# solve_p.bind(*arrays in this order, system=…, order=numbers of the arrays, alpha=a number); with alpha=None it is
# the first operand, an array of one.
solve_p = Primitive("farsum_solve")


def solved(system: System, arrays: Mapping[int, Any], alpha: Any) -> Tensor:
    """The solution, of the shape and dtype of the right-hand side."""
    if system.keep:
        raise OperandError("keep leaves a handle, which is no array of JAX: of arrays come arrays")
    if system.dtype in ("float16", "bfloat16"):
        held = {n: recast(x, "float32") for n, x in arrays.items()}
        return recast(solved(replace(system, dtype="float32"), held, alpha), system.dtype)
    traced = is_jax(alpha)
    if traced and alpha.size != 1:
        raise OperandError(f"alpha is one number, or an array of one, not an array of shape {alpha.shape}")
    order = tuple(sorted(arrays))
    held = {n: jnp.asarray(arrays[n]) for n in order}
    # What the options mean is said here, while JAX still traces.
    rule = solve_by(held[system.unknown], system.unknown, 1.0 if traced else alpha, **system.options)
    given = [alpha.reshape(())] if traced else []
    ridge = None if traced else rule.ridge
    return solve_p.bind(*given, *held.values(), system=system, order=order, alpha=ridge)


def _parts(values: Sequence[Any], order: Sequence[int], alpha: Any) -> tuple[Any, dict[int, Any]]:
    """alpha and the arrays by number."""
    given = list(values)
    alpha = given.pop(0) if alpha is None else alpha
    return alpha, dict(zip(order, given, strict=True))


def _host(*values: Any, system: System, order: tuple[int, ...], alpha: Any) -> Any:
    check_thread([system.dtype])
    ridge, arrays = _parts([np.ascontiguousarray(to_numpy(x)) for x in values], order, alpha)
    return system.solved(arrays, float(np.reshape(ridge, ())))


def _now(*values: Any, **asked: Any) -> Any:
    return placed(_host(*values, **asked), values[0])


def _within_jit(*values: Any, system: System, order: tuple[int, ...], alpha: Any) -> Any:
    asked = partial(_host, system=system, order=order, alpha=alpha)
    b = _parts(values, order, alpha)[1][system.unknown]
    return jax.pure_callback(asked, jax.ShapeDtypeStruct(b.shape, b.dtype), *values)


def _shape(*values: Any, system: System, order: tuple[int, ...], alpha: Any) -> Any:
    b = _parts(values, order, alpha)[1][system.unknown]
    return jax.core.ShapedArray(b.shape, b.dtype)


def _again(system: System, order: tuple[int, ...], alpha: Any, values: Sequence[Any], rhs: Any) -> Any:
    """The solution of the same system for another right-hand side."""
    at = len(values) - len(order) + order.index(system.unknown)
    held = [rhs if n == at else x for n, x in enumerate(values)]
    system = replace(system, deadline_s=None)  # it was for the solution itself
    return solve_p.bind(*held, system=system, order=order, alpha=alpha)


def _tangent(
    values: Sequence[Any], tangents: Sequence[Any], *, system: System, order: tuple[int, ...], alpha: Any
) -> tuple[Any, Any]:
    a = solve_p.bind(*values, system=system, order=order, alpha=alpha)
    _, arrays = _parts(values, order, alpha)
    of_alpha, given = _parts(tangents, order, alpha)
    of_b = given.pop(system.unknown)
    rhs = jnp.zeros_like(a) if isinstance(of_b, ad.Zero) else of_b
    moved = {n: u for n, u in given.items() if not isinstance(u, ad.Zero)}
    if moved:
        spec = system.computation.spec(system.dtype)
        call = Call(ranges=as_ranges(system.ranges), device=system.device)
        (change,) = push(spec, call, {**arrays, system.unknown: a}, [None], moved, [a])
        rhs = rhs - change
    if alpha is None and not isinstance(of_alpha, ad.Zero):
        rhs = rhs - of_alpha.astype(a.dtype) * a
    return a, _again(system, order, alpha, values, rhs)


def _transposed(e: Any, *values: Any, system: System, order: tuple[int, ...], alpha: Any) -> list[Any]:
    at = len(values) - len(order) + order.index(system.unknown)
    found: list[Any] = [None] * len(values)
    if not isinstance(e, ad.Zero):
        found[at] = _again(system, order, alpha, values, e)
    return found


def _mapped(
    values: Sequence[Any], dims: Sequence[Any], *, system: System, order: tuple[int, ...], alpha: Any
) -> tuple[Any, int]:
    """The mapped axis is the first batch axis of one system; with ranges or many alphas they are solved one by one."""
    asked = {"system": system, "order": order, "alpha": alpha}
    if system.ranges is not None or (alpha is None and dims[0] is not None):
        return one_by_one(lambda each: solve_p.bind(*each, **asked), values, dims), 0
    first = len(values) - len(order)
    inputs = system.computation.spec(system.dtype).inputs
    moved = batched(values[first:], dims[first:], [inputs[n] for n in order])
    place = order.index(system.unknown)
    if dims[first + place] is None:
        size = next(x.shape[d] for x, d in zip(values, dims, strict=True) if d is not None)
        moved[place] = broadcast(moved[place], (size, *moved[place].shape))
    return solve_p.bind(*values[:first], *moved, **asked), 0


solve_p.def_impl(_now)
solve_p.def_abstract_eval(_shape)
ad.primitive_jvps[solve_p] = _tangent
ad.primitive_transposes[solve_p] = _transposed
batching.primitive_batchers[solve_p] = _mapped
mlir.register_lowering(solve_p, mlir.lower_fun(_within_jit, multiple_results=False), cacheable=False)
