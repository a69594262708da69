"""Who runs next: event scripts, and random ones with invariants on."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from farsum_server.queue import (
    MAX_ATTEMPTS,
    OLDEST_EVERY,
    Abandon,
    Action,
    Cancel,
    Drop,
    Event,
    Failed,
    Finished,
    Forget,
    Impossible,
    Progressed,
    Queue,
    Reject,
    Start,
    State,
    Step,
    Submit,
    WorkerLost,
    WorkerUp,
)


def play(queue: Queue, *events: Event) -> list[Action]:
    """The actions of the last of these events."""
    actions: list[Action] = []
    for event in events:
        actions = queue.handle(event)
    return actions


def up(limit: int = 10) -> Queue:
    queue = Queue(limit)
    assert queue.handle(WorkerUp(0)) == []
    return queue


def test_a_job_from_submit_to_finish() -> None:
    queue = up()
    assert queue.handle(Submit(1)) == [Start(0, 1)]
    assert queue.handle(Progressed(1, 0.5)) == [Step(0, 1)]
    assert queue.handle(Finished(1)) == [Forget(1)]
    assert len(queue) == 0


def test_a_job_that_a_worker_has_already_stays_there() -> None:
    queue = up()
    queue.handle(WorkerUp(1))
    assert queue.handle(Submit(1, worker=1)) == [Start(1, 1)]
    assert queue.handle(Submit(2)) == [Start(0, 2)]
    for worker in (0, 1, 7):  # at work, and not there
        with pytest.raises(Impossible, match="is not free"):
            queue.handle(Submit(3, worker=worker))
    assert len(queue) == 2
    assert queue.handle(WorkerLost(1)) == []
    assert queue.handle(Finished(2)) == [Forget(2), Start(0, 1)]


def test_a_job_waits_for_a_worker() -> None:
    queue = Queue(10)
    assert queue.handle(Submit(1)) == []
    assert queue.handle(WorkerUp(0)) == [Start(0, 1)]


def test_short_jobs_overtake_long_ones_between_slices() -> None:
    queue = up()
    play(queue, Submit(1, cost=1000), Submit(2, cost=0.1))
    assert queue.handle(Progressed(1, 0.001)) == [Start(0, 2)]
    assert queue.handle(Finished(2)) == [Forget(2), Step(0, 1)]


def test_a_long_job_goes_on_however_many_short_ones_come() -> None:
    queue = up(1000)
    queue.handle(Submit(0, cost=1000))
    for n in range(1, 100):
        queue.handle(Submit(n, cost=0.1))
    queue.handle(Progressed(0, 0.0))
    turns = []
    for _ in range(5 * OLDEST_EVERY):
        running = next(j for j in range(100) if queue.state_of(j) is State.RUNNING)
        turns.append(running)
        queue.handle(Progressed(0, 0.0) if running == 0 else Finished(running))
    assert turns.count(0) == 5


def test_tenants_share_by_work_and_not_by_number_of_jobs() -> None:
    queue = up(1000)
    slices = {"many": 0.0, "one": 0.0}
    queue.handle(Submit(0, "one", cost=1e6))
    for n in range(1, 401):
        queue.handle(Submit(n, "many", cost=0.25))
    for _ in range(200):
        running = next(j for j in range(401) if queue.state_of(j) is State.RUNNING)
        slices["one" if running == 0 else "many"] += 1.0 if running == 0 else 0.25
        queue.handle(Progressed(0, 0.0) if running == 0 else Finished(running))
    assert slices["one"] == pytest.approx(slices["many"], rel=0.1)


def test_full_queue() -> None:
    queue = up(limit=1)
    play(queue, Submit(1, cost=4.0))
    assert queue.handle(Submit(2)) == [Reject(2, 4.0)]
    assert 2 not in queue
    play(queue, Finished(1))
    assert queue.handle(Submit(2)) == [Start(0, 2)]


def test_cancel_of_a_waiting_job() -> None:
    queue = up()
    play(queue, Submit(1), Submit(2))
    assert queue.handle(Cancel(2)) == [Forget(2)]


def test_cancel_of_a_job_between_two_slices() -> None:
    queue = up()
    play(queue, Submit(1, cost=100), Submit(2, cost=0.1), Progressed(1, 0.1))
    assert queue.handle(Cancel(1)) == [Drop(0, 1), Forget(1)]


@pytest.mark.parametrize("end", [Finished(1), Failed(1)])
def test_memory_of_a_running_job_stays_until_the_worker_answers(end: Event) -> None:
    queue = up()
    play(queue, Submit(1))
    assert queue.handle(Cancel(1)) == []
    assert queue.state_of(1) is State.DOOMED
    assert queue.handle(end) == [Forget(1)]


def test_a_doomed_job_that_progresses_is_dropped() -> None:
    queue = up()
    play(queue, Submit(1), Submit(2), Cancel(1))
    assert queue.handle(Progressed(1, 0.5)) == [Drop(0, 1), Forget(1), Start(0, 2)]


def test_lost_worker_runs_jobs_again_and_blames_only_the_one_that_ran() -> None:
    queue = up()
    play(queue, Submit(1, cost=100), Submit(2, cost=50), Progressed(1, 0.1))
    assert queue.state_of(2) is State.RUNNING and queue.state_of(1) is State.PARKED
    for _ in range(MAX_ATTEMPTS - 1):
        assert queue.handle(WorkerLost(0)) == []
        assert queue.handle(WorkerUp(0)) == [Start(0, 2)]
    assert queue.handle(WorkerLost(0)) == [Abandon(2), Forget(2)]
    assert queue.handle(WorkerUp(0)) == [Start(0, 1)]


def test_a_doomed_job_goes_with_its_worker() -> None:
    queue = up()
    play(queue, Submit(1), Cancel(1))
    assert queue.handle(WorkerLost(0)) == [Forget(1)]


def test_two_workers() -> None:
    queue = up()
    queue.handle(WorkerUp(1))
    assert play(queue, Submit(1)) == [Start(0, 1)]
    assert play(queue, Submit(2)) == [Start(1, 2)]
    assert queue.handle(Progressed(2, 0.5)) == [Step(1, 2)]
    # A parked job goes on where its state is.
    play(queue, Submit(3, cost=0.1))
    assert queue.handle(Progressed(1, 0.1)) == [Start(0, 3)]
    assert queue.worker_of(1) == 0


@pytest.mark.parametrize(
    "event", [Progressed(1, 0.5), Finished(1), Failed(1), Submit(1)], ids=lambda e: type(e).__name__
)
def test_impossible_events_tell_the_story(event: Event) -> None:
    queue = Queue(10)
    queue.handle(Submit(1, "lab"))
    with pytest.raises(
        Impossible, match=r"in state WAITING of job 1; its story: WAITING: Submit\(job=1, tenant='lab'"
    ):
        queue.handle(event)


@pytest.mark.parametrize("event", [Cancel(9), Finished(9), WorkerLost(3), WorkerUp(0)])
def test_events_about_nobody(event: Event) -> None:
    with pytest.raises(Impossible):
        up().handle(event)


class Machine(RuleBasedStateMachine):
    """A daemon and its workers, played at random. The model knows only what was submitted and what ended."""

    LIMIT = 6

    def __init__(self) -> None:
        super().__init__()
        self.queue = Queue(self.LIMIT)
        self.accepted: set[int] = set()
        self.cancelled: set[int] = set()
        self.workers: dict[int, int | None] = {}
        self.kept: dict[int, set[int]] = {}
        self.next = 0

    def feed(self, event: Event) -> None:
        for action in self.queue.handle(event):
            match action:
                case Start(worker, job):
                    assert self.workers[worker] is None and job in self.accepted
                    assert job not in self.cancelled and job not in self.kept[worker]
                    self.workers[worker] = job
                    self.kept[worker].add(job)
                case Step(worker, job):
                    assert self.workers[worker] is None and job in self.kept[worker]
                    assert job not in self.cancelled
                    self.workers[worker] = job
                case Drop(worker, job):
                    self.kept[worker].remove(job)
                case Forget(job):
                    self.accepted.remove(job)
                    assert job not in self.workers.values(), "its memory is still in use"
                    for kept in self.kept.values():
                        kept.discard(job)
                case Abandon(job):
                    assert job in self.accepted
                case Reject(job, ahead):
                    assert len(self.accepted - self.cancelled) == self.LIMIT + 1 and ahead > 0
                    self.accepted.remove(job)

    @rule(cost=st.floats(0, 1000), tenant=st.sampled_from("abc"))
    def submit(self, cost: float, tenant: str) -> None:
        self.next += 1
        self.accepted.add(self.next)
        self.feed(Submit(self.next, tenant, cost))

    @precondition(lambda self: any(job is None for job in self.workers.values()))
    @rule(data=st.data(), cost=st.floats(0, 1000))
    def submit_there(self, data: st.DataObject, cost: float) -> None:
        worker = data.draw(st.sampled_from([w for w, job in self.workers.items() if job is None]))
        self.next += 1
        self.accepted.add(self.next)
        self.feed(Submit(self.next, "a", cost, worker))

    @rule(worker=st.integers(0, 2))
    def come_up(self, worker: int) -> None:
        if worker not in self.workers:
            self.workers[worker], self.kept[worker] = None, set()
            self.feed(WorkerUp(worker))

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        del self.workers[worker], self.kept[worker]
        self.feed(WorkerLost(worker))

    @precondition(lambda self: any(self.workers.values()))
    @rule(data=st.data(), kind=st.sampled_from([Finished, Failed, Progressed]), share=st.floats(0, 0.99))
    def answer(self, data: st.DataObject, kind: type, share: float) -> None:
        worker = data.draw(st.sampled_from([w for w, job in self.workers.items() if job]))
        job = self.workers[worker]
        assert job
        self.workers[worker] = None
        if kind is not Progressed:
            self.kept[worker].discard(job)
        self.feed(Progressed(job, share) if kind is Progressed else kind(job))

    @precondition(lambda self: self.accepted - self.cancelled)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.accepted - self.cancelled)))
        self.cancelled.add(job)
        self.feed(Cancel(job))

    @invariant()
    def no_job_is_lost_or_invented(self) -> None:
        assert len(self.queue) == len(self.accepted)
        # What was cancelled while it ran is on a worker still, and takes nobody's place.
        assert len(self.accepted - self.cancelled) <= self.LIMIT
        assert len(self.accepted & self.cancelled) <= len(self.workers)
        assert all(job in self.queue for job in self.accepted)

    @invariant()
    def workers_never_idle_while_a_job_can_run(self) -> None:
        idle = [w for w, job in self.workers.items() if job is None]
        for job in self.accepted:
            state, worker = self.queue.state_of(job), self.queue.worker_of(job)
            assert not (state is State.WAITING and idle)
            assert not (state is State.PARKED and worker in idle)

    @invariant()
    def states_agree_with_the_workers(self) -> None:
        running = {job for job in self.workers.values() if job}
        busy = {j for j in self.accepted if self.queue.state_of(j) in (State.RUNNING, State.DOOMED)}
        assert running == busy
        assert {j for j in busy if self.queue.state_of(j) is State.DOOMED} == busy & self.cancelled

    def teardown(self) -> None:
        """Everything ends when the workers do their work."""
        self.come_up(0)
        for _ in range(1000):
            busy = [job for job in self.workers.values() if job]
            if not busy:
                break
            for worker, job in list(self.workers.items()):
                if job and self.workers[worker] == job:
                    self.workers[worker] = None
                    self.kept[worker].discard(job)
                    self.feed(Finished(job))
        assert not self.accepted


TestMachine = Machine.TestCase
TestMachine.settings = settings(stateful_step_count=60, max_examples=60)
