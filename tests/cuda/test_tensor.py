"""Sums with scalar products from tensor cores: as exact as their certificate says, and only where it holds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from farsum_kernels.backends.certified import ALLOWED, TENSOR_GROWTH
from farsum_kernels.backends.cuda.kernel import Kernel
from farsum_kernels.backends.cuda.layout import DIRECT, PRODUCTS, TENSOR, Gpu
from farsum_kernels.backends.cuda.tensor_layout import tensor_pays
from farsum_kernels.formula.expr import Expr, I, constant, node, variable
from farsum_kernels.job import Spec, check_arrays
from tests.cuda.cases import gradient, points, summed, times
from tests.cuda.driver import EmulatedDriver
from tests.cuda.emulate import ORDERS, Order
from tests.cuda.test_products import gaussian, inputs, truth

emulated = pytest.mark.emulated


def run(
    spec: Spec, arrays: Mapping[int, np.ndarray], path: str | None = TENSOR, order: Order = "forward"
) -> tuple[str, np.ndarray]:
    """The path that was taken, and the result."""
    launch = Kernel(spec, EmulatedDriver(order), path).launch(arrays, check_arrays(spec, arrays))
    while launch.step() < 1:
        pass
    path = (
        PRODUCTS if launch.words["path"] == DIRECT and "distances" in launch.words else launch.words["path"]
    )
    return path, launch.results()[0]


def agree(
    spec: Spec, arrays: Mapping[int, np.ndarray], tolerance: float = 1e-6, order: Order = "forward"
) -> None:
    path, found = run(spec, arrays, order=order)
    assert path == TENSOR
    want = truth(spec, arrays)
    assert np.abs(found - want).max() <= tolerance * np.abs(want).max()


@emulated
@pytest.mark.parametrize(
    "dim",
    [
        3,
        10,
        40,
        130,
        *(pytest.param(d, marks=pytest.mark.slow) for d in (4, 5, 6, 16, 17, 33, 65, 112, 113, 700)),
    ],
)
def test_sums_are_as_exact_as_the_certificate_says(dim: int) -> None:
    agree(gaussian(dim, 2.0 / dim), inputs(dim))


@emulated
@pytest.mark.parametrize("dim", [10, 130])
def test_the_order_of_threads_changes_no_bit(dim: int) -> None:
    spec, arrays = gaussian(dim, 2.0 / dim), inputs(dim)
    found = [run(spec, arrays, order=order)[1] for order in ORDERS]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


@emulated
@pytest.mark.parametrize("sizes", [(1, 70), (3, 5), (129, 64), (40, 3000), (300, 127)])
def test_odd_sizes_and_splits(sizes: tuple[int, int]) -> None:
    agree(gaussian(10, 0.2), inputs(10, *sizes))
    agree(gaussian(40, 0.05), inputs(40, *sizes))


@emulated
def test_points_far_from_the_origin_are_moved() -> None:
    agree(gaussian(10, 0.2), inputs(10, offset=100.0))


@emulated
@pytest.mark.parametrize(
    ("size", "scale"), [(1e-6, 1.5e11), (1e6, 1.5e-13), (1e-18, 1e30), (1.0, 1e-9), (1.0, 0.4)]
)
def test_points_of_every_size(size: float, scale: float) -> None:
    arrays = {n: a * np.float32(size) if n < 2 else a for n, a in inputs(10).items()}
    agree(gaussian(10, scale), arrays)
    arrays[0] *= np.float32(1e-3)  # rows and columns of different sizes
    agree(gaussian(10, scale), arrays)
    arrays[0][:] = arrays[0][0]  # all rows are one point
    agree(gaussian(10, scale), arrays)


@emulated
def test_one_point_many_times() -> None:
    arrays = inputs(10) | {0: np.full((70, 10), 3.5, np.float32), 1: np.full((150, 10), 3.5, np.float32)}
    agree(gaussian(10, 0.2), arrays, 1e-7)


def at_the_limit(dim: int, rows: int, offset: float) -> tuple[Spec, dict[int, np.ndarray]]:
    """Rows with one column, and nearly the narrowest Gaussian that the certificate allows."""
    arrays = inputs(dim, rows, 1, offset)
    largest = sum(float((arrays[n].astype(float) ** 2).sum(1).max()) for n in (0, 1))
    return gaussian(dim, 0.99 * ALLOWED * 2.0**24 / TENSOR_GROWTH / largest), arrays


@emulated
@pytest.mark.parametrize("dim", [3, 10, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("offset", [-0.5, 0.0])
def test_the_error_of_a_pair_is_what_the_certificate_counts_on(dim: int, offset: float) -> None:
    spec, arrays = at_the_limit(dim, 600, offset)
    path, found = run(spec, arrays)
    assert path == TENSOR
    error = found / truth(spec, arrays) - 1
    # A power of two is within 2^-22 too, and of each term there are three factors.
    assert float(np.sqrt((error**2).mean())) < ALLOWED / 2 and np.abs(error).max() < 2 * ALLOWED


@emulated
@pytest.mark.parametrize("value", [1e4, 1e30, np.inf, np.nan])
def test_without_the_certificate_distances_are_differences(value: float) -> None:
    spec, arrays = gaussian(12, 2.0 / 12), inputs(12)
    arrays[1][7, 3] = value
    path, found = run(spec, arrays)
    assert path == DIRECT
    np.testing.assert_array_equal(found, run(spec, arrays, DIRECT)[1])


def squared(dim: int) -> Expr:
    return node("SqDist", *points(dim))


def decay(dim: int, scale: float) -> Expr:
    return node("Exp", node("Minus", node("Mult", constant(scale), squared(dim))))


@emulated
@pytest.mark.parametrize("dim", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_gradients(dim: int) -> None:
    spec = summed(gradient(dim))
    arrays = {n: a for n, a in (inputs(dim) | {3: np.ones((70, 1), np.float32)}).items() if n in spec.inputs}
    arrays = {n: a * np.float32((3 / dim) ** 0.5) if n < 2 else a for n, a in arrays.items()}
    agree(spec, arrays, 2e-6)


@emulated
@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(summed(times(node("Add", decay(10, 0.1), decay(10, 0.3)))), id="two widths"),
        pytest.param(
            summed(times(node("Exp", node("Minus", node("Add", node("Mult", constant(0.2), squared(10)), variable(3, 1, I)))))),
            id="more in the exponent",
        ),
        pytest.param(Spec(node("Minus", node("Mult", constant(0.2), squared(10))), "LogSumExp", 1, "float32"), id="logsumexp"),
        pytest.param(Spec(times(decay(10, 0.2), 3), "Sum", 0, "float32"), id="the other axis"),
        pytest.param(
            summed(times(node("Exp", node("Minus", node("Mult", variable(4, 1, 2), squared(10)))), 3)), id="a parameter"
        ),
    ],
)  # fmt: skip
def test_other_formulas_of_the_family(spec: Spec) -> None:
    width = spec.inputs[2].params[1] if 2 in spec.inputs else 1
    rng = np.random.default_rng(5)
    more = {2: rng.random((150, width)), 3: rng.random((70, 1)), 4: np.array([0.15])}
    arrays = {n: a.astype(np.float32) for n, a in (inputs(10) | more).items() if n in spec.inputs}
    agree(spec, arrays)


@emulated
def test_what_tensor_cores_are_not_for() -> None:
    wide = summed(times(decay(12, 0.1), 20))
    arrays = inputs(12) | {2: np.ones((150, 20), np.float32)}
    assert run(wide, arrays)[0] == DIRECT and run(wide, arrays, PRODUCTS)[0] == PRODUCTS
    batch = {k: np.stack([a, a]) for k, a in inputs(12).items()}
    assert run(gaussian(12, 0.1), batch, None)[0] == DIRECT
    assert run(gaussian(12, 0.1), batch, PRODUCTS)[0] == PRODUCTS
    assert run(gaussian(2, 1.0), inputs(2))[0] == DIRECT
    double = summed(times(decay(12, 0.1)), "float64")
    arrays = {n: a.astype(np.float64) for n, a in inputs(12).items()}
    assert run(double, arrays)[0] == DIRECT


def test_the_cost_model_takes_tensor_cores_where_they_pay() -> None:
    card = Gpu(100, 3e13)
    assert tensor_pays(3, 10**6, 10**6, card) and tensor_pays(100, 10**5, 10**5, card)
    assert not tensor_pays(100, 1000, 1000, card)  # done before the points are looked at


@emulated
def test_a_large_job_goes_to_tensor_cores_by_itself() -> None:
    spec, arrays = gaussian(10, 0.2), inputs(10, 600, 2000)
    launch = Kernel(spec, EmulatedDriver(rate=1e9)).launch(arrays, check_arrays(spec, arrays))
    assert launch.words["path"] == TENSOR and "products" in launch.words["distances"]
