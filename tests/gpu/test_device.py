"""The CUDA backend on a real GPU. Without one these tests skip and say so; `make gpu-check` runs them where there is one."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from farsum_kernels.backends.cuda.driver import CudaDriver
from farsum_kernels.backends.cuda.launch import Kernel
from farsum_kernels.backends.cuda.layout import DIRECT, FILTER
from farsum_kernels.errors import DeviceMissing
from farsum_kernels.job import check_arrays
from tests.cuda.cases import CASES, Case, over_distances
from tests.cuda.test_kernels import agree

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
