"""Layouts that are tried and remembered. Times are given by the tests, since those of the emulator say nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farsum_kernels.backends.cuda.backend import CudaBackend
from farsum_kernels.job import check_arrays
from tests.cuda.cases import WORKLOADS, Case
from tests.cuda.driver import EmulatedDriver
from tests.cuda.test_kernels import agree

pytestmark = pytest.mark.emulated

CASE = Case("", WORKLOADS["W3"], 2500, 300)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FARSUM_CACHE", str(tmp_path))
    monkeypatch.setenv("FARSUM_TUNE", "1")
    return tmp_path / "tuned"


def layout_of(backend: CudaBackend, case: Case = CASE) -> Any:
    kernel, arrays = backend.compile(case.spec), case.arrays()
    launch = kernel.launch(arrays, check_arrays(case.spec, arrays))
    while launch.step() < 1:
        pass
    agree(case.spec, launch.results(), arrays)
    return kernel.layouts.index(launch.plan.layout)


def device(*seconds: float) -> tuple[EmulatedDriver, Iterator[float]]:
    """One on which the job is one slice, whose trials take so long; one trial more is an error."""
    driver, left = EmulatedDriver(rate=2e8), iter(seconds)
    driver.seconds = lambda launches: next(left)
    return driver, left


def test_the_fastest_layout_is_taken_and_remembered(folder: Path) -> None:
    # Two rounds each; the first one counts for nothing if the second is faster.
    driver, left = device(9, 5, 9, 3, 9, 2)
    backend = CudaBackend(0, driver)
    assert layout_of(backend) == 2
    assert next(left, None) is None
    assert layout_of(backend) == 2  # known: no trial is left
    assert layout_of(CudaBackend(0, device()[0])) == 2  # of another process too
    (table,) = folder.iterdir()
    assert "emulated-device" in table.name and "nvrtc" in table.name
    # Sizes of another class are tried anew, and a table that is none is made anew.
    table.write_text("{")
    driver, left = device(5, 5, 5, 5, 5, 5)
    assert layout_of(CudaBackend(0, driver), Case("", WORKLOADS["W3"], 5000, 130)) == 0
    assert next(left, None) is None


def test_what_is_hardly_faster_is_not_taken() -> None:
    driver, _ = device(4.9, 4.9, 5, 5, 4.95, 4.95)
    assert layout_of(CudaBackend(0, driver)) == 1  # as without trying


def test_nothing_is_tried_unless_asked_for_or_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, _ = device()
    driver.gpu = EmulatedDriver().gpu  # so fast that the job is over at once
    layout_of(CudaBackend(0, driver))
    monkeypatch.delenv("FARSUM_TUNE")
    layout_of(CudaBackend(0, device()[0]))
