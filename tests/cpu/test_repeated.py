"""Small jobs that are bound once and computed again and again: bit for bit what a job bound anew gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from farsum_kernels.backends.cpu.addresses import address
from farsum_kernels.backends.cpu.backend import CpuBackend
from farsum_kernels.formula.expr import I, J, P, constant, node, variable
from farsum_kernels.job import RANGES, Spec, check_arrays, output_dtypes, output_shapes

X, Y, B, S = variable(0, 3, I), variable(1, 3, J), variable(2, 2, J), variable(3, 1, P)
DISTANCE = node("SqDist", X, Y)
KERNEL = node("Exp", node("Minus", node("Mult", S, DISTANCE)))
SPECS = {
    "sum of several": Spec(node("Mult", KERNEL, B), "Sum", 1, "float32"),
    "over i": Spec(node("Mult", KERNEL, node("Sum", node("Mult", X, Y))), "Sum", 0, "float64"),
    "log-sum-exp": Spec(node("Minus", DISTANCE), "LogSumExp", 1, "float32", node("Sum", B)),
    "softmax": Spec(node("Minus", DISTANCE), "SumSoftMaxWeight", 1, "float32", B),
    "max and its place": Spec(DISTANCE, "Max_ArgMax", 1, "float32"),
    "neighbours": Spec(DISTANCE, "KMin_ArgKMin", 1, "float64", None, 4),
    "twice": Spec(node("Mult", KERNEL, constant(2)), "Sum", 1, "float32"),
}


def arrays_of(spec: Spec, m: int, n: int, batch: tuple[int, ...], seed: int) -> dict[int, Any]:
    rng = np.random.default_rng(seed)
    shapes = {0: (*batch, m, 3), 1: (n, 3), 2: (*batch, n, 2), 3: (1,)}
    return {k: rng.random(shapes[k]).astype(spec.dtype) for k in spec.inputs}


@pytest.mark.parametrize("m, n, batch", [(1, 1, ()), (5, 70, ()), (70, 5, ()), (33, 129, ()), (6, 9, (2, 3))])
@pytest.mark.parametrize("name", SPECS)
def test_the_same_numbers(name: str, m: int, n: int, batch: tuple[int, ...]) -> None:
    spec, kernel = SPECS[name], CpuBackend(2).compile(SPECS[name])
    first = arrays_of(spec, m, n, batch, 0)
    extent = check_arrays(spec, first)
    outputs = zip(output_shapes(spec, extent), output_dtypes(spec), strict=True)
    into = [np.full(shape, 7, dtype) for shape, dtype in outputs]
    repeated = kernel.repeated({k: a.shape for k, a in first.items()}, extent, into)
    assert repeated is not None
    for seed in (0, 1, 0):
        arrays = arrays_of(spec, m, n, batch, seed)
        repeated.run([address(arrays[k]) for k in repeated.indices])
        launch = kernel.launch(arrays, extent)
        while launch.step() < 1.0:
            pass
        for got, want in zip(into, launch.results(), strict=True):
            assert_array_equal(got, want)


def none_for(spec: Spec, shapes: dict[int, tuple[int, ...]]) -> bool:
    own = {k: np.zeros(shape, spec.dtype) for k, shape in shapes.items() if k not in RANGES}
    extent = check_arrays(spec, own)
    outputs = zip(output_shapes(spec, extent), output_dtypes(spec), strict=True)
    into = [np.empty(shape, dtype) for shape, dtype in outputs]
    return CpuBackend(2).compile(spec).repeated(shapes, extent, into) is None


def test_where_it_depends_on_the_numbers_how_it_is_computed() -> None:
    wide = [variable(0, 16, I), variable(1, 16, J)]
    gaussian = node("Exp", node("Minus", node("SqDist", *wide)))
    assert none_for(Spec(gaussian, "Sum", 1, "float32"), {0: (1100, 16), 1: (1100, 16)}), "certified"
    assert none_for(Spec(node("SqDist", *wide), "ArgMin", 1, "float32"), {0: (1100, 16), 1: (1100, 16)}), (
        "filtered"
    )
    narrow = Spec(node("Exp", node("Minus", DISTANCE)), "Sum", 1, "float32")
    assert none_for(narrow, {0: (40_000, 3), 1: (40_000, 3)}), "culled"
    assert none_for(narrow, {0: (5, 3), 1: (6, 3), **{place: (1, 2) for place in RANGES}}), "ranges"


def test_what_would_keep_much() -> None:
    weights = node("Exp", node("Minus", node("Sum", Y)))
    assert none_for(
        Spec(node("Mult", node("Sum", X), weights), "Sum", 1, "float32"), {0: (1, 3), 1: (500_000, 3)}
    )
    assert not none_for(
        Spec(node("Mult", node("Sum", X), weights), "Sum", 1, "float32"), {0: (1, 3), 1: (50_000, 3)}
    )


def test_what_is_copied_or_not_computed_at_all() -> None:
    assert none_for(Spec(DISTANCE, "Sum", 1, "float16"), {0: (5, 3), 1: (6, 3)})
    assert none_for(Spec(DISTANCE, "Sum", 1, "float32"), {0: (5, 3), 1: (0, 3)})
    assert none_for(Spec(DISTANCE, "Sum", 1, "float32"), {0: (0, 3), 1: (5, 3)})
