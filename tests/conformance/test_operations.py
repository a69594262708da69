"""Every operation, on every backend and dtype, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from farsum_kernels.formula import calculus
from farsum_kernels.formula.expr import CONST, VAR, I, Op, constant, node, operations, variable
from farsum_kernels.job import Spec
from tests import oracles
from tests.evaluate import BACKENDS, close, on_pairs, run

M, N = 37, 53


def inputs(record: oracles.OpRecord, dtype: str, seed: int = 1) -> dict[int, np.ndarray]:
    """Random rows for each operand: the first along i, the others along j, the third a parameter."""
    rng = np.random.default_rng(seed)
    shapes = [((M, d), (N, d), (d,))[n] for n, d in enumerate(record.dims)]
    arrays = {n: rng.uniform(record.low, record.high, s) for n, s in enumerate(shapes)}
    if record.whole:
        arrays = {n: np.round(a) for n, a in arrays.items()}
    arrays |= {n: np.broadcast_to(a, shapes[n]) for n, a in record.fixed.items()}
    return {n: np.ascontiguousarray(a, dtype) for n, a in arrays.items()}


def dense(record: oracles.OpRecord, arrays: dict[int, np.ndarray]) -> np.ndarray:
    """The operation on all pairs, (M, N, dim), by its oracle."""
    i, j, p = (slice(None), None), (None,), (None, None)
    wide = [a.astype(np.float64)[(i, j, p)[n]] for n, a in arrays.items()]
    return record.value(*wide)


RECORDS = [
    pytest.param(r, id=r.id, marks=[pytest.mark.parity(r.parity)] if r.parity else []) for r in oracles.OPS
]


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_operation_has_the_value_of_numpy(backend: str, dtype: str, record: oracles.OpRecord) -> None:
    arrays = inputs(record, dtype)
    formula = on_pairs(record.name, record.dims, record.params)
    (got,) = run(backend, Spec(formula, "Sum", 1, dtype), arrays)
    close(got, dense(record, arrays).sum(1), dtype, factor=8)


def test_every_operation_has_an_oracle() -> None:
    # Those without one are proved by tests of their own: constants, and derivatives of other operations.
    apart = {VAR.name, CONST.name, "Zero", "RatCst", "RowIndex", "BasisSum"} | {
        op.name for op in vars(calculus).values() if isinstance(op, Op)
    }
    assert set(operations()) - apart == {r.name for r in oracles.OPS}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("op", "params", "points"),
    [
        pytest.param("Sqrt", (), [(0.0, 0.0), (-1.0, np.nan), (np.inf, np.inf)], marks=pytest.mark.parity("O-21")),
        pytest.param("Rsqrt", (), [(0.0, 0.0), (-0.0, 0.0), (-1.0, np.nan), (np.inf, 0.0)], marks=pytest.mark.parity("O-22")),
        pytest.param("Inv", (), [(0.0, np.inf), (-0.0, -np.inf), (np.inf, 0.0)], marks=pytest.mark.parity("O-23")),
        pytest.param("Log", (), [(0.0, -np.inf), (-1.0, np.nan), (np.inf, np.inf), (1.0, 0.0)], marks=pytest.mark.parity("O-12")),
        pytest.param("Exp", (), [(-np.inf, 0.0), (np.inf, np.inf), (0.0, 1.0), (1e30, np.inf), (-1e30, 0.0)], marks=pytest.mark.parity("O-11")),
        pytest.param("Sin", (), [(0.0, 0.0), (np.inf, np.nan), (1e15, np.sin(1e15))], marks=pytest.mark.parity("O-14")),
        pytest.param("Cos", (), [(0.0, 1.0), (np.inf, np.nan)], marks=pytest.mark.parity("O-15")),
        pytest.param("Abs", (), [(-2.5, 2.5), (-np.inf, np.inf)], marks=pytest.mark.parity("O-25")),
        pytest.param("Pow", (0,), [(np.nan, 1.0), (0.0, 1.0)]),
        pytest.param("Pow", (-1,), [(0.0, np.inf), (-0.0, -np.inf), (-2.5, -0.4)]),
        pytest.param("Pow", (3,), [(-np.inf, -np.inf), (-1.5, -3.375), (np.inf, np.inf)], marks=pytest.mark.parity("O-24")),
    ],
)  # fmt: skip
def test_special_points(backend: str, op: str, params: tuple, points: list[tuple[float, float]]) -> None:
    x = np.array([[p] for p, _ in points])
    formula = node(op, variable(0, 1, I), params=params)
    (got,) = run(backend, Spec(formula, "Max" if op == "Inv" else "Sum", 1, "float64"), {0: x})
    np.testing.assert_allclose(got[:, 0], [v for _, v in points], rtol=1e-15, atol=0)


@pytest.mark.parity("X-03")
@pytest.mark.parametrize("backend", BACKENDS)
def test_constants_are_exact_in_the_data_dtype(backend: str) -> None:
    formula = node("Add", variable(0, 1, I), constant(123456789))
    (got,) = run(backend, Spec(formula, "Sum", 1, "float64"), {0: np.zeros((1, 1))})
    assert got[0, 0] == 123456789


@pytest.mark.parity("R-31", "X-73")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_formula_without_the_reduced_axis_counts_once(backend: str) -> None:
    x = np.array([[2.0], [3.0]])
    (got,) = run(backend, Spec(variable(0, 1, I), "Sum", 1, "float64"), {0: x})
    np.testing.assert_array_equal(got, x)
