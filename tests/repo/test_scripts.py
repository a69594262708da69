"""The demo and the benchmarks run, at sizes that take seconds. What they measure is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def run(root: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_demo(root: Path, tmp_path: Path) -> None:
    from PIL import Image

    said = run(root, "examples/demo.py", "--quick", "--output", str(tmp_path))
    for words in (
        "ready after",
        "accuracy",
        "colours became 16",
        "largest relative error",
        "drained and stopped",
    ):
        assert words in said
    assert said.rindex("What to try next") > said.rindex("drained and stopped")
    with (
        Image.open(tmp_path / "china-before.png") as before,
        Image.open(tmp_path / "china-after.png") as after,
    ):
        assert before.size == after.size == (640, 427)
        assert len(after.convert("RGB").getcolors(1 << 20) or []) <= 16


@pytest.mark.slow
def test_workloads(root: Path) -> None:
    said = run(root, "-m", "benchmarks.cpu", "--quick")
    assert all(
        word in said for word in ("Gpairs/s", "% of the peak", "best peer", "W1:", "W9-64:", "W12-e256:")
    )
    assert "failed" not in said and "error inf" not in said


@pytest.mark.slow
def test_sweeps(root: Path) -> None:
    said = run(root, "-m", "benchmarks.cpu", "--quick", "--sweep")
    assert all(f"against {axis}" in said for axis in ("D", "width of the right-hand side", "M = N"))


def test_small_calls(root: Path) -> None:
    said = run(root, "-m", "benchmarks.w11_small", "--quick")
    assert all(word in said for word in ("call=False", "rebuild", "first call"))


@pytest.mark.slow
def test_wire(root: Path) -> None:
    said = run(root, "-m", "benchmarks.wire", "--quick")
    for words in ("bare ping-pong", "overhead", "sent per call", "MiB up", "MiB down"):
        assert words in said


@pytest.mark.slow
def test_loops_and_copies(root: Path) -> None:
    said = run(root, "-m", "benchmarks.loops", "--quick", "--no-peer")
    assert said.count("less one upload") == 2 and said.count("the bar is 1.3") == 2
    assert "window" in run(root, "-m", "benchmarks.copies", "--quick")


@pytest.mark.slow
def test_autograd(root: Path) -> None:
    said = run(root, "-m", "benchmarks.torch_autograd", "--quick")
    assert "two reductions" in said and "farsum forward and backward" in said


@pytest.mark.slow
def test_gpu_check_without_a_card(root: Path) -> None:
    said = run(root, "-m", "benchmarks.gpu_check", "--dry", "--only", "W1", "W6-3")
    assert "nothing was measured" in said and "W6-3" in said


def test_committed_results_say_where_they_were_taken(root: Path) -> None:
    for path in (root / "benchmarks" / "results").glob("*.json"):
        result = json.loads(path.read_text())
        assert result["taken"] and result["machine"]["cpu"] and result["machine"]["packages"]["farsum"], (
            path.name
        )
