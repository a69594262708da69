"""Proves and measures the CUDA engine on the card of this machine: `make gpu-check`.

First the tests marked `gpu`, then compute-sanitizer on a few of them, then the workloads, ours beside the libraries
that are installed. Times are of data that lies on the device. `--dry` does all that needs no card: every kernel is
compiled by NVRTC, and the harness runs small sizes on the emulator and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np

from benchmarks.gpu_peers import differs, peers
from benchmarks.measure import machine, save
from farsum_kernels.backends import reference
from farsum_kernels.backends.cuda import nvrtc
from farsum_kernels.backends.cuda.device import Driver
from farsum_kernels.backends.cuda.launch import Kernel
from farsum_kernels.job import check_arrays
from tests.cuda.cases import WORKLOADS, Case

ROUNDS = 7
AWAY = 0.02  # how far a peer's answer may be from ours
FEW_ROWS = 64  # of which the answer is compared with the dense definition
# (M, N) on a card, as DESIGN's table has them: 1e6 for few dimensions, 1e5 for many.
SIZES = {name: (10**5, 10**5) if name.endswith(("-100", "-1000")) else (10**6, 10**6) for name in WORKLOADS}
SIZES |= {"W4-1000": (20_000, 20_000), "W2": (300_000, 300_000)}
EXTRA = {"W12": ("W1", 100, 10**7), "W10": ("W1", 1000, 1000)}  # few rows; a batch of 1,000
# Pairs per clock of one processor at which the first unit is full, in float32, by the instructions of a pair.
CEILINGS = {
    "W1": 14.2,
    "W3": 8.0,
    "W4-10": 5.6,
    "W4-100": 0.63,
    "W5-3": 16.4,
    "W7": 12.8,
    "W8": 10.7,
    "W2": 4.57,
}


def seconds_of(driver: Driver, kernel: Kernel, case: Case, rounds: int) -> tuple[float, list[np.ndarray]]:
    """The median time of a job whose arrays are on the device, and its answer."""
    arrays = case.arrays()
    times, values = [], []
    for _ in range(rounds):
        launch = kernel.launch(arrays, check_arrays(case.spec, arrays))
        driver.wait(driver.mark())
        begun = time.perf_counter()
        while launch.step() < 1:
            pass
        times.append(time.perf_counter() - begun)
        values = list(launch.results())
    return statistics.median(times), values


def error_of(case: Case, values: list[np.ndarray]) -> float:
    """The largest error of a few rows, relative to the largest value; for indices, the share that differs."""
    arrays, worst = case.arrays(), 0.0
    if case.batch:
        return float("nan")
    rows = np.linspace(0, case.m - 1, min(FEW_ROWS, case.m)).astype(int)
    category = {v.params[0]: v.params[2] for v in case.spec.inputs.values()}
    few = {n: np.ascontiguousarray(a[rows]) if category[n] == 0 else a for n, a in arrays.items()}
    for got, want in zip(values, reference.run(case.spec, few), strict=True):
        mine = got[rows]
        if got.dtype == np.int64:
            worst = max(worst, float((mine != want).mean()))
        else:
            worst = max(worst, float(np.abs(mine - want).max() / np.abs(want).max()))
    return worst


def _median(run: Callable[[], Any], rounds: int) -> float:
    run()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def cases(dry: bool) -> dict[str, Case]:
    """The workloads at their sizes, or at small ones."""
    if dry:
        return {name: Case(name, spec, 70, 150) for name, spec in WORKLOADS.items() if name != "W4-1000"}
    made = {name: Case(name, spec, *SIZES[name]) for name, spec in WORKLOADS.items()}
    for name, (like, m, n) in EXTRA.items():
        made[name] = Case(name, WORKLOADS[like], m, n, (1000,) if name == "W10" else ())
    return made


def measure(driver: Driver, dry: bool, only: list[str]) -> dict[str, Any]:
    """Each workload: seconds, pairs per second, error, the ratio to each peer, the share of the ceiling."""
    rows: dict[str, Any] = {}
    for name, case in cases(dry).items():
        if only and name not in only:
            continue
        kernel = Kernel(case.spec, driver)
        seconds, values = seconds_of(driver, kernel, case, 1 if dry else ROUNDS)
        pairs = case.m * case.n * int(np.prod(case.batch or (1,)))
        row: dict[str, Any] = {"m": case.m, "n": case.n, "seconds": seconds, "pairs_per_s": pairs / seconds}
        row["error"] = error_of(case, values)
        for peer, run in peers(name, case, "cpu" if dry else "cuda").items():
            row.setdefault("differs", {})[peer] = away = differs(run(), values[0])
            # Pairs of nearly equal distance may change places; a dense matrix of distances is less exact than ours.
            assert not dry or away < AWAY, f"{name}: {peer} is away by {away}"
            if not dry:
                row.setdefault("ratios", {})[peer] = _median(run, ROUNDS) / seconds
        if not dry and name in CEILINGS:
            row["share_of_ceiling"] = pairs / seconds / (CEILINGS[name] * driver.gpu.rate / 128)
        rows[name] = row
        print(f"{name}: {json.dumps(row)}", flush=True)
        assert row["error"] < 1e-4 or case.batch, f"{name} is wrong by {row['error']}"
    return rows


def compiled(archs: tuple[int, ...] = (80, 90, 100)) -> None:
    """Every layout of every workload, for real GPUs."""
    from tests.cuda.test_nvrtc import registers

    for name in WORKLOADS:
        print(f"{name}: registers {[registers(name, arch) for arch in archs]}", flush=True)


def tests(arguments: list[str], prefix: list[str]) -> int:
    command = [*prefix, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, check=False).returncode


def clocks() -> str:
    asked = "name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true", help="what needs no card")
    parser.add_argument("--only", nargs="*", default=[], help="workloads by name")
    parser.add_argument("--commit", default="", help="of the code that is measured, where git is not at hand")
    wanted = parser.parse_args()
    if wanted.dry:
        from tests.cuda.driver import EmulatedDriver

        compiled((90,))
        measure(EmulatedDriver(), True, wanted.only)
        print("dry run: everything that needs no card works; nothing was measured")
        return 0
    from farsum_kernels.backends.cuda.driver import CudaDriver

    driver = CudaDriver()
    commit, about = wanted.commit or _commit(), machine()
    # From the source roots nothing is installed: the commit says which version it is.
    about["packages"]["farsum"] = about["packages"]["farsum"] or commit
    figures: dict[str, Any] = {
        "card": driver.name, "commit": commit, "machine": about, "nvrtc": nvrtc.version(), "before": clocks(),
    }  # fmt: skip
    figures["tests"] = "passed" if (failed := tests(["-m", "gpu", "tests/gpu"], [])) == 0 else "failed"
    if sanitizer := shutil.which("compute-sanitizer"):
        sample = ["-m", "gpu", "tests/gpu", "-k", "W1 or W6-3 or splits"]
        status = tests(sample, [sanitizer, "--tool", "memcheck", "--error-exitcode", "9"])
        figures["memcheck"] = "clean" if status == 0 else f"exit {status}"
        failed = failed or status
    figures["workloads"] = measure(driver, False, wanted.only)
    figures["after"] = clocks()
    card = driver.name.lower().replace(" ", "-")
    print(f"written: {save(f'{card}-{datetime.now(UTC):%Y-%m-%d}', figures).name}")
    return failed


def _commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
