"""The inlined functions of the CPU backend, over their whole range, in units of the last place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from farsum_kernels.formula.expr import I, J, P, node, variable
from farsum_kernels.job import Spec
from tests.evaluate import run

ULP = {"float32": np.float32, "float64": np.float64}


def _ulps(got: np.ndarray, want: np.ndarray, dtype: str) -> np.ndarray:
    """Distance in units of the last place of the correctly rounded value."""
    kind = ULP[dtype]
    unit = np.spacing(np.abs(want.astype(kind))).astype(np.longdouble)
    return np.abs(got.astype(np.longdouble) - want) / unit


def _spread(low: float, high: float, count: int = 40_000) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, count)


def _powers(low: float, high: float, count: int = 40_000) -> np.ndarray:
    return np.exp2(np.random.default_rng(0).uniform(low, high, count))


CASES = [
    ("Exp", np.exp, _spread(-87, 88), "float32", 3.0),
    ("Exp", np.exp, _spread(-1, 1), "float32", 2.0),
    ("Exp", np.exp, _spread(-700, 700), "float64", 2.0),
    ("Log", np.log, _powers(-140, 127), "float32", 2.0),
    ("Log", np.log, _spread(0.5, 2.0), "float32", 2.5),
    ("Log", np.log, _powers(-1060, 1020), "float64", 2.0),
    ("Log", np.log, _spread(0.5, 2.0), "float64", 2.5),
    ("Sin", np.sin, _spread(-100, 100), "float32", 2.0),
    ("Cos", np.cos, _spread(-1e6, 1e6), "float32", 2.0),
    ("Sin", np.sin, _spread(-100, 100), "float64", 2.0),
    ("Cos", np.cos, _spread(-1e6, 1e6), "float64", 2.0),
    ("Sin", np.sin, _spread(-1e12, 1e12), "float64", 1.0),
]


@pytest.mark.parametrize(("op", "exact", "points", "dtype", "bound"), CASES)
def test_error_in_units_of_the_last_place(
    op: str, exact: Callable[..., np.ndarray], points: np.ndarray, dtype: str, bound: float
) -> None:
    x = points.astype(dtype)[:, None]
    # The only column and the only term: Max gives F itself, in the data dtype.
    (got,) = run("cpu", Spec(node(op, variable(0, 1, I)), "Max", 1, dtype), {0: x})
    want = exact(x.astype(np.longdouble))
    worst = _ulps(got, want, dtype).max()
    assert worst <= bound, f"{worst:.2f} ulp"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exp_of_zero_is_exactly_one(dtype: str) -> None:
    (got,) = run("cpu", Spec(node("Exp", variable(0, 1, I)), "Max", 1, dtype), {0: np.zeros((20, 1), dtype)})
    assert (got == 1).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exp_of_a_scaled_pair(dtype: str) -> None:
    # e^(k·v) is taken as 2^((k·log2 e)·v) here: within the roundings of the exponent, and right at the edges.
    limit = 87 if dtype == "float32" else 700
    edges = [0.0, -0.0, np.nan, np.inf, -np.inf, 3 * limit, -3 * limit, -1.15 * limit, -1.04 * limit]
    v = (np.concatenate([edges, _spread(-limit, limit, 4000)]) / 0.7).astype(dtype)[:, None]
    k = np.array([0.7], dtype)
    f = node("Exp", node("Mult", variable(2, 1, P), node("Add", variable(0, 1, I), variable(1, 1, J))))
    (got,) = run("cpu", Spec(f, "Sum", 1, dtype), {0: v, 1: np.zeros((1, 1), dtype), 2: k})
    exponent = k.astype(np.longdouble) * v
    with np.errstate(over="ignore"):
        want = np.exp(exponent)
        rounded = want.astype(dtype)
    assert (got[:2] == 1).all()
    assert np.isnan(got[2, 0])
    np.testing.assert_array_equal(got[3:7, 0], [np.inf, 0, np.inf, 0])
    tiny = float(np.finfo(dtype).smallest_subnormal)
    eps = float(np.finfo(dtype).eps)
    error = np.abs(got[7:].astype(np.longdouble) - rounded[7:])
    bound = (2 + 1.5 * np.abs(exponent[7:])) * eps * want[7:] + 2 * tiny
    assert (error <= bound).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exp_underflows_gradually(dtype: str) -> None:
    x = np.linspace(-103, -80, 500) if dtype == "float32" else np.linspace(-745, -700, 500)
    x = x.astype(dtype)[:, None]
    (got,) = run("cpu", Spec(node("Exp", variable(0, 1, I)), "Max", 1, dtype), {0: x})
    tiny = float(np.finfo(dtype).smallest_subnormal)
    np.testing.assert_allclose(got, np.exp(x.astype(np.longdouble)).astype(dtype), rtol=1e-6, atol=2 * tiny)
