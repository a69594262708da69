"""Launches that come again are recorded and played, and only where every argument is the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from farsum_kernels.backends.cuda import graphs
from farsum_kernels.backends.cuda.graphs import Call, Graphs
from farsum_kernels.backends.cuda.kernel import Kernel
from farsum_kernels.backends.cuda.layout import FILTER, TENSOR
from farsum_kernels.backends.cuda.resident import Resident
from farsum_kernels.job import check_arrays
from tests.cuda.cases import WORKLOADS, Case, over_distances
from tests.cuda.driver import EmulatedDriver
from tests.cuda.test_products import gaussian, inputs, truth


class Recorder:
    """Launches and records as words; buffers are numbers of places."""

    def __init__(self, records: bool = True) -> None:
        self.log: list[str] = []
        self.graphs = Graphs(
            lambda call: self.log.append(f"launch {call.name}"),
            lambda calls: self._record(calls) if records else None,
            lambda record: self.log.append(f"play {record}"),
            int,
        )

    def _record(self, calls: Any) -> str:
        self.log.append("record")
        return f"{len(calls)} from {calls[0].name}"

    def run(self, *calls: Call) -> list[str]:
        self.log.clear()
        self.graphs.run(calls)
        return list(self.log)


def series(*buffers: Any, count: int = graphs.LEAST, size: int = 5, grid: int = 1) -> list[Call]:
    return [Call("module", f"k{n}", (grid, 1), (128, 1), 0, [*buffers, np.int64(size)]) for n in range(count)]


def test_the_first_time_launches_the_second_records_and_plays_the_third_plays() -> None:
    recorder, calls = Recorder(), series(100, None)
    assert recorder.run(*calls) == [f"launch k{n}" for n in range(len(calls))]
    assert recorder.run(*calls) == ["record", f"play {len(calls)} from k0"]
    assert recorder.run(*calls) == [f"play {len(calls)} from k0"]


@pytest.mark.parametrize(
    "other",
    [series(101, None), series(None, 100), series(100, None, size=6), series(100, None, grid=2), series(100, 0)[::-1]],
    ids=["address", "order", "number", "grid", "kernels"],
)  # fmt: skip
def test_what_differs_in_anything_is_another_series(other: list[Call]) -> None:
    recorder, calls = Recorder(), series(100, None)
    for _ in range(2):
        recorder.run(*calls)
    assert all(word.startswith("launch") for word in recorder.run(*other))


def test_short_series_and_devices_that_cannot_record() -> None:
    recorder, calls = Recorder(), series(100, count=graphs.LEAST - 1)
    assert {len(recorder.run(*calls)) for _ in range(3)} == {len(calls)}
    recorder, calls = Recorder(records=False), series(100)
    assert {len(recorder.run(*calls)) for _ in range(3)} == {len(calls)}


def test_records_are_few_and_go_with_the_code_that_they_run() -> None:
    recorder = Recorder()
    for place in range(graphs.MOST + 1):
        for _ in range(2):
            recorder.run(*series(place))
    assert len(recorder.run(*series(graphs.MOST))) == 1  # played
    assert len(recorder.run(*series(0))) == graphs.LEAST  # forgotten: launched again
    recorder.graphs.drop()
    assert len(recorder.run(*series(graphs.MOST))) == graphs.LEAST


def test_what_came_once_is_not_remembered_for_ever() -> None:
    recorder = Recorder()
    for place in range(graphs.ONCE + 1):
        recorder.run(*series(place))
    assert len(recorder.run(*series(0))) == graphs.LEAST


@pytest.mark.emulated
@pytest.mark.parametrize("path", [FILTER, TENSOR])
def test_a_job_that_comes_again_is_played_and_sees_what_its_arrays_hold_now(path: str) -> None:
    if path == TENSOR:
        spec, arrays = gaussian(10, 0.2), inputs(10)
    else:
        spec = over_distances("Min_ArgMin", 40)
        arrays = Case("", spec, 70, 150).arrays()
    driver, other = EmulatedDriver(), EmulatedDriver()
    other.graphs.least = 1000
    kernels = Kernel(spec, driver, path), Kernel(spec, other, path)
    for turn in range(6):
        arrays = {n: np.roll(a, turn, axis=0) for n, a in arrays.items()}
        found = []
        for kernel in kernels:
            launch = kernel.launch(arrays, check_arrays(spec, arrays))
            while launch.step() < 1:
                pass
            found.append(launch.results())
        for a, b in zip(*found, strict=True):
            np.testing.assert_array_equal(a, b)
    # Memory of one size is given out in turns: a series may come at two sets of places.
    assert driver.graphs.played >= 3 and not other.graphs.played


@pytest.mark.emulated
def test_arrays_at_other_places_are_not_taken_for_those_of_a_record() -> None:
    spec, arrays = gaussian(10, 0.2), inputs(10)
    driver = EmulatedDriver()
    kernel = Kernel(spec, driver, TENSOR, resident=Resident(driver, 1 << 20))
    for turn in range(6):
        own = arrays | {2: arrays[2] * np.float32(1 + turn % 2)}
        # Two copies of the weights stay on the device, at two places.
        digests = {0: b"x" * 32, 1: b"y" * 32, 2: bytes([turn % 2]) * 32}
        launch = kernel.launch(own, check_arrays(spec, own), digests)
        while launch.step() < 1:
            pass
        np.testing.assert_allclose(launch.results()[0], truth(spec, own), rtol=1e-6)
    assert driver.graphs.played


@pytest.mark.emulated
def test_slices_are_borders_that_no_record_crosses() -> None:
    case = Case("", WORKLOADS["W1"], 2500, 700)
    arrays = case.arrays()
    driver = EmulatedDriver(rate=1e7)
    driver.graphs.least = 2
    kernel = Kernel(case.spec, driver)
    for _ in range(3):
        launch = kernel.bind(arrays, check_arrays(case.spec, arrays))
        steps = 1
        while launch.step() < 1:
            steps += 1
        launch.results()
    assert steps > 2 and not driver.graphs.played
