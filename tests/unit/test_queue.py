"""The queue keeps one worker a key, loses no wake-up, keeps order and backs off within bounds."""

import threading
import time
from collections import Counter, defaultdict

import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from finetune_operator.queue import BACKOFF_MAX_SECONDS, Backlog, Key, ReconcileQueue

A, B, C = ("ns", "a"), ("ns", "b"), ("other", "a")
KEYS = strategies.sampled_from([A, B, C])
SECONDS = strategies.floats(0, 100)


class BacklogMachine(RuleBasedStateMachine):
    """Drives a Backlog with a clock of its own beside the simplest model: what is owed a pass, and from when."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.backlog = Backlog(uniform=lambda low, high: high)
        self.running: set[Key] = set()
        self.failures: Counter[Key] = Counter()
        self.owed_from: dict[Key, float] = {}

    def owe(self, key: Key, when: float) -> None:
        self.owed_from[key] = min(when, self.owed_from.get(key, when))

    @rule(key=KEYS)
    def add(self, key: Key) -> None:
        self.backlog.add(key, self.now)
        self.owe(key, self.now)

    @rule(key=KEYS, seconds=SECONDS)
    def add_after(self, key: Key, seconds: float) -> None:
        self.backlog.add_after(key, seconds, self.now)
        self.owe(key, self.now + seconds)

    @rule(seconds=SECONDS)
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def take(self) -> None:
        due = {key for key, when in self.owed_from.items() if when <= self.now} - self.running
        key = self.backlog.take(self.now)
        if key is None:
            assert not due, "a key is due and was not handed out"
        else:
            assert key in due, "a key was handed out twice, too early, or for nothing"
            del self.owed_from[key]
            self.running.add(key)

    @precondition(lambda self: self.running)
    @rule(data=strategies.data(), requeue_after=strategies.none() | SECONDS)
    def finish(self, data: strategies.DataObject, requeue_after: float | None) -> None:
        key = data.draw(strategies.sampled_from(sorted(self.running)))
        self.running.remove(key)
        self.failures[key] = 0
        self.backlog.finish(key, requeue_after, self.now)
        if requeue_after is not None:
            self.owe(key, self.now + requeue_after)

    @precondition(lambda self: self.running)
    @rule(data=strategies.data())
    def fail(self, data: strategies.DataObject) -> None:
        key = data.draw(strategies.sampled_from(sorted(self.running)))
        self.running.remove(key)
        delay = self.backlog.fail(key, self.now)
        assert delay == min(300, 0.5 * 2 ** self.failures[key])
        self.failures[key] += 1
        self.owe(key, self.now + delay)

    @invariant()
    def counts_what_runs(self) -> None:
        assert self.backlog.running == len(self.running)

    def teardown(self) -> None:
        """Left alone for long enough, everything owed is handed out: no wake-up is lost."""
        for key in self.running:
            self.backlog.finish(key, None, self.now)
        self.running.clear()
        self.now += 1e6
        while self.owed_from:
            self.take()


BacklogMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBacklog = BacklogMachine.TestCase


def test_keys_are_handed_out_in_order_of_arrival() -> None:
    backlog = Backlog()
    for now, key in enumerate([B, A, C, A]):
        backlog.add(key, now)
    assert [backlog.take(9) for _ in range(4)] == [B, A, C, None]


def test_a_pass_supersedes_the_timer_of_the_pass_before() -> None:
    backlog = Backlog()
    backlog.add_after(A, 30, now=0)
    backlog.add(A, now=10)
    assert backlog.take(10) == A
    backlog.finish(A, 30, now=11)
    assert backlog.take(40.9) is None
    assert backlog.take(41) == A


def test_backoff_has_full_jitter_between_nothing_and_the_bound() -> None:
    bounds = []
    backlog = Backlog(uniform=lambda low, high: bounds.append((low, high)) or low)
    for _ in range(2000):
        backlog.add(A, 0)
        backlog.take(0)
        backlog.fail(A, 0)
    assert bounds[:4] == [(0, 0.5), (0, 1), (0, 2), (0, 4)]
    assert bounds[-1] == (0, BACKOFF_MAX_SECONDS)


def test_workers_never_share_a_key_and_see_every_change() -> None:
    current = Counter()
    seen: dict[Key, int] = defaultdict(int)
    inside: Counter[Key] = Counter()
    most_at_once: Counter[Key] = Counter()
    most_keys_at_once = 0

    def reconcile(key: Key) -> None:
        nonlocal most_keys_at_once
        inside[key] += 1
        most_at_once[key] = max(most_at_once[key], inside[key])
        most_keys_at_once = max(most_keys_at_once, sum(value > 0 for value in list(inside.values())))
        version = current[key]
        time.sleep(0.0005)
        seen[key] = version
        inside[key] -= 1

    queue = ReconcileQueue(reconcile, workers=8)
    queue.start()
    keys = [("ns", str(index)) for index in range(5)]
    for round_ in range(200):
        for key in keys:
            current[key] = round_ + 1
            queue.add(key)
        time.sleep(0.0003)
    wait_until(lambda: all(seen[key] == 200 for key in keys))
    assert queue.stop(5)
    assert set(most_at_once.values()) == {1}
    assert most_keys_at_once > 1


def test_a_key_changed_while_it_runs_runs_again_afterwards() -> None:
    runs, release = [], threading.Semaphore(0)

    def reconcile(key: Key) -> None:
        runs.append(key)
        release.acquire()

    queue = ReconcileQueue(reconcile, workers=2)
    queue.start()
    queue.add(A)
    wait_until(lambda: runs == [A])
    queue.add(A)
    queue.add(A)
    time.sleep(0.05)
    assert runs == [A]
    release.release(2)
    wait_until(lambda: runs == [A, A])
    assert queue.stop(5)


def test_timers_ring_while_other_workers_are_busy() -> None:
    busy, rung = threading.Event(), threading.Event()

    def reconcile(key: Key) -> None:
        if key == A:
            busy.wait(10)
        else:
            rung.set()

    queue = ReconcileQueue(reconcile, workers=2)
    queue.start()
    queue.add_after(B, 0.2)
    queue.add(A)
    assert rung.wait(5)
    busy.set()
    assert queue.stop(5)


def test_requeue_and_retry_after_an_error() -> None:
    answers = iter([0.01, RuntimeError("once"), None])
    runs = []

    def reconcile(key: Key) -> float | None:
        runs.append(key)
        answer = next(answers)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    queue = ReconcileQueue(reconcile, workers=1, uniform=lambda low, high: 0.01)
    queue.start()
    queue.add(A)
    wait_until(lambda: len(runs) == 3)
    assert queue.stop(5)
    assert len(runs) == 3


def test_keys_are_kept_while_work_is_not_allowed() -> None:
    leading, runs = [False], []
    queue = ReconcileQueue(runs.append, workers=2, may_work=lambda: leading[0])
    queue.start()
    queue.add(A)
    time.sleep(0.05)
    assert (runs, queue.depth) == ([], 1)
    leading[0] = True
    queue.wake()
    wait_until(lambda: runs == [A])
    assert queue.depth == 0
    assert queue.stop(5)


def test_workers_notice_by_themselves_that_work_is_allowed_again() -> None:
    """Leadership may lapse and come back between two looks of the elector, which then has nothing to tell."""
    leading, runs = [False], list[Key]()
    queue = ReconcileQueue(runs.append, workers=1, may_work=lambda: leading[0])
    queue.start()
    queue.add(A)
    time.sleep(0.05)
    leading[0] = True
    wait_until(lambda: runs == [A])
    assert queue.stop(5)


def test_the_wait_of_kept_keys_counts_from_when_work_was_allowed() -> None:
    now, leading = [0.0], [False]
    queue = ReconcileQueue(lambda key: None, may_work=lambda: leading[0], clock=lambda: now[0])
    queue.add(A)
    now[0] = 500.0
    assert queue.oldest_wait_seconds == 0.0
    leading[0] = True
    queue.wake()
    now[0] = 505.0
    assert queue.oldest_wait_seconds == 5.0


def test_ages_of_what_waits_and_what_runs() -> None:
    now, release, running = [0.0], threading.Event(), threading.Event()

    def reconcile(key: Key) -> None:
        running.set()
        release.wait(10)

    queue = ReconcileQueue(reconcile, workers=1, clock=lambda: now[0])
    queue.start()
    queue.add(A)
    assert running.wait(5)
    queue.add(B)
    now[0] = 7.0
    assert (queue.longest_run_seconds, queue.oldest_wait_seconds) == (7.0, 7.0)
    release.set()
    assert queue.stop(5)
    assert queue.longest_run_seconds == 0.0


def test_stop_waits_for_the_running_pass_and_takes_no_more() -> None:
    runs, running, release = [], threading.Event(), threading.Event()

    def reconcile(key: Key) -> None:
        running.set()
        release.wait(10)
        runs.append(key)

    queue = ReconcileQueue(reconcile, workers=1)
    queue.start()
    queue.add(A)
    assert running.wait(5)
    queue.add(B)
    assert not queue.stop(0.05)
    release.set()
    assert queue.stop(5)
    assert runs == [A]


def wait_until(true, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s")
        time.sleep(0.005)
