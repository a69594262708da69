"""The daemon's Prometheus metrics. Names: prefix farsum_, base units, _total for counters."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# 1 ms · 2^k up to 512 s, and two below for calls that never leave the machine.
_SECONDS = (0.00025, 0.0005, *(0.001 * 2**k for k in range(20)))


class Metrics:
    """One registry per daemon, so that two of them in one process do not mix."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        # fmt: off
        Gauge("farsum_build_info", "Constant 1; the version is a label.", ["version"], registry=r).labels(version).set(1)
        self.requests   = Counter("farsum_rpc_requests_total", "Answered calls.", ["method", "code"], registry=r)
        self.duration   = Histogram("farsum_rpc_duration_seconds", "From request to answer.", ["method"], buckets=_SECONDS, registry=r)
        self.queue_wait = Histogram("farsum_queue_wait_seconds", "From request to first slice.", buckets=_SECONDS, registry=r)
        self.rejected   = Counter("farsum_rejected_total", "Work that was refused.", ["reason"], registry=r)
        self.cancelled  = Counter("farsum_cancelled_total", "Jobs cancelled, by where they were.", ["stage"], registry=r)
        self.ingest     = Counter("farsum_ingest_bytes_total", "Bytes of arrays received.", ["transport"], registry=r)
        self.egress     = Counter("farsum_egress_bytes_total", "Bytes of results sent.", ["transport"], registry=r)
        self.restarts   = Counter("farsum_worker_restarts_total", "Worker processes started again.", registry=r)
        self.loop_lag   = Gauge("farsum_event_loop_lag_seconds", "How late the last tick of the loop was.", registry=r)
        # fmt: on

        self._answers: list[tuple[str, str, float]] = []
        self._waits: list[float] = []

    def answered(self, method: str, code: str, seconds: float) -> None:
        """Note one answer. Counting takes longer than answering a small job should, so it is put off."""
        self._answers.append((method, code, seconds))

    def waited(self, seconds: float) -> None:
        self._waits.append(seconds)

    def count(self) -> None:
        """Count what was noted. Called at each tick and before a page is made."""
        answers, self._answers = self._answers, []
        for method, code, seconds in answers:
            self.requests.labels(method, code).inc()
            self.duration.labels(method).observe(seconds)
        waits, self._waits = self._waits, []
        for seconds in waits:
            self.queue_wait.observe(seconds)

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge that is read when somebody asks for it."""
        Gauge(f"farsum_{name}", text, registry=self.registry).set_function(read)

    def page(self) -> bytes:
        self.count()
        return generate_latest(self.registry)
