"""Several reductions over the same pairs in one pass give what each gives alone."""

from __future__ import annotations

import numpy as np
import pytest

from farsum_kernels.errors import FormulaTooLarge
from farsum_kernels.formula.expr import I, J, node, variable
from farsum_kernels.formula.lower import Want, lower
from farsum_kernels.job import Part, Spec
from tests.evaluate import BACKENDS, close, run

x, y, b = variable(0, 3, I), variable(1, 3, J), variable(2, 1, J)
D = node("SqDist", x, y)
K = node("Exp", node("Minus", D))
GRADIENT = node("Grad", K, x, b)
PARTS = (
    Part(node("Mult", K, b), "Sum"),
    Part(GRADIENT, "Sum"),
    Part(D, "ArgMin"),
    Part(D, "KMin_ArgKMin", k=4),
    Part(D, "LogSumExp"),
    Part(D, "SumSoftMaxWeight", node("Square", y)),
    Part(node("Subtract", x, y), "Max"),
    Part(node("SumT", K, params=(20,)), "Sum"),
)


def _spec(parts: tuple[Part, ...], axis: int, dtype: str) -> Spec:
    first, *rest = parts
    return Spec(first.formula, first.reduction, axis, dtype, first.weight, first.k, tuple(rest))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_together_as_alone(backend: str, axis: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    arrays = {n: rng.random(s).astype(dtype) for n, s in enumerate([(101, 3), (613, 3), (613, 1)])}
    together = run(backend, _spec(PARTS, axis, dtype), arrays)
    alone = [value for part in PARTS for value in run(backend, _spec((part,), axis, dtype), arrays)]
    assert len(together) == len(alone) == 9
    for got, want in zip(together, alone, strict=True):
        assert got.dtype == want.dtype
        close(got, want, dtype)


def test_few_rows_and_batches() -> None:
    rng = np.random.default_rng(0)
    arrays = {0: rng.random((3, 3)), 1: rng.random((2, 120_000, 3)), 2: rng.random((2, 120_000, 1))}
    for got, part in zip(run("cpu", _spec(PARTS[:3], 1, "float64"), arrays), PARTS, strict=False):
        (want,) = run("cpu", _spec((part,), 1, "float64"), arrays)
        np.testing.assert_allclose(got, want, rtol=1e-11)


def test_value_and_gradient_share_the_exponential() -> None:
    value, both = (
        sum(
            i.prim.name in ("EXP", "EXP2")
            for i in lower([Want(p.formula, additive=True) for p in parts], 6).code
        )
        for parts in (PARTS[:1], PARTS[:2])
    )
    assert value == both == 1


def test_there_is_a_limit() -> None:
    with pytest.raises(FormulaTooLarge, match="at most 16"):
        _spec(PARTS * 3, 1, "float32")
