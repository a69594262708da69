"""Who runs next, and where: events in, actions out. No clock, no thread, no socket, no array.

A job moves between five states; a pair of state and event that is not in the table is a bug of ours
and raises `Impossible` with the job's story.

    WAITING   no worker has it                        ┐ both count against the limit
    RUNNING   its slice is on a worker                │
    PARKED    a worker keeps it between two slices    ┘
    DOOMED    cancelled while its slice runs: its memory stays until the worker answers
    (gone)    finished, failed, cancelled: not in the queue

Tenants take turns by deficit round robin: each turn adds one slice of credit, and a slice is paid
with its estimated cost, so a tenant of many cheap jobs gets as much of the machine as a tenant of one
dear job. Within a tenant the job with the least work left runs first, so short jobs overtake long ones
between slices; every eighth slice goes to the oldest job, so long ones still end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

OLDEST_EVERY = 8
MAX_ATTEMPTS = 2
STORY_LENGTH = 32


class State(Enum):
    WAITING = auto()
    RUNNING = auto()
    PARKED = auto()
    DOOMED = auto()


# Events


@dataclass(frozen=True, slots=True)
class Submit:
    """A new job. `cost` is its estimated length in slices; `worker` is free and has it already, if not None."""

    job: int
    tenant: str = "default"
    cost: float = 1.0
    worker: int | None = None


@dataclass(frozen=True, slots=True)
class Progressed:
    job: int
    share: float


@dataclass(frozen=True, slots=True)
class Finished:
    job: int


@dataclass(frozen=True, slots=True)
class Failed:
    job: int


@dataclass(frozen=True, slots=True)
class Cancel:
    job: int


@dataclass(frozen=True, slots=True)
class WorkerUp:
    worker: int


@dataclass(frozen=True, slots=True)
class WorkerLost:
    worker: int


Event = Submit | Progressed | Finished | Failed | Cancel | WorkerUp | WorkerLost


# Actions


@dataclass(frozen=True, slots=True)
class Start:
    worker: int
    job: int


@dataclass(frozen=True, slots=True)
class Step:
    worker: int
    job: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Tell the worker to forget a job that it keeps."""

    worker: int
    job: int


@dataclass(frozen=True, slots=True)
class Reject:
    """The queue is full. `ahead` is the work in front of the job, in slices."""

    job: int
    ahead: float


@dataclass(frozen=True, slots=True)
class Abandon:
    """Workers died under this job as often as it may happen."""

    job: int


@dataclass(frozen=True, slots=True)
class Forget:
    """The job is gone and nobody reads its memory any more. Each accepted job ends with this, once."""

    job: int


Action = Start | Step | Drop | Reject | Abandon | Forget


class Impossible(Exception):
    """An event that cannot happen in the state a job is in: a bug of the caller or of the queue."""


@dataclass(slots=True)
class _Job:
    id: int
    tenant: str
    cost: float
    order: int
    state: State = State.WAITING
    share: float = 0.0
    worker: int | None = None
    attempts: int = 0
    # What happened, as (state, event). Told only if something impossible happens: text costs time.
    story: deque[tuple[State, object]] = field(default_factory=lambda: deque(maxlen=STORY_LENGTH))

    @property
    def left(self) -> float:
        return self.cost * (1.0 - self.share)


@dataclass(slots=True)
class _Tenant:
    jobs: dict[int, _Job] = field(default_factory=dict)
    credit: float = 0.0
    picks: int = 0


class Queue:
    """The state machine. `handle` is the only way in."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: dict[int, _Job] = {}
        self._workers: dict[int, int | None] = {}  # worker -> the job whose slice it runs
        self._tenants: dict[str, _Tenant] = {}
        self._turns: deque[str] = deque()
        self._count = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job: int) -> bool:
        return job in self._jobs

    def state_of(self, job: int) -> State | None:
        found = self._jobs.get(job)
        return found.state if found else None

    def worker_of(self, job: int) -> int | None:
        found = self._jobs.get(job)
        return found.worker if found else None

    def handle(self, event: Event) -> list[Action]:
        """The actions that an event calls for, in the order in which they must be performed.

        Raises Impossible for an event that the job's state does not know.
        """
        match event:
            case Submit():
                actions = self._submit(event)
            case WorkerUp(worker):
                actions = self._up(worker)
            case WorkerLost(worker):
                actions = self._lost(worker)
            case _:
                actions = self._transition(event)
        actions.extend(self._dispatch())
        return actions

    def _submit(self, event: Submit) -> list[Action]:
        if event.job in self._jobs:
            raise self._impossible(self._jobs[event.job], event)
        if event.worker is not None and self._workers.get(event.worker, 0) is not None:
            raise Impossible(f"{event}, and that worker is not free")
        if len(self._jobs) - self._doomed >= self._limit:
            return [Reject(event.job, sum(j.left for j in self._jobs.values()))]
        self._count += 1
        job = _Job(event.job, event.tenant, max(event.cost, 0.001), self._count)
        job.story.append((job.state, event))
        self._jobs[job.id] = job
        if event.tenant not in self._tenants:
            self._tenants[event.tenant] = _Tenant()
            self._turns.append(event.tenant)
        self._tenants[event.tenant].jobs[job.id] = job
        return [] if event.worker is None else [self._assign(job, event.worker)]

    def _assign(self, job: _Job, worker: int) -> Start | Step:
        action = Step(worker, job.id) if job.state is State.PARKED else Start(worker, job.id)
        job.story.append((job.state, action))
        job.state, job.worker = State.RUNNING, worker
        self._workers[worker] = job.id
        return action

    @property
    def _doomed(self) -> int:
        running = [self._jobs[job] for job in self._workers.values() if job is not None]
        return sum(job.state is State.DOOMED for job in running)

    def _up(self, worker: int) -> list[Action]:
        if worker in self._workers:
            raise Impossible(f"worker {worker} came up twice")
        self._workers[worker] = None
        return []

    def _lost(self, worker: int) -> list[Action]:
        if worker not in self._workers:
            raise Impossible(f"worker {worker} was lost before it came up")
        running = self._workers.pop(worker)
        actions: list[Action] = []
        for job in [j for j in self._jobs.values() if j.worker == worker]:
            if job.id == running:
                job.attempts += 1
            job.story.append((job.state, WorkerLost(worker)))
            if job.state is State.DOOMED:
                actions.append(self._forget(job))
            elif job.attempts >= MAX_ATTEMPTS:
                actions += [Abandon(job.id), self._forget(job)]
            else:
                # Its partial state went with the worker.
                job.state, job.worker, job.share = State.WAITING, None, 0.0
        return actions

    def _transition(self, event: Progressed | Finished | Failed | Cancel) -> list[Action]:
        job = self._jobs.get(event.job)
        if job is None:
            raise Impossible(f"{event} for a job that is not in the queue")
        rule = _TRANSITIONS.get((job.state, type(event)))
        if rule is None:
            raise self._impossible(job, event)
        job.story.append((job.state, event))
        return rule(self, job, event)

    @staticmethod
    def _impossible(job: _Job, event: Event) -> Impossible:
        story = "; ".join(f"{state.name}: {what}" for state, what in job.story)
        return Impossible(f"{event} in state {job.state.name} of job {job.id}; its story: {story}")

    # Transitions

    def _progressed(self, job: _Job, event: Progressed) -> list[Action]:
        self._set_free(job)
        job.state = State.PARKED
        job.share = min(1.0, max(job.share, event.share))
        return []

    def _ended(self, job: _Job, event: Finished | Failed) -> list[Action]:
        self._set_free(job)
        return [self._forget(job)]

    def _cancel_idle(self, job: _Job, event: Cancel) -> list[Action]:
        drop: list[Action] = [] if job.worker is None else [Drop(job.worker, job.id)]
        return [*drop, self._forget(job)]

    def _cancel_running(self, job: _Job, event: Cancel) -> list[Action]:
        job.state = State.DOOMED
        return []

    def _doomed_progressed(self, job: _Job, event: Progressed) -> list[Action]:
        assert job.worker is not None
        self._set_free(job)
        return [Drop(job.worker, job.id), self._forget(job)]

    def _set_free(self, job: _Job) -> None:
        assert job.worker is not None
        self._workers[job.worker] = None

    def _forget(self, job: _Job) -> Forget:
        del self._jobs[job.id]
        tenant = self._tenants[job.tenant]
        del tenant.jobs[job.id]
        if not tenant.jobs:
            # Credit does not outlive the backlog it was given for.
            del self._tenants[job.tenant]
            self._turns.remove(job.tenant)
        return Forget(job.id)

    # Choice

    def _dispatch(self) -> list[Action]:
        actions: list[Action] = []
        for worker, running in self._workers.items():
            if running is None and (job := self._choose(worker)):
                actions.append(self._assign(job, worker))
        return actions

    def _choose(self, worker: int) -> _Job | None:
        """The next job by deficit round robin. A tenant keeps the turn while its credit lasts."""
        for _ in range(len(self._turns) + 1):
            tenant = self._tenants[self._turns[0]] if self._turns else None
            if tenant is None:
                return None
            job = self._next_of(tenant, worker)
            if job and (price := min(1.0, job.left)) <= tenant.credit:
                tenant.credit -= price
                tenant.picks += 1
                return job
            if job is None:
                tenant.credit = 0.0
            self._turns.rotate(-1)
            # A slice costs 1 at most, so whoever has a job can pay for it when the turn comes.
            self._tenants[self._turns[0]].credit += 1.0
        return None

    def _next_of(self, tenant: _Tenant, worker: int) -> _Job | None:
        able = [j for j in tenant.jobs.values() if j.state in _IDLE and j.worker in (None, worker)]
        if not able:
            return None
        if tenant.picks % OLDEST_EVERY == OLDEST_EVERY - 1:
            return min(able, key=lambda j: j.order)
        return min(able, key=lambda j: (j.left, j.order))


_IDLE = (State.WAITING, State.PARKED)

Rule = Callable[[Queue, Any, Any], list[Action]]

_TRANSITIONS: dict[tuple[State, type], Rule] = {
    (State.WAITING, Cancel): Queue._cancel_idle,
    (State.PARKED, Cancel): Queue._cancel_idle,
    (State.RUNNING, Cancel): Queue._cancel_running,
    (State.RUNNING, Progressed): Queue._progressed,
    (State.RUNNING, Finished): Queue._ended,
    (State.RUNNING, Failed): Queue._ended,
    (State.DOOMED, Progressed): Queue._doomed_progressed,
    (State.DOOMED, Finished): Queue._ended,
    (State.DOOMED, Failed): Queue._ended,
}
