"""The daemon's engine: decoded requests in, answers out. Everything here runs on one event loop.

It decides with queue.py, remembers with store.py and computes with process.py. It never speaks gRPC
or HTTP, and it never imports native code.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager

import structlog

from farsum_kernels.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    FarsumError,
    FormulaTooExpensive,
    InternalError,
    QueueFull,
    StoreFull,
    WorkerDied,
)
from farsum_kernels.job import ArrayRef
from farsum_proto import wire
from farsum_server import queue
from farsum_server.affinity import Affinity
from farsum_server.arena import Allocator, Arena
from farsum_server.bulk import Bulk, Chunk
from farsum_server.clients import Client
from farsum_server.devices import Device, Devices
from farsum_server.express import Express
from farsum_server.jobs import Answer, Begun, Job, Limits, OnProgress, Slot
from farsum_server.metrics import Metrics
from farsum_server.process import WORKER
from farsum_server.store import Store
from farsum_server.supply import Supply

log = structlog.get_logger("farsum.daemon")

TICK_S = 0.5
SLICE_S = 0.1
MAX_PAUSE_S = 2.0
# Only the order of magnitude counts: node evaluations of one worker in a second.
NODES_PER_S = 2e9


class Daemon:
    """Answers requests. `start` first, `stop` last, `drain` before it for a clean end."""

    def __init__(
        self,
        limits: Limits,
        metrics: Metrics,
        *,
        threads: int | None = None,
        devices: Sequence[str] = ("cpu",),
        worker: str = WORKER,
    ) -> None:
        self._limits = limits
        self.metrics = metrics
        self._arena = Arena.create(limits.store_bytes)
        self._allocator = Allocator(limits.store_bytes)
        self._store = Store(self._allocator, limits.tenant_bytes, limits.handle_ttl_s)
        self._store.under_way = lambda: bool(self._jobs or self._bulk.uploads)
        self._changed = asyncio.Event()
        self._bulk = Bulk(
            self._arena, self._store, metrics, limits.upload_idle_s, limits.ticket_ttl_s, self._changed.set
        )
        self._queue = queue.Queue(limits.queue_limit)
        self._forms = wire.FormCache()
        self._jobs: dict[int, Job] = {}
        self._next_job = 0
        self._draining = False
        self._ticker: asyncio.Task[None] | None = None
        self.affinity = Affinity()
        self._devices = Devices(
            devices,
            self._arena,
            self._event,
            self._lost,
            self.affinity.scatter,
            threads=threads,
            worker=worker,
        )
        self._supply = Supply(self._store, self._bulk)
        self.settle_claims = self._supply.settle_claims
        self._express = Express(self._store)
        self.slot = self._express.slot
        self._watch()

    def _watch(self) -> None:
        watch = self.metrics.watch
        watch("inflight_requests", "Jobs that are queued or run.", lambda: len(self._jobs))
        watch(
            "queue_depth",
            "Jobs that wait for their first slice.",
            lambda: sum(j.began is None for j in self._jobs.values()),
        )
        watch("store_used_bytes", "Bytes of the store that hold arrays.", lambda: self._store.used)
        watch("store_capacity_bytes", "Size of the store.", lambda: self._store.capacity)
        watch("store_arrays", "Arrays that the store holds.", lambda: len(self._store))
        watch("store_handles", "Handles that hold an array of the store.", lambda: self._store.handles)
        watch("uploads_in_progress", "Uploads under way.", lambda: self._bulk.uploads)
        watch("workers_ready", "Worker processes that take jobs.", lambda: len(self.devices))
        watch("draining", "1 while the daemon takes no new work.", lambda: self._draining)

    # ── life ──────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        # Threads inherit where they may run from whoever starts them.
        executor = ThreadPoolExecutor(thread_name_prefix="farsum", initializer=self.affinity.let_loose)
        asyncio.get_running_loop().set_default_executor(executor)
        self._warm_ahead()
        self._devices.start()
        self._ticker = asyncio.get_running_loop().create_task(self._tick_forever())

    @property
    def devices(self) -> list[wire.Device]:
        """The workers that are ready."""
        return self._devices.ready

    @property
    def ready(self) -> bool:
        return bool(self.devices) and not self._draining

    @property
    def draining(self) -> bool:
        return self._draining

    async def wait_ready(self, timeout_s: float) -> bool:
        """Whether all workers came up in time."""
        return await self._devices.wait_ready(timeout_s)

    async def drain(self) -> None:
        """Take no new work; return when all accepted work is done and its results are fetched."""
        self._draining = True
        while self._jobs or self._bulk.busy:
            self._changed.clear()
            await self._changed.wait()

    def refuse_new_work(self) -> None:
        self._draining = True

    def stop(self) -> None:
        """End the workers. Jobs that are left get Cancelled."""
        if self._ticker:
            self._ticker.cancel()
        for job in list(self._jobs.values()):
            self._settle(job, Cancelled("the server stopped"))
        self._devices.stop()

    def close(self) -> None:
        """Give the memory back, when nobody can be reading it."""
        self._arena.close()

    # ── jobs ──────────────────────────────────────────────────────────────────────────────────────

    def express(self, client: Client, slot: Slot, packet: bytes) -> bytes | Begun | None:
        """The answer to a packet but for its head, if nothing else is under way and it comes at once.

        None when nothing was done, and Begun when a worker has the job: `ask` takes it from there.
        """
        if self._jobs or self._draining or self._bulk.under_way:
            return None
        worker = slot.device.process.pid
        if not slot.alone:
            self.affinity.scatter()
        found = self._express.ask(slot, self._next_job + 1, client.tenant, packet)
        if found is not None:
            self._next_job += 1
        if isinstance(found, bytes) and slot.alone and worker:
            self.affinity.small_call(worker)
        return found

    def ask(
        self,
        client: Client,
        request: wire.Request,
        answer: Answer,
        on_progress: OnProgress | None = None,
        begun: Begun | None = None,
    ) -> int | None:
        """Take a job; `answer` is called once, now or later. Gives the id to cancel it by.

        begun   it is on a worker already, see `express`

        Raises FarsumError for a request that is wrong or cannot be taken.
        """
        self.affinity.scatter()
        if self._draining:
            self.metrics.rejected.labels("draining").inc()
            raise Draining("the server is stopping and takes no new work")
        known = self._forms.known(request.form)
        form = self._forms.get(request.form)
        wire.check_contents(form, request.contents)
        if request.watch_s:
            wire.check_watched(form)
        if form.nbytes > self._limits.store_bytes:
            raise StoreFull(
                f"the program holds {form.nbytes} bytes between its steps; this server allows {self._limits.store_bytes}"
            )
        found = self._supply.provide(client.tenant, form, request)
        if isinstance(found, wire.Need):
            answer(found)
            return None
        if begun is None:
            self._next_job += 1
        job = Job(
            self._next_job, client, form, found.start, found.blocks, found.pins, answer, on_progress if request.progress else None,
            time.perf_counter(), missing=found.missing, keep=request.keep, slot=begun.slot if begun else None, known=known,
        )  # fmt: skip
        self._jobs[job.id] = job
        client.jobs.add(job.id)
        if request.deadline_s is not None:
            text = f"the job did not finish within {request.deadline_s:.3g} s"
            job.timer = asyncio.get_running_loop().call_later(
                min(request.deadline_s, 1e6), self._end_early, job, DeadlineExceeded(text)
            )
        there = begun.slot.device.process.number if begun else None
        self._handle(queue.Submit(job.id, client.tenant, form.cost / (NODES_PER_S * SLICE_S), there), begun)
        return job.id

    def cancel(self, job_id: int) -> None:
        """Stop a job. Without effect on one that has ended."""
        if job := self._jobs.get(job_id):
            self._end_early(job, Cancelled("the job was cancelled"))

    def leave(self, client: Client) -> None:
        """The client is gone: its jobs stop and its results are dropped."""
        client.on_idle = None
        for job_id in list(client.jobs):
            self.cancel(job_id)
        for ticket in list(client.tickets):
            self._bulk.discard(ticket)
        if client.holder:
            self._store.leave(client.holder)

    def arrive(self, client: Client) -> None:
        """The client has opened a session; `leave` ends it."""
        if client.holder:
            self._store.arrive(client.holder)

    # ── what the queue decides, and what the workers report ───────────────────────────────────────

    def _handle(self, event: queue.Event, begun: Begun | None = None) -> None:
        for action in self._queue.handle(event):
            match action:
                case queue.Start(worker, job_id):
                    job = self._jobs[job_id]
                    if job.began is None:
                        job.began = time.perf_counter()
                        self.metrics.waited(job.began - job.asked)
                    if job.known and not begun:
                        self._express.prepare(self._devices[worker], job.start.form, job.form)
                    self._send(worker, job_id, None if begun else job.start)
                case queue.Step(worker, job_id):
                    self._send(worker, job_id, wire.Step())
                case queue.Drop(worker, job_id):
                    self._devices[worker].process.send(job_id, wire.Drop())
                case queue.Reject(job_id, ahead):
                    self._reject(self._jobs[job_id], ahead)
                case queue.Abandon(job_id):
                    text = "the worker process died twice while it ran this job; the server is up again"
                    self._settle(self._jobs[job_id], WorkerDied(text))
                case queue.Forget(job_id):
                    self._forget(self._jobs[job_id])

    def _send(self, worker: int, job_id: int, action: wire.Start | wire.Step | None) -> None:
        """Give a worker its next slice; None if it has it already."""
        device, job = self._devices[worker], self._jobs[job_id]
        device.job, device.since = job_id, time.monotonic()
        device.compiling = job.untouched or not isinstance(action, wire.Step)
        job.untouched = False
        if action:
            device.process.send(job_id, action)

    def _event(self, worker: int, job_id: int, event: wire.Event | wire.Said) -> None:
        device = self._devices[worker]
        if isinstance(event, wire.Ready):
            self._devices.came_up(worker, event.device)
            self._handle(queue.WorkerUp(worker))
            return
        if isinstance(event, wire.Prepared):
            self._express.prepared(device, event)
            return
        if not job_id:
            return  # a form that could not be prepared, as the worker's log says: it goes the long way
        job = self._jobs[job_id]
        if isinstance(event, wire.Compiling):
            job.untouched = True
            if job.settled:
                self._release(job)
            return
        device.job = None
        match event:
            case wire.Progressed(share, values):
                if job.on_progress and not job.settled and not job.untouched:
                    job.on_progress(share, values)
                self._handle(queue.Progressed(job_id, share))
            case wire.Finished() | wire.Said():
                if isinstance(event, wire.Said):
                    assert job.slot, "only a packet is answered with a packet"
                    event = wire.Finished(job.slot.rooms.values(event.packet), job.slot.plan)
                outcome = None if job.settled else self._outcome(job, event)
                self._handle(queue.Finished(job_id))
                if outcome:
                    self._settle(job, outcome)
            case wire.Failure(error):
                self._handle(queue.Failed(job_id))
                self._settle(job, error)

    def _lost(self, worker: int) -> None:
        self.metrics.restarts.inc()
        self._express.lost(worker)
        if self._devices.lost(worker):
            self._handle(queue.WorkerLost(worker))

    def _outcome(self, job: Job, event: wire.Finished) -> wire.Outputs | wire.Outlook | FarsumError:
        try:
            return self._supply.collect(job, event)
        except FarsumError as error:
            return error

    def _reject(self, job: Job, ahead: float) -> None:
        self.metrics.rejected.labels("queue_full").inc()
        pause = min(MAX_PAUSE_S, max(0.05, ahead * SLICE_S / 4))
        error = QueueFull(f"the queue is full with {len(self._queue)} jobs; try again in {pause:.2g} s")
        self._forget(job)
        self._settle(job, wire.busy(error, pause))

    def _end_early(self, job: Job, error: FarsumError) -> None:
        if job.settled:
            return
        stage = "queued" if job.began is None else "running"
        self.metrics.cancelled.labels(stage).inc()
        self._settle(job, error)
        self._handle(queue.Cancel(job.id))
        if job.untouched:
            self._release(job)

    def _settle(self, job: Job, outcome: wire.Outputs | wire.Outlook | FarsumError) -> None:
        """Answer the client. The job's memory may stay until the worker is done with it."""
        if job.settled:
            return
        job.settled = True
        if job.timer:
            job.timer.cancel()
        job.client.jobs.discard(job.id)
        job.answer(outcome)
        job.client.tell_if_idle()

    def _release(self, job: Job) -> None:
        """Give up the memory of a job, which nothing touches. Its worker may still compile it, and is then done with it."""
        self._supply.unpin(job.pins)
        self._supply.free(job.blocks)
        job.pins, job.blocks = [], []

    def _forget(self, job: Job) -> None:
        del self._jobs[job.id]
        self._release(job)
        if self._draining:
            self._changed.set()

    # ── time ──────────────────────────────────────────────────────────────────────────────────────

    async def _tick_forever(self) -> None:
        while True:
            due = time.monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            self.metrics.loop_lag.set(max(0.0, time.monotonic() - due))
            self._tick()

    def _tick(self) -> None:
        self.metrics.count()
        self.metrics.egress.labels("inline").inc(self._supply.sent + self._express.sent)
        self._supply.sent = self._express.sent = 0
        now = time.monotonic()
        self._bulk.expire(now)
        self._store.expire()
        self.affinity.tick()
        self._warm_ahead()
        for device in self._devices:
            if device.job and device.compiling and now - device.since > self._limits.compile_deadline_s:
                self._overrun(device, self._jobs[device.job])

    def _warm_ahead(self) -> None:
        """Keep so much memory ready beyond what was ever used."""
        end = self._allocator.high + self._limits.store_warm_bytes
        if self._limits.store_warm_bytes and self._arena.cold(end):
            self.affinity.scatter()
            self._arena.warm(end)

    def _overrun(self, device: Device, job: Job) -> None:
        """The compiler cannot be interrupted, only its process can."""
        log.error("compile deadline overrun", job=job.id, worker=device.process.number)
        text = f"the formula took more than {self._limits.compile_deadline_s:g} s to compile and start"
        device.job = None
        self._settle(job, FormulaTooExpensive(text))
        if self._queue.state_of(job.id) is queue.State.RUNNING:
            self._handle(queue.Cancel(job.id))
        device.process.kill()

    # ── bulk ──────────────────────────────────────────────────────────────────────────────────────

    async def upload(
        self, tenant: str, upload: wire.Upload, chunks: AsyncIterator[Chunk], transport: str = "bulk"
    ) -> int:
        """Receive one array; see `Bulk.upload`."""
        if self._draining:
            raise Draining("the server is stopping and takes no new arrays")
        self.affinity.scatter()
        return await self._bulk.upload(tenant, upload, chunks, transport)

    def download(
        self, what: bytes | ArrayRef, tenant: str = "default", transport: str = "bulk"
    ) -> AbstractAsyncContextManager[tuple[bytes, memoryview]]:
        """The header and the bytes of an array; see `Bulk.download`."""
        self.affinity.scatter()
        return self._bulk.download(tenant, what, transport)


def internal(error: Exception, where: str) -> InternalError:
    """Log a bug of ours; the client gets the id to ask for, never the story."""
    request = secrets.token_hex(4)
    log.error("unhandled error", where=where, request=request, exc_info=error)
    return InternalError(f"internal error; the server's log has it under request {request}")
