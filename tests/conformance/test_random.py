"""Random formulas over random shapes and batches: the CPU backend against the definition, and the
derivatives against each other.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farsum_kernels.backends import reference
from farsum_kernels.formula.expr import CONST, VAR, Expr, I, J, constant, node, variable, walk
from farsum_kernels.job import Spec
from tests import strategies as some
from tests.evaluate import run

few = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
fewer = settings(few, max_examples=25)


def magnitude(formula: Expr, arrays: dict[int, np.ndarray]) -> float:
    """The largest number that occurs on the way: rounding errors are relative to it."""
    top = 1.0
    for part in walk(formula):
        if part.op not in (VAR, CONST) and part.dim < 100:
            spec = Spec(part, "Max", 1, "float64")
            own = {n: arrays[n] for n in spec.inputs}
            spread = (
                np.abs(reference.run(spec, own)[0]),
                np.abs(reference.run(Spec(part, "Min", 1, "float64"), own)[0]),
            )
            top = max(top, *(float(s[np.isfinite(s)].max(initial=0)) for s in spread))
    return top


def agree(got: np.ndarray, want: np.ndarray, scale: float, dtype: str = "float64") -> None:
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol={"float32": 2e-4, "float64": 1e-11}[dtype] * scale)


@pytest.mark.parity("R-30", "X-16")
@few
@given(st.data(), some.formulas(), st.sampled_from(["Sum", "Min", "Max"]), st.sampled_from([0, 1]),
       st.sampled_from(["float32", "float64"]), some.lengths, some.lengths, some.seeds)  # fmt: skip
def test_random_formulas_on_the_cpu(
    data: st.DataObject, formula: Expr, reduction: str, axis: int, dtype: str, m: int, n: int, seed: int
) -> None:
    spec = Spec(formula, reduction, axis, dtype)
    batches = data.draw(some.batch_shapes(len(spec.inputs)))
    arrays = some.arrays_for(spec.inputs, m, n, seed, batches)
    arrays = {k: a.astype(dtype) for k, a in arrays.items()}
    (want,) = run("reference", spec, arrays)
    (got,) = run("cpu", spec, arrays)
    assert got.dtype == dtype
    scale = magnitude(formula, {k: a.astype(np.float64) for k, a in arrays.items()})
    agree(got, want, scale * (1 + max(m, n) if reduction == "Sum" else 1), dtype)


@pytest.mark.parity("O-100")
@fewer
@given(
    some.formulas(dim=3, depth=3), st.sampled_from(some.CATEGORIES), some.lengths, some.lengths, some.seeds
)
def test_random_gradients_on_the_cpu(formula: Expr, category: int, m: int, n: int, seed: int) -> None:
    v, e = some.inputs_of()[3, category], variable(40, 3, I)
    gradient = node("Grad", formula, v, e)
    spec = Spec(gradient, "Sum", 1, "float64")
    arrays = some.arrays_for(spec.inputs, m, n, seed)
    (want,) = run("reference", spec, arrays)
    (got,) = run("cpu", spec, arrays)
    agree(got, want, (1 + n) * max(1.0, float(np.abs(want).max(initial=0))) * magnitude(formula, arrays))


@pytest.mark.parity("O-103", "X-83")
@fewer
@given(some.formulas(dim=3, depth=3), st.sampled_from(some.CATEGORIES), some.seeds)
def test_forward_mode_is_the_transpose_of_reverse_mode(formula: Expr, category: int, seed: int) -> None:
    v, e, u = some.inputs_of()[3, category], variable(40, 3, I), variable(41, 3, J)
    forward = node("Scalprod", e, node("Diff", formula, v, u))
    backward = node("Scalprod", u, node("Grad", formula, v, e))
    specs = [Spec(f, "Sum", 1, "float64") for f in (forward, backward)]
    arrays = some.arrays_for(specs[0].inputs, 3, 4, seed)
    (a,), (b,) = (run("reference", s, arrays) for s in specs)
    agree(a, b, 4 * max(1.0, float(np.abs(b).max(initial=0))) * magnitude(formula, arrays))


@pytest.mark.parity("O-106", "O-107")
@fewer
@given(some.formulas(dim=1, depth=2), some.seeds, st.sampled_from(["reference", "cpu"]))
def test_the_laplacian_is_the_trace_of_the_matrix_of_second_derivatives(
    formula: Expr, seed: int, backend: str
) -> None:
    v = some.inputs_of()[2, I]
    laplacian = node("Laplacian", formula, v)
    gradient = node("Grad", formula, v, constant(1))
    matrix = node("GradMatrix", gradient, v)
    trace = node("Add", node("Elem", matrix, params=(0,)), node("Elem", matrix, params=(3,)))
    specs = [Spec(f, "Sum", 1, "float64") for f in (laplacian, trace)]
    arrays = some.arrays_for(specs[0].inputs, 3, 4, seed)
    (a,), (b,) = (run(backend, s, arrays) for s in specs)
    agree(a, b, 4 * max(1.0, float(np.abs(b).max(initial=0))) * magnitude(formula, arrays))
