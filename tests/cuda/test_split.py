"""Several devices that compute one job: each its rows, with the answers of one device."""

from __future__ import annotations

import numpy as np
import pytest

from farsum_kernels import compile as compiling
from farsum_kernels.backends.cuda import split
from farsum_kernels.backends.cuda.backend import CudaBackend
from farsum_kernels.backends.cuda.split import SplitBackend
from farsum_kernels.errors import DeviceMissing
from farsum_kernels.formula.expr import I, J, node, variable
from farsum_kernels.job import Spec, check_arrays
from farsum_server.settings import Settings
from tests.conformance.test_ranges import _arrays, _ranges, _spec
from tests.cuda.cases import WORKLOADS, Case
from tests.cuda.driver import EmulatedDriver
from tests.cuda.test_kernels import agree, run

CASES = {
    "sum": Case("", WORKLOADS["W1"], 300, 200),
    "lists": Case("", WORKLOADS["W6-3"], 131, 200),
    "axis 0": Case("", Spec(WORKLOADS["W1"].parts[0].formula, "Sum", 0, "float32"), 90, 200),
    "batch that broadcasts": Case("", WORKLOADS["W1"], 67, 100, (2, 3), {1: (3, 100, 3), 2: (2, 1, 100, 1)}),
}


def devices(*rates: float) -> tuple[SplitBackend, list[EmulatedDriver]]:
    drivers = [EmulatedDriver(rate=rate) for rate in rates]
    return SplitBackend([CudaBackend(n, driver) for n, driver in enumerate(drivers)]), drivers


@pytest.fixture(autouse=True)
def all_jobs_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "WORTH_S", 0.0)


@pytest.mark.emulated
@pytest.mark.parametrize("name", CASES)
def test_devices_share_the_rows_of_a_job(name: str) -> None:
    case, (backend, drivers) = CASES[name], devices(1e15, 2e15)
    arrays = case.arrays()
    kernel = backend.compile(case.spec)
    digests = {n: bytes([n]) * 32 for n in arrays}

    def results():
        launch = kernel.launch(arrays, check_arrays(case.spec, arrays), digests)
        assert launch.words["devices"] == "2"
        while launch.step() < 1:
            pass
        return launch.results()

    got = results()
    agree(case.spec, got, arrays)
    for a, b in zip(got, run(case.spec, arrays), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6)
    assert all(driver.launches for driver in drivers)
    # The faster one has twice the rows; both keep what they were sent.
    if not case.batch:
        assert drivers[0].uploaded < drivers[1].uploaded
    for driver in drivers:
        driver.uploaded = 0
    for a, b in zip(got, results(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [driver.uploaded for driver in drivers] == [0, 0]


@pytest.mark.emulated
def test_what_one_device_computes_alone() -> None:
    numbered = node("Mult", variable(1, 1, J), node("RowIndex", variable(0, 1, I)))
    for spec, arrays in (
        (_spec("Sum", 1), _arrays(_ranges())),
        (
            Spec(numbered, "Sum", 1, "float32"),
            {0: np.ones((9, 1), np.float32), 1: np.ones((20, 1), np.float32)},
        ),
    ):
        backend, drivers = devices(1e15, 1e15)
        launch = backend.compile(spec).launch(arrays, check_arrays(spec, arrays))
        while launch.step() < 1:
            pass
        agree(spec, launch.results(), arrays, factor=4)
        assert not drivers[1].launches


def test_the_words_for_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farsum_kernels.backends.cuda.backend.CudaDriver", lambda number: EmulatedDriver())
    assert isinstance(compiling.backend_for("cuda:0+cuda:1"), SplitBackend)
    assert isinstance(compiling.backend_for("cuda:1"), CudaBackend)
    assert isinstance(compiling.backend_for("cuda:1+cuda:1"), CudaBackend)
    for wrong in ("cuda:0+cpu", "cuda:0+", "+cuda:0", "cuda:0 cuda:1"):
        with pytest.raises(DeviceMissing):
            compiling.backend_for(wrong)
    assert Settings(device="cuda:0+cuda:1,cpu").device == "cuda:0+cuda:1,cpu"
    with pytest.raises(ValueError):
        Settings(device="cuda:0+cpu")
