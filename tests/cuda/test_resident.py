"""Arrays that stay on a device by their digest: a worker copies them once, and gives them up when memory is needed."""

from __future__ import annotations

import numpy as np
import pytest
from blake3 import blake3

from farsum_kernels.backends.cuda.backend import CudaBackend
from farsum_kernels.backends.cuda.resident import Resident
from farsum_kernels.errors import DeviceFull
from farsum_kernels.job import Spec
from farsum_kernels.program import Program
from farsum_server.worker import Worker
from tests.cuda.cases import WORKLOADS, Case
from tests.cuda.driver import EmulatedDriver
from tests.cuda.test_kernels import agree
from tests.programs.recipes import power_arrays, power_iteration

KIB = 1 << 10


def worker(monkeypatch: pytest.MonkeyPatch, driver: EmulatedDriver) -> Worker:
    """A worker on an emulated device; all else about it is real."""
    monkeypatch.setattr("farsum_server.worker.backend_for", lambda *_: CudaBackend(0, driver))
    return Worker(None, "cuda:0")


def digests_of(arrays: dict[int, np.ndarray]) -> dict[int, bytes]:
    return {n: blake3(a.tobytes()).digest() for n, a in arrays.items()}


def result(on: Worker, spec: Spec | Program, arrays: dict[int, np.ndarray], digests: dict[int, bytes] | None):
    run = on.start(spec, arrays, None, digests)
    while run.step() < 1:
        pass
    return run.finish(), run.plan


@pytest.mark.emulated
def test_a_second_job_with_the_same_arrays_copies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, case = EmulatedDriver(), Case("", WORKLOADS["W1"])
    on, arrays = worker(monkeypatch, driver), case.arrays()
    digests = digests_of(arrays)
    first, _ = result(on, case.spec, arrays, digests)
    driver.uploaded = 0
    second, plan = result(on, case.spec, {n: a.copy() for n, a in arrays.items()}, digests)
    assert driver.uploaded == 0 and plan["resident"] == "3 of 3 arrays"
    np.testing.assert_array_equal(first[0], second[0])
    # Another reduction of the same points copies its own tables alone, and other contents are copied.
    _, plan = result(on, WORKLOADS["W5-3"], {n: arrays[n] for n in (0, 1)}, digests)
    assert plan["resident"] == "2 of 2 arrays"
    other = {**arrays, 2: arrays[2] + 1}
    driver.uploaded = 0
    got, plan = result(on, case.spec, other, digests_of(other))
    assert driver.uploaded == other[2].nbytes and plan["resident"] == "2 of 3 arrays"
    agree(case.spec, got, other)
    # Without digests nothing is kept.
    driver.uploaded = 0
    result(on, case.spec, arrays, None)
    assert driver.uploaded == sum(a.nbytes for a in arrays.values())


@pytest.mark.emulated
def test_copies_give_way_before_a_job_is_cut_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = EmulatedDriver(budget=200 * KIB)
    on = worker(monkeypatch, driver)
    case = Case("", WORKLOADS["W1"], 300, 4000)
    for seed in range(4):
        arrays = case.arrays(seed)
        got, plan = result(on, case.spec, arrays, digests_of(arrays))
        agree(case.spec, got, arrays)
        assert "pieces" not in plan
    assert driver.peak <= driver.budget


@pytest.mark.emulated
def test_the_inputs_of_a_program_are_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = EmulatedDriver()
    on = worker(monkeypatch, driver)
    program, arrays = power_iteration(400, 4), power_arrays(400)
    result(on, program, arrays, digests_of(arrays))
    driver.uploaded = 0
    result(on, program, arrays, digests_of(arrays))
    again = driver.uploaded
    driver.uploaded = 0
    result(on, program, arrays, None)
    assert again < driver.uploaded / 2


def test_a_copy_that_a_job_reads_is_never_given_up() -> None:
    driver = EmulatedDriver(budget=10 * KIB)
    resident = Resident(driver, 8 * KIB)
    arrays = [np.full(1000, n, np.float32) for n in range(3)]
    keys = [bytes([n]) * 32 for n in range(3)]
    held = resident.lease(arrays[0], keys[0])
    assert resident.idle_bytes() == 0 and not resident.evict()
    resident.lease(arrays[1], keys[1])  # and given back at once
    assert resident.idle_bytes() == 4000
    third = resident.lease(arrays[2], keys[2])  # in the place of the second
    assert resident.lease(arrays[0], keys[0]).found and not third.found
    with pytest.raises(DeviceFull):
        resident.lease(arrays[1], keys[1])
    np.testing.assert_array_equal(held.buffer, arrays[0])
    del held, third
    assert resident.idle_bytes() == 8000
    assert not resident.lease(arrays[1], keys[1]).found
    assert resident.evict() and driver.held == 0
