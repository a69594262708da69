"""Distances from norms and scalar products on a device: where the certificate holds, and only there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from farsum_kernels.backends import reference
from farsum_kernels.backends.cuda import nvrtc
from farsum_kernels.backends.cuda.kernel import Kernel
from farsum_kernels.backends.cuda.layout import DIRECT, PRODUCTS
from farsum_kernels.backends.cuda.resident import Resident
from farsum_kernels.formula.expr import I, J, constant, node, variable
from farsum_kernels.job import Extent, Spec, check_arrays
from tests.cuda.cases import WORKLOADS, summed, times
from tests.cuda.driver import EmulatedDriver
from tests.cuda.emulate import ORDERS, Order
from tests.cuda.test_nvrtc import ARCHITECTURES, Unloaded

emulated = pytest.mark.emulated


def gaussian(dim: int, scale: float) -> Spec:
    distance = node("SqDist", variable(0, dim, I), variable(1, dim, J))
    return summed(times(node("Exp", node("Minus", node("Mult", constant(scale), distance)))))


def inputs(dim: int, m: int = 70, n: int = 150, offset: float = 0.0) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(dim)
    made = {0: rng.random((m, dim)) + offset, 1: rng.random((n, dim)) + offset, 2: rng.random((n, 1))}
    return {k: a.astype(np.float32) for k, a in made.items()}


def run(
    spec: Spec, arrays: Mapping[int, np.ndarray], path: str | None = PRODUCTS, order: Order = "forward"
) -> tuple[bool, tuple[np.ndarray, ...]]:
    """Were distances taken from products, and the results."""
    launch = Kernel(spec, EmulatedDriver(order), path).launch(arrays, check_arrays(spec, arrays))
    while launch.step() < 1:
        pass
    return "distances" in launch.words, launch.results()


def truth(spec: Spec, arrays: Mapping[int, np.ndarray]) -> np.ndarray:
    return reference.run(spec, {n: a.astype(np.float64) for n, a in arrays.items()})[0]


@emulated
@pytest.mark.parametrize(
    "dim", [12, 100, pytest.param(33, marks=pytest.mark.slow), pytest.param(500, marks=pytest.mark.slow)]
)
def test_sums_are_as_exact_as_the_certificate_says(dim: int) -> None:
    spec, arrays = gaussian(dim, 2.0 / dim), inputs(dim)
    given, (found,) = run(spec, arrays)
    assert given
    np.testing.assert_allclose(found, truth(spec, arrays), rtol=1e-6)
    for order in ORDERS[1:]:
        np.testing.assert_array_equal(run(spec, arrays, order=order)[1][0], found)


@emulated
def test_points_far_from_the_origin_are_moved() -> None:
    spec, arrays = gaussian(12, 2.0 / 12), inputs(12, offset=100.0)
    given, (found,) = run(spec, arrays)
    assert given
    np.testing.assert_allclose(found, truth(spec, arrays), rtol=1e-6)


@emulated
@pytest.mark.parametrize("value", [1e4, 1e30, np.inf, np.nan])
def test_without_the_certificate_distances_are_differences(value: float) -> None:
    spec, arrays = gaussian(12, 2.0 / 12), inputs(12)
    arrays[1][7, 3] = value
    given, (found,) = run(spec, arrays)
    assert not given
    np.testing.assert_array_equal(found, run(spec, arrays, DIRECT)[1][0])


@emulated
@pytest.mark.slow
def test_narrow_kernels_gradients_and_batches() -> None:
    assert not run(gaussian(12, 1e3), inputs(12))[0]
    arrays = inputs(100) | {3: np.ones((70, 1), np.float32)}
    spec = WORKLOADS["gradient-100"]
    arrays = {n: a * np.float32(0.1) if n < 2 else a for n, a in arrays.items() if n in spec.inputs}
    given, (found,) = run(spec, arrays)
    assert given
    want = truth(spec, arrays)
    assert np.abs(found - want).max() < 2e-6 * np.abs(want).max()
    batch = {k: np.stack([a, a * np.float32(0.5)]) for k, a in inputs(12).items()}
    spec = gaussian(12, 2.0 / 12)
    given, (found,) = run(spec, batch)
    assert given
    np.testing.assert_allclose(found, truth(spec, batch), rtol=1e-6)


def test_the_host_looks_at_points_only_where_that_takes_less_time_than_it_gains() -> None:
    spec, extent = gaussian(12, 2.0 / 12), Extent(2000, 2000, (1,))
    arrays = {k: a[None] for k, a in inputs(12, 2000, 2000).items()}

    def given(rate: float, path: str | None = None) -> bool:
        by_products = Kernel(spec, EmulatedDriver(rate=rate), path).by_products
        assert by_products
        return by_products.launch(arrays, extent, None) is not None

    assert given(1e9) and not given(1e15) and not given(1e9, DIRECT)


def test_moved_points_are_known_by_what_they_are_made_of() -> None:
    spec, arrays = gaussian(12, 2.0 / 12), inputs(12, offset=100.0)
    driver = EmulatedDriver()
    kernel = Kernel(spec, driver, PRODUCTS, resident=Resident(driver, 1 << 20))
    digests = {n: bytes([n]) * 32 for n in arrays}
    first, second = (kernel.launch(arrays, check_arrays(spec, arrays), digests) for _ in range(2))
    assert first.words["resident"] == "0" and second.words["resident"] == "3 of 3 arrays"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", ["W4-10", "W4-100", "W4-1000", "gradient-100"])
def test_no_register_is_spilled(name: str, arch: int) -> None:
    by_products = Kernel(WORKLOADS[name], Unloaded()).by_products
    assert by_products and by_products.plain
    kernel = by_products.plain.kernel
    for place in range(len(kernel.layouts)):
        _, usage = nvrtc.compile(kernel.variant(place).text.source, arch)
        assert usage["reduce"].spilled_bytes == 0
