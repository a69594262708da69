"""Formulas on rows of a few numbers: their values, and the cotangents of the operands of an operation."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from farsum_kernels.formula.expr import Expr, I, node, variable
from farsum_kernels.job import Spec
from tests.evaluate import run


def rows(*dims: int) -> list[Expr]:
    """One variable along i per dimension, numbered from 0."""
    return [variable(n, d, I) for n, d in enumerate(dims)]


def at(backend: str, formula: Expr, *values: Any, dtype: str = "float64") -> np.ndarray:
    """The formula on rows of its variables 0, 1, … along i: one result per row."""
    arrays = {n: np.asarray(v, dtype).reshape(-1, np.shape(v)[-1]) for n, v in enumerate(values)}
    (out,) = run(backend, Spec(formula, "Sum", 1, dtype), arrays)
    return out


def joined(*parts: Expr) -> Expr:
    return reduce(lambda a, b: node("Concat", a, b), parts)


def same(got: Any, want: Any, rtol: float = 2e-14, atol: float = 1e-13) -> None:
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def dense_rows(
    dims: tuple[int, ...], low: float = 0.3, high: float = 2.0, count: int = 6
) -> list[np.ndarray]:
    rng = np.random.default_rng(11)
    return [rng.uniform(low, high, (count, d)) for d in dims]


def fitted(c: np.ndarray | None, like: np.ndarray) -> np.ndarray:
    """A cotangent as long as its operand: summed for a scalar, zeros for None."""
    if c is None:
        return np.zeros_like(like)
    c = np.broadcast_to(c, np.broadcast_shapes(c.shape, like.shape))
    return c if c.shape[-1] == like.shape[-1] else c.sum(-1, keepdims=True)


def check_all(
    backend: str, op: str, params: tuple, data: list[np.ndarray], value: Callable, vjp: Callable
) -> None:
    """The value of op and the cotangent of each operand, computed in one go."""
    args = rows(*(d.shape[-1] for d in data))
    f = node(op, *args, params=params)
    want = value(*data)
    assert f.dim == want.shape[-1]
    e = variable(len(data), f.dim, I)
    cotangent = np.random.default_rng(5).normal(size=want.shape)
    got = at(backend, joined(f, *(node("Grad", f, v, e) for v in args)), *data, cotangent)
    parts = [want, *(fitted(c, d) for c, d in zip(vjp(cotangent, *data), data, strict=True))]
    same(got, np.concatenate([np.broadcast_to(p, (len(got), p.shape[-1])) for p in parts], -1))


def sq(x: np.ndarray) -> np.ndarray:
    return (x * x).sum(-1, keepdims=True)


def total(x: np.ndarray) -> np.ndarray:
    return x.sum(-1, keepdims=True)


def each(f: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda *args: np.stack([np.ravel(f(*row)) for row in zip(*args, strict=True)])
