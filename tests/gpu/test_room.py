"""Pieces, streams, copies that stay and the budget of modules, on a real GPU. Skips without one, and says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from farsum_kernels import compile
from farsum_kernels.backends.cuda import driver as cuda
from farsum_kernels.backends.cuda import room
from farsum_kernels.backends.cuda.driver import CudaDriver
from farsum_kernels.backends.cuda.kernel import Kernel
from farsum_kernels.backends.cuda.launch import Launch
from farsum_kernels.backends.cuda.pieces import Pieces
from farsum_kernels.backends.cuda.resident import Resident
from farsum_kernels.errors import DeviceMissing
from farsum_kernels.job import check_arrays
from tests.cuda.cases import WORKLOADS, Case
from tests.cuda.test_kernels import agree
from tests.cuda.test_room import CASES

pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> CudaDriver:
    try:
        return CudaDriver()
    except DeviceMissing:
        pytest.skip("no CUDA device")


def values(launch: compile.Launch) -> tuple[np.ndarray, ...]:
    while launch.step() < 1:
        pass
    return launch.results()


@pytest.mark.parametrize("name", CASES)
def test_a_job_in_pieces(name: str, device: CudaDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    case, budget = CASES[name]
    monkeypatch.setattr(room, "STREAM_BYTES", 8 << 10)
    device.gpu = replace(device.gpu, memory=budget // 4)
    monkeypatch.setattr(device, "room", lambda: budget)
    arrays = case.arrays()
    launch = Kernel(case.spec, device).launch(arrays, check_arrays(case.spec, arrays))
    assert isinstance(launch, Pieces)
    agree(case.spec, values(launch), arrays, factor=2)


def test_long_streams_give_the_sum_of_the_whole(device: CudaDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    # Long enough for copies and kernels to run into each other, if they may.
    case = Case("", WORKLOADS["W1"], 2000, 3_000_000)
    arrays = case.arrays()
    extent = check_arrays(case.spec, arrays)
    whole = values(Kernel(case.spec, device).bind(arrays, extent))
    monkeypatch.setattr(room, "STREAM_BYTES", 2 << 20)
    budget = 16 << 20
    device.gpu = replace(device.gpu, memory=budget // 4)
    monkeypatch.setattr(device, "room", lambda: budget)
    launch = Kernel(case.spec, device).bind(arrays, extent)
    assert isinstance(launch, Pieces) and "streamed" in launch.words["pieces"]
    np.testing.assert_allclose(values(launch)[0], whole[0], rtol=1e-6)


def test_arrays_stay(device: CudaDriver) -> None:
    case = Case("", WORKLOADS["W1"], 500, 700)
    kernel = Kernel(case.spec, device, resident=Resident(device, 64 << 20))
    arrays = case.arrays()
    digests = {n: bytes([n]) * 32 for n in arrays}
    first, second = (kernel.launch(arrays, check_arrays(case.spec, arrays), digests) for _ in range(2))
    assert second.words["resident"] == "3 of 3 arrays"
    for a, b in zip(values(first), values(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_modules_past_the_budget_are_loaded_again(
    device: CudaDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "MAX_MODULES", 1)
    small = CudaDriver()
    for _ in range(2):
        for name in ("W1", "W5-3"):
            case = Case(name, WORKLOADS[name], 100, 100)
            arrays = case.arrays()
            launch = Kernel(case.spec, small).launch(arrays, check_arrays(case.spec, arrays))
            agree(case.spec, values(launch), arrays, factor=2)


def test_a_slice_is_timed(device: CudaDriver) -> None:
    case = Case("", WORKLOADS["W1"], 20_000, 20_000)
    arrays = case.arrays()
    launch = Kernel(case.spec, device).bind(arrays, check_arrays(case.spec, arrays))
    assert isinstance(launch, Launch)
    launch.try_out()
    assert 0 < launch.try_out() * 4e8 < 1
