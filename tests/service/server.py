"""A real server in a process of its own, and the jobs that the tests of this folder send to it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import psutil

from farsum.remote import RemoteEngine
from farsum_kernels.formula.expr import I, J, node, variable
from farsum_kernels.job import Spec

SMALL_STORE = ("--store-bytes", str(256 << 20), "--store-warm-bytes", "0")


class Server:
    """`farsum serve` on free ports of the loopback address."""

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-m", "farsum_server.cli", "serve", "--port", "0", "--http-port", "0"]
        self.process = subprocess.Popen(
            [*command, *SMALL_STORE, *flags], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        self.log: list[dict[str, Any]] = []
        self.other_output: list[str] = []
        self._up = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._up.wait(60), self.other_output
        serving = [e for e in self.log if e["event"] == "serving"]
        assert serving, (self.log, self.other_output)
        self.address, self.http = serving[0]["grpc"], serving[0]["http"]
        self.target = self.address if self.address.startswith("unix:") else f"grpc://{self.address}"

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            try:
                event = json.loads(line)
            except ValueError:
                self.other_output.append(line)
                continue
            self.log.append(event)
            if event["event"] == "serving":
                self._up.set()
        self._up.set()

    def events(self) -> list[str]:
        return [e["event"] for e in self.log]

    def worker_pid(self) -> int:
        (worker,) = psutil.Process(self.process.pid).children()
        return worker.pid

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"{self.http}/metrics", timeout=10) as page:
            found = re.search(rf"^{name}(?:{{.*}})? (.+)$", page.read().decode(), re.MULTILINE)
        assert found, name
        return float(found[1])

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.http + path, timeout=10) as page:
                return page.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.terminate()
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join()
            assert self.process.stderr
            self.process.stderr.close()


@contextmanager
def running(*flags: str) -> Iterator[Server]:
    server = Server(*flags)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def engine_on(server: Server, away_s: float = 1.0) -> Iterator[RemoteEngine]:
    with RemoteEngine(server.target, away_s) as engine:
        yield engine


@contextmanager
def raw_channel(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def gaussian_sum(dtype: str = "float32", dim: int = 3, reduction: str = "Sum", k: int = 0) -> Spec:
    x, y, b = variable(0, dim, I), variable(1, dim, J), variable(2, 1, J)
    distance = node("SqDist", x, y)
    formula = node("Mult", node("Exp", node("Minus", distance)), b) if reduction == "Sum" else distance
    return Spec(formula, reduction, 1, dtype, None, k)


def points(m: int, n: int, dtype: str = "float32", dim: int = 3, seed: int = 0) -> dict[int, Any]:
    rng = np.random.default_rng(seed)
    return {k: rng.random(shape).astype(dtype) for k, shape in enumerate([(m, dim), (n, dim), (n, 1)])}


def slow_job() -> tuple[Spec, dict[int, Any]]:
    """A job of many slices: it takes minutes, so a test that waits for it has failed."""
    return gaussian_sum(), points(2_000_000, 1_000_000)


def medium_job() -> tuple[Spec, dict[int, Any]]:
    """A job of several slices that takes a second or two."""
    return gaussian_sum(), points(40_000, 40_000)


def expected(arrays: dict[int, Any]) -> Any:
    """The Gaussian sum in float64, by rows so that it needs little memory."""
    x, y, b = (a.astype("float64") for a in arrays.values())
    rows = [np.exp(-((row - y) ** 2).sum(-1)) @ b for row in x]
    return np.array(rows).reshape(len(x), 1)


def pid_is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
