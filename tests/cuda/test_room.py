"""Jobs that do not fit on the device: in pieces, with streamed columns, after refusals. Same answers, within the budget."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from farsum_kernels.backends import reference
from farsum_kernels.backends.cuda import room
from farsum_kernels.backends.cuda.kernel import Kernel
from farsum_kernels.backends.cuda.launch import made_by
from farsum_kernels.backends.cuda.pieces import Pieces, _Feed
from farsum_kernels.errors import DeviceFull
from farsum_kernels.formula.expr import I, J, node, variable
from farsum_kernels.job import RANGES, Spec, check_arrays
from tests.conformance.test_ranges import _arrays, _ranges, _spec
from tests.cuda.cases import WORKLOADS, Case, over_distances
from tests.cuda.driver import EmulatedDriver, Pace
from tests.cuda.test_kernels import agree, run

pytestmark = pytest.mark.emulated

KIB = 1 << 10


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a device that has kilobytes, stretches are as short.
    monkeypatch.setattr(room, "STREAM_BYTES", 8 * KIB)


def pieces(
    spec: Spec, arrays: Mapping[int, np.ndarray], driver: EmulatedDriver
) -> tuple[Pieces, tuple[np.ndarray, ...]]:
    launch = Kernel(spec, driver).launch(arrays, check_arrays(spec, arrays))
    assert isinstance(launch, Pieces)
    shares = []
    while (share := launch.step()) < 1:
        shares.append(share)
    assert shares == sorted(shares)
    return launch, launch.results()


CASES = {
    "rows": (Case("", WORKLOADS["W1"], 40_000, 150), 700 * KIB),
    "columns": (Case("", WORKLOADS["W1"], 150, 12_000), 100 * KIB),
    "rows and columns": (Case("", WORKLOADS["W1"], 2300, 4000), 100 * KIB),
    "argmin": (Case("", WORKLOADS["W5-3"], 150, 9000), 70 * KIB),
    "lists": (Case("", WORKLOADS["W6-3"], 300, 4000), 130 * KIB),
    "lists and panels": (Case("", WORKLOADS["W6-100"], 70, 1500), 760 * KIB),
    "logsumexp": (Case("", WORKLOADS["W7"], 150, 6000), 60 * KIB),
    "wide weights": (Case("", over_distances("SumSoftMaxWeight", 3, weight=variable(2, 20, J)), 100, 4000), 320 * KIB),
    "panels": (Case("", WORKLOADS["W4-100"], 70, 900), 220 * KIB),
    "batch": (Case("", WORKLOADS["W1"], 1100, 300, (7,)), 100 * KIB),
    "batch that broadcasts": (
        Case("", WORKLOADS["W1"], 67, 700, (2, 3), {1: (3, 700, 3), 2: (2, 1, 700, 1)}), 40 * KIB,
    ),
    "one array for all of a batch": (Case("", WORKLOADS["W1"], 67, 700, (8,), {1: (700, 3), 2: (700, 1)}), 30 * KIB),
    "axis 0": (Case("", Spec(WORKLOADS["W1"].parts[0].formula, "Sum", 0, "float32"), 9000, 150), 100 * KIB),
    "float16": (Case("", Spec(WORKLOADS["W1"].parts[0].formula, "Sum", 1, "float16"), 150, 9000), 60 * KIB),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_job_that_does_not_fit_is_computed_in_pieces(name: str) -> None:
    case, budget = CASES[name]
    arrays = case.arrays()
    driver = EmulatedDriver(budget=budget)
    launch, got = pieces(case.spec, arrays, driver)
    assert driver.peak <= budget
    assert launch.words["pieces"]
    agree(case.spec, got, arrays)
    whole = run(case.spec, arrays)
    for a, b in zip(got, whole, strict=True):
        if a.dtype == np.int64:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(
                a.astype(float), b.astype(float), rtol=2e-3 if case.spec.dtype == "float16" else 2e-6
            )


@pytest.mark.parametrize("reduction", ["Sum", "KMin_ArgKMin"])
@pytest.mark.parametrize("axis", [0, 1])
def test_ranges_in_pieces(reduction: str, axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "TILE", 16)
    arrays, spec = _arrays(_ranges()), _spec(reduction, axis)
    kernel = Kernel(spec, EmulatedDriver())
    extent = check_arrays(spec, arrays)
    held, blocks = (
        [arrays[n] for n in kernel.indices],
        [arrays[n] for n in (RANGES[:3] if axis else RANGES[3:])],
    )
    launch = Pieces(kernel, held, extent, made_by(spec, extent), blocks, 6 * KIB)
    assert "streamed" in launch.words["pieces"]
    while launch.step() < 1:
        pass
    agree(spec, launch.results(), arrays, factor=4)


def test_equal_values_go_to_the_smallest_index_across_stretches() -> None:
    y = np.tile(np.arange(8.0)[:, None], (4000, 1)).astype(np.float32)
    x = np.arange(-2.0, 10.0, 0.5, dtype=np.float32)[:, None]
    for reduction, k in (("ArgMin", 0), ("ArgKMin", 5)):
        spec = Spec(node("SqDist", variable(0, 1, I), variable(1, 1, J)), reduction, 1, "float32", k=k)
        _, got = pieces(spec, {0: x, 1: y}, EmulatedDriver(budget=110 * KIB))
        np.testing.assert_array_equal(got[0], reference.run(spec, {0: x, 1: y})[0])


@pytest.mark.parametrize("pace", ["early copies", "late copies"])
def test_copies_beside_kernels_change_no_bit(pace: Pace) -> None:
    case, budget = CASES["columns"]
    _, at_once = pieces(case.spec, case.arrays(), EmulatedDriver(budget=budget))
    _, beside = pieces(case.spec, case.arrays(), EmulatedDriver(budget=budget, pace=pace))
    np.testing.assert_array_equal(at_once[0], beside[0])


@pytest.mark.parametrize(("pace", "fault"), [("early copies", "used"), ("late copies", "sent")])
def test_a_missing_wait_between_copies_and_kernels_shows(
    pace: Pace, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, budget = CASES["columns"]
    fill = _Feed.fill

    def hasty(self: _Feed, *args):
        if fault == "used":  # the columns at hand are overwritten while a kernel may still read them
            self.used = None
        else:  # the memory of the host is filled again while it may still be copied
            self._sent = []
        return fill(self, *args)

    monkeypatch.setattr(_Feed, "fill", hasty)
    _, got = pieces(case.spec, case.arrays(), EmulatedDriver(budget=budget, pace=pace))
    assert not np.allclose(got[0], run(case.spec, case.arrays())[0], rtol=1e-3)


@pytest.mark.parametrize("name", ["rows", "columns", "lists"])
def test_a_device_that_is_fuller_than_it_says_gets_smaller_pieces(name: str) -> None:
    case, budget = CASES[name]
    driver = EmulatedDriver(budget=budget, claims=8 * budget)
    _, got = pieces(case.spec, case.arrays(), driver)
    assert driver.peak <= budget
    agree(case.spec, got, case.arrays())


def test_what_does_not_fit_however_it_is_cut() -> None:
    case, _ = CASES["rows"]
    driver = EmulatedDriver(budget=4 * KIB)
    launch = Kernel(case.spec, driver).launch(case.arrays(), check_arrays(case.spec, case.arrays()))
    with pytest.raises(DeviceFull, match="not even"):
        launch.step()
    del launch
    assert driver.held == 0
