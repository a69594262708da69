"""What the table of operations holds and what it does not; reductions as the outermost node."""

from __future__ import annotations

import numpy as np
import pytest

from farsum_kernels.errors import UnknownOperation
from farsum_kernels.formula.expr import I, J, P, node, operations, variable
from farsum_kernels.formula.grad import reduction_vjp
from farsum_kernels.formula.reductions import REDUCTIONS
from farsum_kernels.job import Spec
from tests.evaluate import BACKENDS, run
from tests.parity.rows import at, joined, rows, same

case, mark = pytest.param, pytest.mark
both = mark.parametrize("backend", BACKENDS)


# fmt: off
ABSENT = [
    case(["Tan", "Sinh", "Cosh", "Tanh", "Log1p", "Expm1", "Log2", "Ceil", "Sigmoid", "Erf", "Prod", "Cross", "Cumsum", "Sort"],
         id="never there", marks=mark.parity("O-143")),
    case(["ComplexScal", "GradSoftDTW_SqDist"], id="internal", marks=mark.parity("O-135", "O-140", "X-67")),
    case(["Sum_Reduction", "Min_Reduction", "Zero_Reduction"], id="reductions", marks=mark.parity("O-142")),
]
# fmt: on


@mark.parametrize("names", ABSENT)
def test_names_that_are_no_operations(names: list[str]) -> None:
    for name in names:
        with pytest.raises(UnknownOperation, match=f"unknown operation '{name}'"):
            node(name, *rows(2))
    assert issubclass(UnknownOperation, NameError)


@mark.parity("O-142")
def test_there_is_no_reduction_to_zero() -> None:
    with pytest.raises(UnknownOperation, match="unknown reduction 'Zero'"):
        Spec(variable(0, 2, I), "Zero", 1, "float64")


@mark.parity("O-144")
@both
def test_operations_that_only_formulas_have(backend: str) -> None:
    names = {"Floor", "Inv", "OneHot", "ElemT", "ExtractT", "SumT", "ComplexSquareAbs", "AdjointOperator",
             "SumLinOperator", "RatCst"}  # fmt: skip
    assert names <= set(operations())
    x, y = rows(1, 2)
    f = joined(
        node("Floor", x), node("Inv", x), node("ElemT", x, params=(2, 1)), node("ExtractT", y, params=(1, 3)),
        node("ComplexSquareAbs", y),
    )  # fmt: skip
    same(at(backend, f, [[2.5]], [[3.0, 4.0]]), [[2, 0.4, 0, 2.5, 0, 3, 4, 25]])


@mark.parity("O-102")
@both
def test_the_gradient_of_a_reduction_from_its_saved_result(backend: str) -> None:
    x, y, p = variable(0, 1, I), variable(1, 1, J), variable(2, 1, P)
    f = node("Mult", p, node("Mult", x, y))
    data = {0: np.array([[0.5], [-1.0]]), 1: np.array([[1.0], [2.0], [-0.5]]), 2: np.array([0.7])}
    (saved,) = run(backend, Spec(f, "LogSumExp", 1, "float64"), data)
    data |= {3: np.array([[2.0], [3.0]]), 4: saved}
    share = np.exp(0.7 * data[0] * data[1].T - saved)  # the weight of each pair, rows add to 1
    same(share.sum(1), [1, 1])
    e, y_out = variable(3, 1, I), variable(4, 1, I)
    for v, axis, want in (
        (x, 1, data[3] * (share @ (0.7 * data[1]))),
        (y, 0, 0.7 * share.T @ (data[3] * data[0])),
        (p, 1, data[3] * data[0] * (share @ data[1])),  # a row per i, to be added up
    ):
        gradient = reduction_vjp(REDUCTIONS["LogSumExp"], f, None, J, v, e, y_out)
        (got,) = run(backend, Spec(gradient, "Sum", axis, "float64"), data)
        same(got, want)


@mark.parity("X-30")
@both
def test_weighted_log_sum_exp_is_the_logarithm(backend: str) -> None:
    f, g = variable(0, 1, J), variable(1, 2, J)
    data = {0: np.array([[1000.0], [1001.0]]), 1: np.array([[1.0, 2.0], [3.0, 4.0]])}
    want = 1000 + np.log([1 + 3 * np.e, 2 + 4 * np.e])
    for name in ("LogSumExpWeight", "LogSumExp"):
        (got,) = run(backend, Spec(f, name, 1, "float64", g), data)
        same(got, [want])


@mark.parity("X-06")
def test_the_error_of_a_long_sum_in_float32_does_not_grow() -> None:
    y = np.random.default_rng(0).uniform(0.5, 1.5, (400_000, 1)).astype(np.float32)
    (got,) = run("cpu", Spec(variable(0, 1, J), "Sum", 1, "float32"), {0: y})
    exact = y.astype(np.float64).sum()
    assert abs(float(got[0, 0]) - exact) <= 1e-6 * exact  # adding one by one in float32 errs by 1.3e-5
