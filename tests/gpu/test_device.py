"""The CUDA backend on a real GPU. Without one these tests skip and say so; `make gpu-check` runs them where there is one."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from farsum_kernels.backends.certified import ALLOWED
from farsum_kernels.backends.cuda.driver import CudaDriver
from farsum_kernels.backends.cuda.kernel import Kernel
from farsum_kernels.backends.cuda.layout import DIRECT, FILTER, TENSOR
from farsum_kernels.errors import DeviceMissing
from farsum_kernels.job import check_arrays
from tests.cuda.cases import CASES, Case, over_distances
from tests.cuda.test_kernels import agree
from tests.cuda.test_products import gaussian, inputs, truth
from tests.cuda.test_tensor import at_the_limit

pytestmark = pytest.mark.gpu


@cache
def driver() -> CudaDriver | None:
    try:
        return CudaDriver()
    except DeviceMissing:
        return None


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_kernel_has_the_value_of_the_definition(case: Case) -> None:
    device = driver()
    if device is None:
        pytest.skip("no CUDA device")
    arrays = case.arrays()
    launch = Kernel(case.spec, device).launch(arrays, check_arrays(case.spec, arrays))
    while launch.step() < 1:
        pass
    agree(case.spec, launch.results(), arrays, factor=2)


@pytest.mark.parametrize("dim", [20, 100, 300])
@pytest.mark.parametrize(("reduction", "k"), [("Min_ArgMin", 0), ("KMin_ArgKMin", 10), ("Max_ArgMax", 0)])
def test_the_filter_changes_no_bit(reduction: str, k: int, dim: int) -> None:
    device = driver()
    if device is None:
        pytest.skip("no CUDA device")
    case = Case("filter", over_distances(reduction, dim, k=k), 3000, 20_000)
    arrays, found = case.arrays(), []
    for path in (DIRECT, FILTER):
        launch = Kernel(case.spec, device, path).launch(arrays, check_arrays(case.spec, arrays))
        while launch.step() < 1:
            pass
        assert launch.words["path"] == path
        found.append(launch.results())
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dim", [3, 10, 40, 100, 112, 300, 1000])
def test_products_from_tensor_cores_are_as_exact_as_their_certificate_says(dim: int) -> None:
    device = driver()
    if device is None:
        pytest.skip("no CUDA device")
    spec, arrays = gaussian(dim, 2.0 / dim), inputs(dim, 1000, 3000)
    launch = Kernel(spec, device, TENSOR).launch(arrays, check_arrays(spec, arrays))
    while launch.step() < 1:
        pass
    assert launch.words["path"] == TENSOR
    np.testing.assert_allclose(launch.results()[0], truth(spec, arrays), rtol=1e-6)


@pytest.mark.parametrize("offset", [-0.5, 0.0])
@pytest.mark.parametrize("dim", [3, 10, 100, 1000])
def test_the_error_of_a_pair_on_tensor_cores(dim: int, offset: float) -> None:
    # The largest scale that the certificate allows: here the card shows how it cuts off.
    device = driver()
    if device is None:
        pytest.skip("no CUDA device")
    spec, arrays = at_the_limit(dim, 4000, offset)
    launch = Kernel(spec, device, TENSOR).launch(arrays, check_arrays(spec, arrays))
    while launch.step() < 1:
        pass
    assert launch.words["path"] == TENSOR
    error = launch.results()[0] / truth(spec, arrays) - 1
    assert float(np.sqrt((error**2).mean())) < ALLOWED / 2 and np.abs(error).max() < 2 * ALLOWED


def test_a_job_that_comes_again_is_played() -> None:
    device = driver()
    if device is None:
        pytest.skip("no CUDA device")
    spec, arrays = gaussian(10, 0.2), inputs(10, 600, 2000)
    kernel, before = Kernel(spec, device, TENSOR), device.graphs.played
    for turn in range(8):
        own = {n: np.roll(a, turn, axis=0) for n, a in arrays.items()}
        launch = kernel.launch(own, check_arrays(spec, own))
        while launch.step() < 1:
            pass
        np.testing.assert_allclose(launch.results()[0], truth(spec, own), rtol=1e-6)
    assert device.graphs.played > before
