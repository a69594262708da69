"""Log-sum-exps whose largest term comes late, early, or is no number: what is rescaled, and what is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from farsum_kernels.backends import reference
from farsum_kernels.backends.cuda.kernel import Kernel
from farsum_kernels.formula.expr import I, J, node, variable
from farsum_kernels.job import Spec, check_arrays
from tests.cuda.driver import EmulatedDriver
from tests.cuda.emulate import ORDERS, Order

pytestmark = pytest.mark.emulated

TERM = node("Add", variable(0, 1, I), variable(1, 1, J))
WEIGHT = variable(2, 2, J)


def run(spec: Spec, arrays: dict[int, np.ndarray], order: Order) -> np.ndarray:
    launch = Kernel(spec, EmulatedDriver(order)).launch(arrays, check_arrays(spec, arrays))
    while launch.step() < 1:
        pass
    return launch.results()[0]


def agree(reduction: str, y: np.ndarray) -> None:
    weighted = reduction == "SumSoftMaxWeight"
    spec = Spec(TERM, reduction, 1, "float32", WEIGHT if weighted else None)
    x = np.linspace(-3, 3, 40, dtype=np.float32)[:, None]
    arrays = {0: x, 1: y.astype(np.float32)[:, None]}
    if weighted:
        arrays[2] = np.random.default_rng(0).random((len(y), 2)).astype(np.float32)
    with np.errstate(all="ignore"):
        want = reference.run(spec, {n: a.astype(np.float64) for n, a in arrays.items()})[0]
    found = [run(spec, arrays, order) for order in ORDERS]
    np.testing.assert_allclose(found[0], want, rtol=2e-6, atol=2e-6)
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


@pytest.mark.parametrize("reduction", ["LogSumExp", "SumSoftMaxWeight"])
def test_terms_that_rise_fall_or_stay(reduction: str) -> None:
    count = 403
    for y in (np.arange(count) * 0.7, -np.arange(count) * 0.7, np.zeros(count), np.resize([0, 400.0], count)):
        agree(reduction, y)


def test_terms_that_are_no_numbers() -> None:
    y = np.sin(np.arange(300.0))
    for value in (np.inf, -np.inf, np.nan):
        special = y.copy()
        special[123] = value
        agree("LogSumExp", special)
    agree("LogSumExp", np.full(300, -np.inf))
