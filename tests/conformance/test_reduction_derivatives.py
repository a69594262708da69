"""The derivative of every reduction, in every variable, against finite differences of its value."""

from __future__ import annotations

import numpy as np
import pytest

from farsum_kernels.errors import FormulaError
from farsum_kernels.formula.expr import Expr, I, J, P, node, variable
from farsum_kernels.formula.grad import reduction_jvp, reduction_vjp
from farsum_kernels.formula.reductions import REDUCTIONS, Kind
from farsum_kernels.job import Spec
from tests.evaluate import run

M, N, D, K = 7, 9, 2, 3
SMOOTH = [r for r, rule in REDUCTIONS.items() if rule.grad and Kind.VALUE in rule.outputs]
x, y, p = variable(0, D, I), variable(1, D, J), variable(2, 1, P)


def _formulas(reduction: str) -> tuple[Expr, Expr | None]:
    rule = REDUCTIONS[reduction]
    f = node("Mult", p, node("Sin", node("Subtract", x, node("Mult", y, x))))
    f = node("Sum", f) if rule.scalar else f
    return f, node("Exp", node("Mult", p, node("Add", x, y))) if rule.weight != "none" else None


def _arrays() -> dict[int, np.ndarray]:
    rng = np.random.default_rng(0)
    return {0: rng.normal(size=(M, D)), 1: rng.normal(size=(N, D)), 2: rng.normal(size=1)}


def _value(reduction: str, axis: int, arrays: dict[int, np.ndarray]) -> np.ndarray:
    """The first output with its row entries flat."""
    f, w = _formulas(reduction)
    k = K if REDUCTIONS[reduction].listed else 0
    value = run("cpu", Spec(f, reduction, axis, "float64", w, k), arrays)[0]
    return value.reshape(len(value), -1).astype(float)


def _saved(reduction: str, axis: int, arrays: dict[int, np.ndarray]) -> np.ndarray:
    rule = REDUCTIONS[reduction]
    f, w = _formulas(reduction)
    parts = []
    for name in rule.saves:
        saved = REDUCTIONS[name]
        spec = Spec(f, name, axis, "float64", w if saved.weight == "required" or (w and name == reduction) else None,
                    K if saved.listed else 0)  # fmt: skip
        value = run("cpu", spec, arrays)[0]
        parts.append(value.reshape(len(value), -1).astype(float))
    return np.concatenate(parts, 1) if parts else np.zeros((M if axis == 1 else N, 1))


@pytest.mark.parity("R-60", "R-61", "R-64", "R-65", "E-41")
@pytest.mark.parametrize("reduction", SMOOTH)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("v", [x, y, p], ids=["x", "y", "p"])
def test_gradient_of_a_reduction(reduction: str, axis: int, v: Expr) -> None:
    rule, arrays = REDUCTIONS[reduction], _arrays()
    f, w = _formulas(reduction)
    kept, reduced = (I, J) if axis == 1 else (J, I)
    saved = _saved(reduction, axis, arrays)
    base = _value(reduction, axis, arrays)
    e = np.random.default_rng(1).normal(size=base.shape)
    arrays |= {10: e, 11: saved}
    gradient = reduction_vjp(
        rule, f, w, reduced, v, variable(10, e.shape[1], kept), variable(11, saved.shape[1], kept)
    )
    category = v.params[2]
    (got,) = run("cpu", Spec(gradient, "Sum", {I: 1, J: 0, P: axis}[category], "float64"), arrays)
    got = got.sum(0) if category == P else got
    want, step = np.empty_like(got), 1e-6
    flat = want.reshape(-1)
    for place in range(flat.size):
        losses = []
        for sign in (1, -1):
            moved = arrays[v.params[0]].copy()
            moved.reshape(-1)[place] += sign * step
            losses.append((_value(reduction, axis, arrays | {v.params[0]: moved}) * e).sum())
        flat[place] = (losses[0] - losses[1]) / (2 * step)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * np.abs(want).max())


@pytest.mark.parity("O-104", "R-63", "X-31")
@pytest.mark.parametrize("reduction", [r for r, rule in REDUCTIONS.items() if rule.grad])
@pytest.mark.parametrize("v", [x, y, p], ids=["x", "y", "p"])
def test_forward_derivative_of_a_reduction(reduction: str, v: Expr) -> None:
    rule, arrays = REDUCTIONS[reduction], _arrays()
    f, w = _formulas(reduction)
    saved = _saved(reduction, 1, arrays)
    direction = np.random.default_rng(1).normal(size=arrays[v.params[0]].shape)
    arrays |= {10: direction, 11: saved}
    u = variable(10, v.dim, v.params[2])
    tangent = reduction_jvp(rule, f, w, J, v, u, variable(11, saved.shape[1], I))
    (got,) = run("cpu", Spec(tangent, "Sum", 1, "float64"), arrays)
    if Kind.VALUE not in rule.outputs:
        assert (got == 0).all()
        return
    step = 1e-6
    moved = [
        _value(reduction, 1, arrays | {v.params[0]: arrays[v.params[0]] + s * direction})
        for s in (step, -step)
    ]
    np.testing.assert_allclose(got, (moved[0] - moved[1]) / (2 * step), rtol=1e-5, atol=1e-6)


@pytest.mark.parity("R-62")
def test_raw_states_have_no_derivative() -> None:
    f, _ = _formulas("LogSumExp")
    with pytest.raises(FormulaError, match="LogSumExp"):
        reduction_vjp(REDUCTIONS["Max_SumShiftExp"], f, None, J, x, variable(10, 2, I), variable(11, 2, I))


@pytest.mark.parity("R-66")
def test_gradient_of_a_broadcast_batch_is_the_sum_of_those_of_its_members() -> None:
    rng = np.random.default_rng(0)
    alone, batch, e = rng.normal(size=(5, 2)), rng.normal(size=(3, 6, 2)), rng.normal(size=(3, 5, 2))
    f = node("Mult", x, node("Exp", node("Minus", node("SqDist", x, y))))
    gradient = reduction_vjp(REDUCTIONS["Sum"], f, None, J, x, variable(10, 2, I), variable(11, 1, I))
    arrays = {0: alone, 1: batch, 10: e}
    (each,) = run("cpu", Spec(gradient, "Sum", 1, "float64"), arrays)
    assert each.shape == (3, 5, 2)  # one per member: whoever broadcast x adds them up
    step = 1e-6

    def loss(points: np.ndarray) -> float:
        (value,) = run("cpu", Spec(f, "Sum", 1, "float64"), {0: points, 1: batch})
        return float((value * e).sum())

    moved = np.zeros_like(alone)
    moved[2, 1] = step
    slope = (loss(alone + moved) - loss(alone - moved)) / (2 * step)
    np.testing.assert_allclose(each.sum(0)[2, 1], slope, rtol=1e-6)
