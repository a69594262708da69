"""Proves and measures the CUDA engine on the card of this machine, within eight minutes: `make gpu-check`.

What a short time on a card is best spent on comes first: the tests marked `gpu`, then our own figures, then pykeops
beside them, then small calls, compute-sanitizer, PyTorch and FAISS. A step that fails, or that there is no time for,
says so in the report and costs no other step; the report is written after each of them. Times are of whole calls whose
arrays lie on the card, results on the host. `--dry` does all that needs no card: every kernel is compiled by NVRTC, and the
harness runs small sizes on the emulator and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.gpu_peers import differs, peer_of
from benchmarks.gpu_workloads import Row, rows
from benchmarks.measure import machine, save
from farsum_kernels.backends import reference
from farsum_kernels.backends.cuda import nvrtc
from farsum_kernels.backends.cuda.kernel import Kernel
from farsum_kernels.backends.cuda.layout import FILTER, TENSOR
from farsum_kernels.backends.cuda.resident import Resident
from farsum_kernels.errors import DeviceFault
from farsum_kernels.job import check_arrays

BUDGET_S = 450.0  # of all of it
TESTS_S, SANITIZER_S, COMPILING_S = 150.0, 60.0, 60.0  # at most
ROUNDS, ROUNDS_S = 7, 2.5  # of a measurement, and what it may take
AWAY = 0.02  # how far a peer's answer may be from ours
WRONG = 1e-4  # relative to the largest value
FEW_ROWS, FEW_NUMBERS = 64, 10**8  # of which the answer is compared with the dense definition
AT_ONCE = 6  # compilations of pykeops
SMALL_CALLS = 200
NEVER = 1 << 30
LEAST_S = 20.0  # that are worth another process


class Report:
    """The figures so far. Each step is caught, bounded and written down.

    name       of the file; None writes nothing, and then a step that fails ends the run
    poisoned   a kernel faulted, and nothing on the card works any more for this process
    """

    def __init__(self, name: str | None, budget_s: float, resumed: bool = False) -> None:
        self.figures: dict[str, Any] = {"workloads": {}, "failed": {}}
        if resumed:
            self.figures |= json.loads((measure.RESULTS / f"{name}.json").read_text())
        self._name, self._end = name, time.monotonic() + budget_s
        self.poisoned = False

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def step(self, what: str, call: Callable[[], Any]) -> Any:
        """What the step gives; None where it failed or there was no time for it."""
        begun = time.monotonic()
        found, failed = None, ""
        try:
            if self.left < 0:
                raise TimeoutError("no time was left")
            found = call()
        except Exception as error:
            if self._name is None:
                raise
            failed = f"{type(error).__name__}: {error}"
            self.poisoned |= isinstance(error, DeviceFault) or "CUDA error" in failed
            if not isinstance(error, TimeoutError):
                traceback.print_exc()
        if failed:
            self.figures["failed"][what] = failed[:2000]
        took = time.monotonic() - begun
        print(
            f"[{self.left:4.0f} s left] {what} took {took:.1f} s: {failed or json.dumps(found)}", flush=True
        )
        self.write()
        return found

    def write(self) -> None:
        if self._name:
            save(self._name, self.figures)


# ── our own figures ───────────────────────────────────────────────────────────────────────────────


def call_of(driver: Any, row: Row, resident: Resident) -> Callable[[], tuple[str, tuple[np.ndarray, ...]]]:
    """A call of a workload whose arrays lie on the card; gives the path that was taken, and the answer."""
    kernel = Kernel(row.spec, driver, row.path, resident=resident)
    extent = check_arrays(row.spec, row.arrays)
    digests = {n: f"{row.name} {n}".encode() for n in row.arrays}

    def call() -> tuple[str, tuple[np.ndarray, ...]]:
        launch = kernel.launch(row.arrays, extent, digests)
        while launch.step() < 1:
            pass
        return launch.words["path"], launch.results()

    return call


def seconds_of(call: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """The median of as many calls as there is time for; one was made before."""
    times: list[float] = []
    end = time.monotonic() + ROUNDS_S
    while len(times) < rounds and (not times or time.monotonic() < end):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def error_of(row: Row, values: tuple[np.ndarray, ...]) -> float:
    """The largest error of a few rows, relative to the largest value; for indices, the share that differs."""
    worst = 0.0
    member = (0,) * len(row.batch)
    arrays = {n: a[member] if row.batch else a for n, a in row.arrays.items()}
    most = max(1, FEW_NUMBERS // (row.n * max(v.dim for v in row.spec.inputs.values())))
    picked = np.linspace(0, row.m - 1, min(FEW_ROWS, most, row.m)).astype(int)
    category = {v.params[0]: v.params[2] for v in row.spec.inputs.values()}
    few = {n: np.ascontiguousarray(a[picked]) if category[n] == 0 else a for n, a in arrays.items()}
    for got, want in zip(values, reference.run(row.spec, few), strict=True):
        mine = (got[member] if row.batch else got)[picked]
        if got.dtype == np.int64:
            worst = max(worst, float((mine != want).mean()))
        else:
            worst = max(worst, float(np.abs(mine - want).max() / np.abs(want).max()))
    return worst


def ours(driver: Any, row: Row, dry: bool) -> tuple[dict[str, Any], tuple[np.ndarray, ...]]:
    """Seconds, pairs per second, the error, the share of the ceiling; and the answer."""
    call = call_of(driver, row, Resident(driver, driver.total_bytes // 2))
    path, values = call()
    seconds = seconds_of(call, 1 if dry else ROUNDS)
    figures: dict[str, Any] = {"m": row.m, "n": row.n, "path": path, "seconds": seconds}
    figures["pairs_per_s"] = row.pairs / seconds
    if row.ceiling:
        ceiling = row.ceiling * driver.gpu.rate / 128
        figures |= {"ceiling_pairs_per_s": ceiling, "share_of_ceiling": row.pairs / seconds / ceiling}
    figures["error"] = error_of(row, values)
    figures["right"] = figures["error"] < WRONG and row.path in (None, path)
    return figures, values


class Peers:
    """The answers and times of other libraries; each is asked once for rows that are the same but for our way."""

    def __init__(self, dry: bool) -> None:
        self._dry = dry
        self._known: dict[Any, tuple[float, Any] | None] = {}

    def beside(self, library: str, row: Row, seconds: float, values: tuple[np.ndarray, ...] | None) -> Any:
        """A peer's seconds, the ratio to ours, how far its answer is away; None where it has no such workload."""
        key = library, row.spec.digest, row.m, row.n, row.batch
        if key not in self._known:
            self._known[key] = self._asked(library, row)
        if (known := self._known[key]) is None:
            return None
        theirs, answer = known
        found = {"seconds": theirs, "ratio": theirs / seconds}
        if values is not None:
            found["differs"] = away = differs(answer, values[0])
            # Pairs of nearly equal distance may change places; a dense matrix of distances is less exact than ours.
            assert not self._dry or away < AWAY, f"{row.name}: {library} is away by {away}"
        if library == "pykeops" and row.bar:
            found |= {"bar": row.bar, "met": theirs / seconds >= row.bar}
        return found

    def _asked(self, library: str, row: Row) -> tuple[float, Any] | None:
        run = peer_of(library, row, "cpu" if self._dry else "cuda")
        if run is None:
            return None
        answer = run()
        if hasattr(answer, "cpu"):
            answer = answer.cpu()
        return seconds_of(run, 1 if self._dry else ROUNDS), answer


def small_calls(driver: Any, dry: bool) -> dict[str, Any]:
    """Microseconds of a call on a thousand points, with its launches recorded and without."""
    found = {}
    shapes = {
        "sum": ("W1", None, 2),
        "certified sum": ("W4-10 certified", TENSOR, 4),
        "filter": ("W5-100", FILTER, 4),
    }
    by_name = {row.name: row for row in rows(True)}
    for what, (name, path, least) in shapes.items():
        size = {} if dry else {"m": 1000, "n": 1000}
        row = Row(**{**{k: v for k, v in vars(by_name[name]).items() if k != "arrays"}, "path": path, **size})
        call = call_of(driver, row, Resident(driver, 1 << 28))
        for way, fewest in (("recorded", least), ("not recorded", NEVER)):
            before, driver.graphs.least = driver.graphs.least, fewest
            played = driver.graphs.played
            times = []
            for _ in range(10 if dry else SMALL_CALLS):
                begun = time.perf_counter()
                call()
                times.append(time.perf_counter() - begun)
            driver.graphs.least = before
            found[f"{what}, {way}"] = {
                "us": 1e6 * statistics.median(times), "played": driver.graphs.played - played,
            }  # fmt: skip
    return found


# ── processes ─────────────────────────────────────────────────────────────────────────────────────


def compiled(archs: tuple[int, ...] = (80, 90, 100)) -> None:
    """Every layout of every workload, for real GPUs."""
    from tests.cuda.test_nvrtc import NAMES, registers

    for name in NAMES:
        print(f"{name}: registers {[registers(name, arch) for arch in archs]}", flush=True)


def tests(arguments: list[str], prefix: list[str], limit_s: float) -> str:
    command = [*prefix, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, check=False, timeout=max(1.0, limit_s), capture_output=True, text=True)
    print(done.stdout[-4000:], flush=True)
    if done.returncode:
        raise AssertionError(f"exit {done.returncode}: {done.stdout[-1500:]}")
    return done.stdout.strip().splitlines()[-1]


def prepared(chosen: list[Row]) -> Iterator[None]:
    """Lets pykeops compile, some formulas at a time, as often as it is asked to go on; ends when all are done."""
    unique = {row.formula: row.name for row in chosen if row.formula}
    waiting = iter(unique.values())
    running: list[subprocess.Popen[bytes]] = []
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        while True:
            running = [process for process in running if process.poll() is None]
            for name in islice(waiting, AT_ONCE - len(running)):
                command = [sys.executable, "-m", "benchmarks.gpu_peers", name]
                running.append(subprocess.Popen(command, **quiet))  # type: ignore[call-overload]
            if not running:
                return
            yield
    finally:
        for process in running:
            process.kill()


def clocks() -> str:
    asked = "name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.strip()


# ── the whole ─────────────────────────────────────────────────────────────────────────────────────


def proof(report: Report, chosen: list[Row]) -> None:
    """The tests, while pykeops compiles."""
    compiling = prepared(chosen)
    next(compiling, None)
    found = report.step("tests", lambda: tests(["-m", "gpu", "tests/gpu"], [], min(TESTS_S, report.left)))
    report.figures["tests"] = found or "failed"
    end = time.monotonic() + COMPILING_S
    for _ in compiling:
        if time.monotonic() > end:
            break
        time.sleep(0.5)
    compiling.close()  # type: ignore[attr-defined]


def measured(report: Report, driver: Any, chosen: list[Row], dry: bool) -> None:
    """Our own figures, then those of the peers beside them; what the report has already is left alone."""
    answers: dict[str, tuple[np.ndarray, ...]] = {}
    workloads, failed, others = report.figures["workloads"], report.figures["failed"], Peers(dry)

    def step(what: str, call: Callable[[], Any]) -> Any:
        return None if report.poisoned or what in failed else report.step(what, call)

    for row in chosen:

        def own(row: Row = row) -> Any:
            figures, answers[row.name] = ours(driver, row, dry)
            workloads[row.name] = figures
            assert not dry or figures["right"], f"{row.name} is wrong: {figures}"
            return figures

        if row.name not in workloads:
            step(row.name, own)
    for library in ("pykeops", "torch", "faiss"):
        if library == "torch":
            if report.figures.get("small calls") is None:
                report.figures["small calls"] = step("small calls", lambda: small_calls(driver, dry))
            if not dry and "memcheck" not in report.figures:
                sanitized(report)
        for row in chosen:
            known = workloads.get(row.name)
            if known is None or library in known:
                continue

            def other(row: Row = row, known: Any = known, library: str = library) -> Any:
                found = others.beside(library, row, known["seconds"], answers.get(row.name))
                if found:
                    known[library] = found
                return found

            step(f"{library} on {row.name}", other)


def sanitized(report: Report) -> None:
    if sanitizer := shutil.which("compute-sanitizer"):
        sample = ["-m", "gpu", "tests/gpu", "-k", "W1 or W6-3 or splits or (tensor and 10)"]
        prefix = [sanitizer, "--tool", "memcheck", "--error-exitcode", "9"]
        found = report.step("memcheck", lambda: tests(sample, prefix, min(SANITIZER_S, report.left)))
        report.figures["memcheck"] = found or "failed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true", help="what needs no card")
    parser.add_argument("--only", nargs="*", default=[], help="workloads by name, in every way")
    parser.add_argument("--commit", default="", help="of the code that is measured, where git is not at hand")
    parser.add_argument("--seconds", type=float, default=BUDGET_S, help="of all of it")
    parser.add_argument(
        "--resume", default="", help="go on with the report of this name, in a process without a fault"
    )
    wanted = parser.parse_args()
    chosen = [
        row
        for row in rows(wanted.dry)
        if not wanted.only or {row.name, row.name.partition(" ")[0]} & set(wanted.only)
    ]
    if wanted.dry:
        from tests.cuda.driver import EmulatedDriver

        compiled((90,))
        measured(Report(None, float("inf")), EmulatedDriver(), chosen, True)
        print("dry run: everything that needs no card works; nothing was measured")
        return 0
    from farsum_kernels.backends.cuda.driver import CudaDriver

    driver = CudaDriver()
    card = driver.name.lower().replace(" ", "-")
    name = wanted.resume or f"{card}-{datetime.now(UTC):%Y-%m-%d}"
    report = Report(name, wanted.seconds, bool(wanted.resume))
    if not wanted.resume:
        commit, about = wanted.commit or _commit(), machine()
        # From the source roots nothing is installed: the commit says which version it is.
        about["packages"]["farsum"] = about["packages"]["farsum"] or commit
        report.figures |= {"card": driver.name, "commit": commit, "machine": about, "nvrtc": nvrtc.version()}
        report.figures["before"] = report.step("clocks", clocks)
        proof(report, chosen)
    measured(report, driver, chosen, False)
    if report.poisoned and report.left > LEAST_S:
        # What failed is in the report, and is not tried again.
        again = [*sys.argv[1:], "--resume", name, "--seconds", str(report.left)]
        return subprocess.run([sys.executable, "-m", "benchmarks.gpu_check", *again], check=False).returncode
    report.figures["after"] = report.step("clocks after", clocks)
    report.write()
    wrong = [name for name, figures in report.figures["workloads"].items() if not figures["right"]]
    print(f"failed: {list(report.figures['failed'])}; wrong: {wrong}")
    return int(bool(wrong) or report.figures["tests"] == "failed")


def _commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
