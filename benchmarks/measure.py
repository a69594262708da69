"""How the benchmarks measure: interleaved rounds, medians, and what else the machine was doing meanwhile."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).resolve().parent / "results"
PAUSE_S = 0.05
# Their versions are kept with every figure; what is not installed says null.
PACKAGES = (
    "farsum", "numpy", "llvmlite", "grpcio", "pykeops", "torch", "jax", "scikit-learn", "faiss-cpu", "numba",
)  # fmt: skip
QUIET_CORES = 0.25  # above this, others disturb the run and it should be repeated


Times = tuple[float, float]  # wall and CPU seconds of one call


def timed(call: Callable[[], Any]) -> Times:
    cpu_begun, begun = time.process_time(), time.perf_counter()
    call()
    return time.perf_counter() - begun, time.process_time() - cpu_begun


def interleaved(calls: Mapping[str, Callable[[], Times]], rounds: int) -> dict[str, list[Times]]:
    """The times of each call in each round: every round runs all of them, one after another.

    The pause lets the spinning threads of one library go to sleep before another is timed.
    """
    times: dict[str, list[Times]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(PAUSE_S)
            times[name].append(call())
    return times


def median(values: list[float]) -> float:
    return statistics.median(values)


class Others:
    """The cores that processes other than ours and our children kept busy between start and `cores()`."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._machine, self._ours = _busy(), _own()

    def cores(self) -> float:
        took = time.perf_counter() - self._begun
        return max(0.0, (_busy() - self._machine - (_own() - self._ours)) / took)


def _busy() -> float:
    t = psutil.cpu_times()
    return float(sum(t) - t.idle - getattr(t, "iowait", 0.0) - getattr(t, "guest", 0.0))


def _own() -> float:
    us = psutil.Process()
    total = 0.0
    for process in [us, *us.children(recursive=True)]:
        try:
            t = process.cpu_times()
            # Those of children that ended are added to their parent's when it has waited for them.
            total += t.user + t.system + t.children_user + t.children_system
        except psutil.NoSuchProcess:
            continue
    return total


def machine() -> dict[str, Any]:
    """What must be said next to a figure."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": model,
        "cores": cores,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine_line() -> str:
    m = machine()
    return f"{m['cpu']}, {m['cores']} cores, {m['memory_gb']} GB, {m['system']}, Python {m['python']}"


def save(name: str, figures: Mapping[str, Any]) -> Path:
    """Write figures with the machine and the time to benchmarks/results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    taken = datetime.now(UTC).isoformat(timespec="seconds")
    path.write_text(json.dumps({"taken": taken, "machine": machine(), **figures}, indent=2) + "\n")
    return path


def table(rows: list[tuple[str, str, str]]) -> None:
    """Print rows of (what, figure, remark) in columns."""
    widths = [max(len(row[k]) for row in rows) for k in (0, 1)]
    for what, figure, remark in rows:
        print(f"  {what:<{widths[0]}}  {figure:>{widths[1]}}  {remark}".rstrip())


def warn_if_disturbed(cores: float) -> None:
    if cores > QUIET_CORES:
        print(f"  others kept {cores:.2f} cores busy meanwhile: run this again on a quiet machine")


@contextmanager
def daemon(*flags: str, start_s: float = 60.0) -> Iterator[int]:
    """A real server on loopback, in a process of its own; gives its gRPC port."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    port, http_port = (s.getsockname()[1] for s in held)
    for s in held:
        s.close()
    command = [
        sys.executable,
        "-m",
        "farsum_server.cli",
        "serve",
        "--port",
        str(port),
        "--http-port",
        str(http_port),
        *flags,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + start_s
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{http_port}/readyz", timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit("the server did not become ready; try: farsum serve") from None
                time.sleep(0.05)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
