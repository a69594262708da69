"""Generated CUDA kernels, run on the CPU by the emulator, against the dense definition in float64."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from farsum_kernels.backends import reference
from farsum_kernels.backends.cuda.kernel import Kernel
from farsum_kernels.backends.cuda.layout import DIRECT
from farsum_kernels.errors import FormulaTooLarge
from farsum_kernels.formula.expr import Expr, I, J, node, substitute, variable
from farsum_kernels.job import RANGES, Extent, Part, Spec, check_arrays
from tests import oracles
from tests.conformance.test_operations import inputs
from tests.conformance.test_ranges import _arrays, _ranges, _spec
from tests.cuda.cases import CASES, WORKLOADS, Case, wide
from tests.cuda.driver import EmulatedDriver
from tests.cuda.emulate import ORDERS, Order
from tests.evaluate import close, on_pairs

pytestmark = pytest.mark.emulated

# What rounding the result, or its inputs, may cost; relative to the largest value.
FACTORS = {"float16": 500.0, "bfloat16": 2000.0, "float32": 1.0, "float64": 1.0}


def run(spec: Spec, arrays: Mapping[int, np.ndarray], **device: object) -> tuple[np.ndarray, ...]:
    launch = Kernel(spec, EmulatedDriver(**device)).launch(arrays, check_arrays(spec, arrays))  # type: ignore[arg-type]
    while launch.step() < 1:
        pass
    return launch.results()


def agree(
    spec: Spec, got: tuple[np.ndarray, ...], arrays: Mapping[int, np.ndarray], factor: float = 1.0
) -> None:
    """Equal to the definition: numbers up to rounding, indices exactly."""
    known = {n: a if n in RANGES else wide(a, spec.dtype) for n, a in arrays.items()}
    for g, w in zip(got, reference.run(spec, known), strict=True):
        if g.dtype == np.int64:
            np.testing.assert_array_equal(g, w)
        else:
            held = "float64" if spec.dtype == "float64" else "float32"
            close(wide(g, spec.dtype), w, held, factor * FACTORS[spec.dtype])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_kernel_has_the_value_of_the_definition(case: Case) -> None:
    arrays = case.arrays()
    agree(case.spec, run(case.spec, arrays), arrays)


@pytest.mark.parametrize("name", ["W1", "W4-100", "W6-3", "W7", "splits, lists", "three at once"])
def test_the_order_of_threads_changes_no_bit(name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    results = {order: run(case.spec, case.arrays(), order=order) for order in ORDERS}
    for order in ORDERS[1:]:
        for a, b in zip(results[ORDERS[0]], results[order], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=order)


@pytest.mark.parametrize("order", ORDERS)
def test_slices_change_no_bit(order: Order) -> None:
    case = Case("slices", WORKLOADS["W1"], 2500, 700)
    whole = run(case.spec, case.arrays(), order=order)
    launch = Kernel(case.spec, EmulatedDriver(order, rate=1e7), DIRECT).launch(
        case.arrays(), check_arrays(case.spec, case.arrays())
    )
    shares = []
    while (share := launch.step()) < 1:
        shares.append(share)
    assert len(shares) >= 2 and shares == sorted(shares)
    # More slices of one plan: the same tasks, cut elsewhere.
    if launch.plan.splits == 1:
        np.testing.assert_array_equal(launch.results()[0], whole[0])
    else:
        np.testing.assert_allclose(launch.results()[0], whole[0], rtol=1e-6)


@pytest.mark.parametrize("reduction", ["Sum", "Min_ArgMin", "KMin_ArgKMin", "LogSumExp"])
@pytest.mark.parametrize("axis", [0, 1])
def test_block_sparse(reduction: str, axis: int) -> None:
    arrays, spec = _arrays(_ranges()), _spec(reduction, axis)
    agree(spec, run(spec, arrays), arrays, factor=4)


def test_values_that_are_not_numbers() -> None:
    x, y = np.random.default_rng(0).random((40, 3)), np.random.default_rng(1).random((300, 3))
    x[3], y[5], y[7, 1] = np.nan, np.nan, np.inf
    for reduction, k in (("Min_ArgMin", 0), ("KMin_ArgKMin", 3), ("Sum", 0)):
        spec = Spec(node("SqDist", variable(0, 3, I), variable(1, 3, J)), reduction, 1, "float64", k=k)
        for g, w in zip(run(spec, {0: x, 1: y}), reference.run(spec, {0: x, 1: y}), strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-12)


def test_equal_values_go_to_the_smallest_index() -> None:
    # Eight distinct points, each 250 times: spread over tiles, threads and splits.
    y = np.tile(np.arange(8.0)[:, None], (250, 1)).astype(np.float32)
    x = np.arange(-2.0, 10.0, 0.5, dtype=np.float32)[:, None]
    for reduction, k in (("ArgMin", 0), ("ArgKMin", 5)):
        spec = Spec(node("SqDist", variable(0, 1, I), variable(1, 1, J)), reduction, 1, "float32", k=k)
        np.testing.assert_array_equal(run(spec, {0: x, 1: y})[0], reference.run(spec, {0: x, 1: y})[0])


def renumbered(formula: Expr, first: int) -> Expr:
    """The formula on other inputs, so that several can stand in one job."""
    return substitute(formula, lambda v: variable(v.params[0] + first, *v.params[1:]))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("group", range(8))
def test_every_operation(group: int, dtype: str) -> None:
    records = oracles.OPS[group::8]
    parts: list[Part] = []
    arrays: dict[int, np.ndarray] = {}
    for place, record in enumerate(records):
        formula = renumbered(on_pairs(record.name, record.dims, record.params), 3 * place)
        parts.append(Part(formula, "Sum"))
        arrays |= {n + 3 * place: a for n, a in inputs(record, dtype).items()}
    for start in range(0, len(parts), 8):
        first, *rest = parts[start : start + 8]
        spec = Spec(first.formula, "Sum", 1, dtype, also=tuple(rest))
        own = {n: arrays[n] for n in spec.inputs}
        agree(spec, run(spec, own), own, factor=8)


def test_rows_that_cannot_be_counted_are_refused() -> None:
    kernel = Kernel(WORKLOADS["W1"], EmulatedDriver())
    with pytest.raises(FormulaTooLarge, match="cut the job in two"):
        kernel.check_indices(Extent(1 << 31, 10, ()))
