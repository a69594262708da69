"""Programs written by hand, with their twins in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from farsum_kernels.formula.expr import Expr, I, J, P, constant, node, variable
from farsum_kernels.job import Spec
from farsum_kernels.program import Carried, Loop, Program, Step, Value


def step(name: str, formula: Expr, axis: int, dtype: str, reduction: str = "Sum", **arguments: str) -> Step:
    """One reduction; the arguments are v0="name of variable 0", and so on."""
    places = tuple((int(key[1:]), value) for key, value in sorted(arguments.items()))
    return Step((name,), Spec(formula, reduction, axis, dtype), places)


def power_iteration(
    n: int, times: int, dtype: str = "float64", below: float | None = None, dim: int = 3
) -> Program:
    """The largest eigenvalue of a Gaussian kernel of n points x, from the vector v: v, eigenvalue, history."""
    x, y, b = variable(0, dim, I), variable(1, dim, J), variable(2, 1, J)
    kernel = node("Mult", node("Exp", node("Minus", node("SqDist", x, y))), b)
    rows, norm = variable(0, 1, I), variable(1, 1, P)
    body = (
        step("w", kernel, 1, dtype, v0="x", v1="x", v2="v"),
        step("square", node("Square", rows), 0, dtype, v0="w"),
        step("size", node("Sqrt", variable(0, 1, P)), 1, dtype, v0="square"),
        step("unit", node("Divide", rows, norm), 1, dtype, v0="w", v1="size"),
        step(
            "moved",
            node("Abs", node("Subtract", variable(0, 1, P), variable(1, 1, P))),
            1,
            dtype,
            v0="size",
            v1="value",
        ),
    )
    loop = Loop(
        (Carried("v", "start", "unit"), Carried("value", "zero", "size")),
        body,
        times,
        "moved" if below is not None else None,
        below or 0.0,
        "history" if below is not None else None,
    )
    inputs = (
        Value("x", dtype, (n, dim)),
        Value("start", dtype, (n, 1)),
        Value("zero", dtype, (1, 1)),
    )
    outputs = ("v", "value", "history") if below is not None else ("v", "value")
    return Program(inputs, (loop,), outputs)


def power_arrays(n: int, dtype: str = "float64", dim: int = 3, seed: int = 0) -> dict[int, Any]:
    rng = np.random.default_rng(seed)
    return {
        0: rng.random((n, dim)).astype(dtype),
        1: rng.random((n, 1)).astype(dtype),
        2: np.zeros((1, 1), dtype),
    }


def power_in_numpy(
    arrays: Mapping[int, Any], times: int, below: float = 0.0
) -> tuple[Any, float, list[float]]:
    x, v, value = arrays[0].astype("float64"), arrays[1].astype("float64"), 0.0
    kernel = np.exp(-((x[:, None] - x) ** 2).sum(-1))
    history = []
    for _ in range(times):
        w = kernel @ v
        before, value = value, float(np.linalg.norm(w))
        v = w / value
        history.append(abs(value - before))
        if history[-1] < below:
            break
    return v, value, history


def doubling(times: int, body: int = 1) -> Program:
    """x, doubled `body` times in each of so many rounds: many small steps."""
    x = variable(0, 1, I)
    names = ["x", *(f"x{n}" for n in range(1, body)), "next"]
    steps = tuple(
        step(after, node("Mult", x, constant(2)), 1, "float64", v0=before)
        for before, after in pairwise(names)
    )
    loop = Loop((Carried("x", "start", "next"),), steps, times)
    return Program((Value("start", "float64", (4, 1)),), (loop,), ("x",))


def endless(n: int = 3000) -> tuple[Program, dict[int, Any]]:
    """A program that takes hours, of slices of some milliseconds."""
    return power_iteration(n, 1_000_000), power_arrays(n)
