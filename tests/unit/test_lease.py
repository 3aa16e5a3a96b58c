"""Leader election decided step by step, with a clock and a store of the test's own."""

import copy
import threading

import pytest

from finetune_operator.cluster.errors import AlreadyExists, Conflict, NotFound, Unavailable
from finetune_operator.cluster.lease import LeaderElector


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Store:
    """Stands for the API server's rules on one object; test_lease.py under tests/cluster asks the real one."""

    def __init__(self) -> None:
        self.lease = None
        self.version = 0
        self.down = False
        self.lose_answer = False
        self.writes = 0

    def fetch(self):
        self._check()
        return copy.deepcopy(self.lease)

    def create(self, spec):
        if self.down:
            raise Unavailable(0, "NoAnswer", "down")
        if self.lease is not None:
            raise AlreadyExists(409, "AlreadyExists", "")
        return self._store({"metadata": {}, "spec": spec})

    def replace(self, lease):
        self._check()
        if lease["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise Conflict(409, "Conflict", "")
        return self._store(lease)

    @property
    def holder(self):
        return self.lease["spec"].get("holderIdentity")

    def _check(self) -> None:
        if self.down:
            raise Unavailable(0, "NoAnswer", "down")
        if self.lease is None:
            raise NotFound(404, "NotFound", "")

    def _store(self, lease):
        self.version += 1
        self.writes += 1
        self.lease = copy.deepcopy(lease)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        if self.lose_answer:
            raise Unavailable(0, "NoAnswer", "timed out")
        return copy.deepcopy(self.lease)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> Store:
    return Store()


def elector(store: Store, identity: str, clock: Clock, started=lambda: None) -> LeaderElector:
    return LeaderElector(store, identity, started, clock=clock)


def test_first_comer_creates_and_leads(store: Store, clock: Clock) -> None:
    a, b = elector(store, "a", clock), elector(store, "b", clock)
    a.attempt()
    b.attempt()
    assert (a.is_leader(), b.is_leader()) == (True, False)
    assert store.lease["spec"]["leaseTransitions"] == 0
    assert store.lease["spec"]["leaseDurationSeconds"] == 10


def test_holder_renews_with_one_request_and_keeps_its_acquire_time(store: Store, clock: Clock) -> None:
    a = elector(store, "a", clock)
    a.attempt()
    acquired = store.lease["spec"]["acquireTime"]
    for _ in range(10):
        clock.now += 2
        a.attempt()
        assert a.is_leader()
    assert store.writes == 11
    assert store.lease["spec"]["acquireTime"] == acquired
    assert store.lease["spec"]["leaseTransitions"] == 0


def test_takeover_only_after_the_duration_since_the_follower_saw_a_change(store: Store, clock: Clock) -> None:
    a, b = elector(store, "a", clock), elector(store, "b", clock)
    a.attempt()
    clock.now += 1.9  # killed: a never comes again
    fetch, latency = store.fetch, [0.5]

    def slow_fetch():
        clock.now += latency[0]
        return fetch()

    store.fetch = slow_fetch
    b.attempt()
    latency[0] = 0.01
    began = clock.now
    while not b.is_leader():
        step = b.next_attempt_in()
        assert 0 < step <= 2
        clock.now += step
        b.attempt()
        assert not (a.is_leader() and b.is_leader())
    assert 10 <= clock.now - began <= 10.1
    assert store.lease["spec"]["leaseTransitions"] == 1


def test_renewals_seen_late_prolong_the_wait(store: Store, clock: Clock) -> None:
    a, b = elector(store, "a", clock), elector(store, "b", clock)
    for _ in range(20):
        a.attempt()
        b.attempt()
        assert not b.is_leader()
        clock.now += 2


def test_a_holder_that_cannot_renew_stops_before_anybody_can_take_over(store: Store, clock: Clock) -> None:
    a = elector(store, "a", clock)
    a.attempt()
    renewed_at = clock.now
    store.down = True
    clock.now = renewed_at + 6.9
    with pytest.raises(Unavailable):
        a.attempt()
    assert a.is_leader()
    assert a.seconds_to_write() == pytest.approx(3.1)
    clock.now = renewed_at + 7.0
    assert not a.is_leader()
    assert a.seconds_to_write() == 0
    store.down = False
    a.attempt()  # nobody came: it goes on
    assert a.is_leader()
    assert store.lease["spec"]["leaseTransitions"] == 0


def test_the_deadline_counts_from_when_the_renewal_was_sent(store: Store, clock: Clock) -> None:
    a = elector(store, "a", clock)
    replace = store.replace
    a.attempt()

    def slow(lease):
        clock.now += 6.5
        return replace(lease)

    store.replace = slow
    sent_at = clock.now
    a.attempt()
    clock.now = sent_at + 7.0
    assert not a.is_leader()


def test_a_renewal_whose_answer_was_lost_does_not_end_leadership(store: Store, clock: Clock) -> None:
    a = elector(store, "a", clock)
    a.attempt()
    clock.now += 2
    store.lose_answer = True
    with pytest.raises(Unavailable):
        a.attempt()
    store.lose_answer = False
    clock.now += 2
    a.attempt()  # Conflict inside: looks, finds itself, renews
    clock.now += 6
    assert a.is_leader()
    assert store.lease["spec"]["leaseTransitions"] == 0


def test_of_two_takers_one_wins(store: Store, clock: Clock) -> None:
    a, b, c = (elector(store, name, clock) for name in "abc")
    a.attempt()
    b.attempt()
    c.attempt()
    clock.now += 10
    fetched = store.fetch()
    b.attempt()
    store.fetch = lambda: (setattr(store, "fetch", lambda: Store.fetch(store)), fetched)[1]  # c looked before b wrote
    c.attempt()
    assert (b.is_leader(), c.is_leader()) == (True, False)
    assert store.holder == "b"


def test_a_leader_that_was_replaced_follows(store: Store, clock: Clock) -> None:
    a, b = elector(store, "a", clock), elector(store, "b", clock)
    a.attempt()
    b.attempt()
    clock.now += 10
    b.attempt()
    a.attempt()
    assert (a.is_leader(), b.is_leader(), store.holder) == (False, True, "b")


def test_a_deleted_lease_is_made_again(store: Store, clock: Clock) -> None:
    a = elector(store, "a", clock)
    a.attempt()
    store.lease = None
    clock.now += 2
    a.attempt()
    assert a.is_leader()
    assert store.holder == "a"


def test_release_lets_the_next_one_in_at_once() -> None:
    """With the thread and the real clock."""
    store, started = Store(), threading.Event()
    a = LeaderElector(store, "a", started.set)
    b = LeaderElector(store, "b", lambda: None)
    a.start()
    assert started.wait(5)
    b.attempt()
    assert not b.is_leader()
    a.stop()
    assert not a.is_leader()
    assert store.holder is None
    b.attempt()
    assert b.is_leader()
    assert store.lease["spec"]["leaseTransitions"] == 1


def test_leadership_ends_on_time_while_a_renewal_hangs(clock: Clock) -> None:
    store, hang = Store(), threading.Event()
    a = LeaderElector(store, "a", lambda: None, clock=clock)
    a.attempt()
    store.replace = lambda lease: hang.wait(10) and lease
    thread = threading.Thread(target=a.attempt, daemon=True)
    thread.start()
    assert a.is_leader()
    clock.now += 7
    assert not a.is_leader()
    clock.now += 30
    assert a.stalled_seconds() == 37
    hang.set()
    thread.join()
