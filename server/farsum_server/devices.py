"""The worker processes of one daemon: started, and started again after a pause when they die. Decides nothing about jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from farsum_proto import wire
from farsum_server.arena import Arena
from farsum_server.process import OnEvent, WorkerProcess

log = structlog.get_logger("farsum.daemon")

RESTART_PAUSES_S = (0.0, 0.5, 2.0, 10.0, 30.0)
# A worker that lived this long was healthy, and its successor starts without a pause.
HEALTHY_S = 60.0


@dataclass(slots=True)
class Device:
    """What the daemon knows of a worker; `job` is the one whose slice it runs."""

    process: WorkerProcess
    about: wire.Device | None = None  # None until it has reported ready
    job: int | None = None
    compiling: bool = False
    since: float = 0.0
    started: float = 0.0
    failures: int = 0


class Devices:
    """One worker for each name of a device; see WorkerProcess for `on_event` and `on_lost`. `stop` ends them for good.

    before_start   called before a process is started, which inherits much of this one
    """

    def __init__(
        self,
        names: Sequence[str],
        arena: Arena,
        on_event: OnEvent,
        on_lost: Callable[[int], None],
        before_start: Callable[[], None],
        *,
        threads: int | None,
        worker: str,
    ) -> None:
        self._all = [
            Device(WorkerProcess(n, arena, on_event, on_lost, threads=threads, worker=worker, device=name))
            for n, name in enumerate(names)
        ]
        self._before_start = before_start
        self._stopped = False

    def __iter__(self) -> Iterator[Device]:
        return iter(self._all)

    def __getitem__(self, worker: int) -> Device:
        return self._all[worker]

    @property
    def ready(self) -> list[wire.Device]:
        """What the workers that are up say of themselves."""
        return [device.about for device in self._all if device.about]

    def start(self) -> None:
        for device in self._all:
            self._spawn(device)

    def _spawn(self, device: Device) -> None:
        if not self._stopped:
            device.started = time.monotonic()
            self._before_start()
            device.process.start()

    async def wait_ready(self, timeout_s: float) -> bool:
        """Whether all came up in time."""
        end = time.monotonic() + timeout_s
        while len(self.ready) < len(self._all):
            if time.monotonic() > end or all(device.failures >= 2 for device in self._all):
                return False
            await asyncio.sleep(0.02)
        return True

    def came_up(self, worker: int, about: wire.Device) -> None:
        device = self._all[worker]
        device.about = wire.Device(about.name, about.kind, about.threads, device.process.starts - 1)
        log.info("worker ready", worker=worker, device=about.name, pid=device.process.pid)

    def lost(self, worker: int) -> bool:
        """Start its successor, now or after a pause. Whether it had come up."""
        device = self._all[worker]
        lived = time.monotonic() - device.started
        was_up, device.about, device.job = device.about is not None, None, None
        device.failures = 0 if was_up and lived > HEALTHY_S else device.failures + 1
        pause = (
            RESTART_PAUSES_S[min(device.failures - 1, len(RESTART_PAUSES_S) - 1)] if device.failures else 0.0
        )
        log.error("worker lost", worker=worker, lived_s=round(lived, 1), restart_in_s=pause)
        asyncio.get_running_loop().call_later(pause, self._spawn, device)
        return was_up

    def stop(self) -> None:
        self._stopped = True
        for device in self._all:
            device.process.stop()
