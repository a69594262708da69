"""The report of `make gpu-check`, of which there is one try on a card: whatever fails or hangs, the rest is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_check, gpu_workloads, measure
from benchmarks.gpu_check import Report
from farsum_kernels.errors import DeviceFault
from tests.cuda.driver import EmulatedDriver


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    return tmp_path


def written(folder: Path) -> dict[str, object]:
    return json.loads((folder / "card.json").read_text())


def test_a_step_that_fails_is_written_down_and_costs_no_other(folder: Path) -> None:
    report = Report("card", 100.0)

    def fault() -> None:
        raise DeviceFault("a kernel faulted")

    assert report.step("first", fault) is None
    assert written(folder)["failed"] == {"first": "DeviceFault: a kernel faulted"}
    assert report.step("second", lambda: {"seconds": 1.0}) == {"seconds": 1.0}


def test_no_step_begins_past_the_end(folder: Path) -> None:
    report = Report("card", -1.0)
    assert report.step("late", lambda: pytest.fail("it began")) is None
    assert "no time was left" in written(folder)["failed"]["late"]  # type: ignore[index]


def test_a_dry_run_writes_nothing_and_ends_with_what_fails(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        Report(None, 100.0).step("first", lambda: 1 / 0)
    assert not list(folder.iterdir())


@pytest.mark.emulated
def test_after_a_fault_another_process_goes_on_where_the_first_one_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [row for row in gpu_workloads.rows(True) if row.name in ("W1", "W1 certified", "W7")]
    monkeypatch.setattr(gpu_check, "peer_of", lambda *args: None)
    monkeypatch.setattr(gpu_check, "small_calls", lambda driver, dry: {})
    monkeypatch.setattr(gpu_check, "sanitized", lambda report: None)
    real, asked = gpu_check.ours, []

    def faulty(driver: object, row: gpu_workloads.Row, dry: bool) -> object:
        asked.append(row.name)
        if row.name == "W1 certified":
            raise DeviceFault("a kernel faulted")
        return real(driver, row, dry)

    monkeypatch.setattr(gpu_check, "ours", faulty)
    report = Report("card", 100.0)
    gpu_check.measured(report, EmulatedDriver(), chosen, False)
    assert report.poisoned and asked == ["W1", "W1 certified"]
    report = Report("card", 100.0, resumed=True)
    gpu_check.measured(report, EmulatedDriver(), chosen, False)
    assert not report.poisoned and asked == ["W1", "W1 certified", "W7"]
    assert set(written(folder)["workloads"]) == {"W1", "W7"}  # type: ignore[call-overload]


@pytest.mark.emulated
def test_a_wrong_answer_is_said_and_the_other_rows_are_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [row for row in gpu_workloads.rows(True) if row.name in ("W1", "W1 certified")]
    for row in chosen:
        object.__setattr__(row, "formula", None)  # no peer: those are tried in the dry run
    real = gpu_check.error_of
    monkeypatch.setattr(
        gpu_check, "error_of", lambda row, values: 1.0 if row.name == "W1" else real(row, values)
    )
    monkeypatch.setattr(gpu_check, "peer_of", lambda *args: None)
    monkeypatch.setattr(gpu_check, "small_calls", lambda driver, dry: 1 / 0)
    monkeypatch.setattr(gpu_check, "sanitized", lambda report: None)
    report = Report("card", 100.0)
    gpu_check.measured(report, EmulatedDriver(), chosen, False)
    found = written(folder)
    rows = found["workloads"]
    assert not rows["W1"]["right"] and rows["W1 certified"]["right"]  # type: ignore[index]
    assert rows["W1 certified"]["path"] == "tensor"  # type: ignore[index]
    assert list(found["failed"]) == ["small calls"]  # type: ignore[call-overload]


def test_every_bar_has_a_row_and_a_formula_for_pykeops() -> None:
    rows = {row.name: row for row in gpu_workloads.rows(False)}
    bars = {name: row.bar for name, row in rows.items() if row.bar}
    assert bars == {
        "W1": 1.3, "W2": 1.6, "W3": 1.0, "W4-10": 1.25, "W4-10 certified": 4.0, "W4-100": 2.0,
        "W4-100 certified": 10.0, "W5-3 filtered": 5.0, "W5-100": 15.0, "W6-100": 12.0, "W7": 1.8, "W8": 1.8,
        "W10": 2.0, "W12": 300.0,
    }  # fmt: skip
    assert all(rows[name].formula for name in bars)
    assert rows["W12"].pairs == 10**9 and np.prod(rows["W10"].batch) == 1000
