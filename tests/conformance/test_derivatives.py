"""Every operation's derivatives: first order against finite differences of its NumPy oracle, forward
mode and second order against the first.
"""

from __future__ import annotations

import numpy as np
import pytest

from farsum_kernels.formula.expr import Expr, I, J, P, constant, node, variable
from farsum_kernels.job import Part, Spec
from tests import oracles
from tests.conformance.test_operations import dense, inputs
from tests.evaluate import BACKENDS, on_pairs, run

# Piecewise constant, or with a derivative that is zero by convention.
FLAT = {"Sign", "Step", "Floor", "Round", "DiffClampInt", "ArgMax", "ArgMin", "OneHot",
        "Equal", "NotEqual", "LessThan", "LessOrEqual"}  # fmt: skip
RECORDS = [r for r in oracles.OPS if r.name not in FLAT]
CATEGORIES = (I, J, P)


def _summed(formula: Expr, category: int, arrays: dict[int, np.ndarray], backend: str) -> np.ndarray:
    """The sum over all pairs that share a row of this category (all pairs, for a parameter)."""
    (value,) = run(backend, Spec(formula, "Sum", 0 if category == J else 1, "float64"), arrays)
    return value.sum(0) if category == P else value


def _at_once(formulas: list[Expr], dtype: str, arrays: dict[int, np.ndarray]) -> tuple[np.ndarray, ...]:
    """The sums over j of several formulas: one job, hence one kernel to compile."""
    first, *rest = formulas
    return run("cpu", Spec(first, "Sum", 1, dtype, also=tuple(Part(f, "Sum") for f in rest)), arrays)


def _with_cotangent(record: oracles.OpRecord) -> tuple[Expr, Expr, dict[int, np.ndarray]]:
    """The operation, a cotangent e_j, and arrays for all."""
    formula = on_pairs(record.name, record.dims, record.params)
    rng = np.random.default_rng(7)
    arrays = inputs(record, "float64")
    rows = max(len(arrays[1]) if 1 in arrays else 1, 1)
    arrays[5] = rng.normal(size=(rows, formula.dim))
    return formula, variable(5, formula.dim, J), arrays


def _loss(record: oracles.OpRecord, arrays: dict[int, np.ndarray]) -> np.ndarray:
    """<e_j, F_ij> on all pairs."""
    own = {n: a for n, a in arrays.items() if n < 5}
    return (dense(record, own) * arrays[5][None]).sum(-1)


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.id)
def test_gradient_is_that_of_finite_differences(record: oracles.OpRecord) -> None:
    formula, e, arrays = _with_cotangent(record)
    step = 1e-6
    for n, dim in enumerate(record.dims):
        if n in record.fixed:
            continue
        v = variable(n, dim, CATEGORIES[n])
        found = [_summed(node("Grad", formula, v, e), CATEGORIES[n], arrays, backend) for backend in BACKENDS]
        want = np.empty_like(found[0])
        for k in range(dim):
            up, down = (arrays | {n: arrays[n].copy()} for _ in range(2))
            up[n][..., k] += step
            down[n][..., k] -= step
            slope = (_loss(record, up) - _loss(record, down)) / (2 * step)
            slope = np.broadcast_to(slope, np.broadcast_shapes(slope.shape, (len(arrays[0]), 1)))
            over: dict[int, tuple[int, ...]] = {I: (1,), J: (0,), P: (0, 1)}
            want[..., k] = slope.sum(over[CATEGORIES[n]])
        scale = np.abs(want).max() + 1
        for backend, got in zip(BACKENDS, found, strict=True):
            np.testing.assert_allclose(got / scale, want / scale, atol=2e-7, err_msg=backend)


@pytest.mark.parity("O-103", "X-83")
@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.id)
def test_forward_mode_is_the_transpose(record: oracles.OpRecord) -> None:
    formula, e, arrays = _with_cotangent(record)
    rng = np.random.default_rng(3)
    both: list[Expr] = []
    for n, dim in enumerate(record.dims):
        v, u = variable(n, dim, CATEGORIES[n]), variable(6 + n, dim, CATEGORIES[n])
        arrays[6 + n] = rng.normal(size=arrays[n].shape)
        both.append(node("Scalprod", e, node("Diff", formula, v, u)))
        both.append(node("Scalprod", u, node("Grad", formula, v, e)))
    sums = _at_once(both, "float64", arrays)
    for a, b in zip(sums[::2], sums[1::2], strict=True):
        scale = np.abs(b).max() + 1
        np.testing.assert_allclose(a / scale, b / scale, atol=1e-12)


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.id)
def test_gradients_in_float32_are_those_in_float64(record: oracles.OpRecord) -> None:
    formula, e, arrays = _with_cotangent(record)
    single = {n: a.astype(np.float32) for n, a in arrays.items()}
    gradients = [
        node("Grad", formula, variable(n, dim, CATEGORIES[n]), e)
        for n, dim in enumerate(record.dims)
        if n not in record.fixed
    ]
    narrow = _at_once(gradients, "float32", single)
    wide = _at_once(gradients, "float64", {n: a.astype(float) for n, a in single.items()})
    for got, want in zip(narrow, wide, strict=True):
        assert got.dtype == np.float32
        scale = np.abs(want).max() + 1
        np.testing.assert_allclose(got / scale, want / scale, atol=1e-5)


@pytest.mark.parity("G-71")
@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_second_gradient_is_that_of_finite_differences_of_the_first(
    backend: str, record: oracles.OpRecord
) -> None:
    formula, e, arrays = _with_cotangent(record)
    step = 1e-5
    v = variable(0, record.dims[0], I)
    if 0 in record.fixed:
        v = variable(1, record.dims[1], J)
    n, category = v.params[0], v.params[2]
    u = variable(6, v.dim, category)
    arrays[6] = np.random.default_rng(3).normal(size=arrays[n].shape)
    first = node("Scalprod", u, node("Grad", formula, v, e))
    got = _summed(node("Grad", first, v, constant(1)), category, arrays, backend)
    want = np.empty_like(got)
    for k in range(v.dim):
        up, down = (arrays | {n: arrays[n].copy()} for _ in range(2))
        up[n][..., k] += step
        down[n][..., k] -= step
        a, b = (_summed(first, category, x, backend) for x in (up, down))
        want[..., k] = ((a - b) / (2 * step))[..., 0]
    scale = np.abs(want).max() + 1
    np.testing.assert_allclose(got / scale, want / scale, atol=2e-6)


@pytest.mark.parity("O-103", "G-71")
def test_a_derivative_of_a_derivative_sees_what_the_inner_one_depends_on() -> None:
    x, y, c = variable(0, 2, I), variable(1, 2, J), variable(2, 2, P)
    inner = node("Grad", node("Exp", node("Mult", node("Mult", x, y), c)), x, y)  # y·(y·c)·exp(x·y·c)
    rng = np.random.default_rng(0)
    arrays = {0: rng.random((3, 2)), 1: rng.random((4, 2)), 2: rng.random(2)}
    got = _summed(node("Grad", inner, c, node("SumT", constant(1), params=(2,))), P, arrays, "cpu")
    a, b, s = arrays[0][:, None], arrays[1][None], arrays[2]
    want = (b * b * (1 + a * b * s) * np.exp(a * b * s)).sum((0, 1))
    np.testing.assert_allclose(np.ravel(got), want)


@pytest.mark.parity("O-75")
def test_a_negated_operand_of_a_scalar_product_has_its_derivative() -> None:
    x, y = variable(0, 2, I), variable(1, 2, J)
    arrays = {0: np.ones((3, 2)), 1: np.random.default_rng(0).random((4, 2))}
    got = _summed(node("Grad", node("Scalprod", y, node("Minus", x)), x, constant(1)), I, arrays, "cpu")
    np.testing.assert_allclose(got, np.broadcast_to(-arrays[1].sum(0), (3, 2)))
