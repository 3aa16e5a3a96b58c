"""Leader election by one coordination.k8s.io/v1 Lease, as client-go does it.

The holder renews; everybody else takes over once the Lease has not changed for its duration, judged by their own
monotonic clock since they saw the last change: no two machines' clocks are compared. Every write carries the
resourceVersion it was decided on, so of two takers one wins.

Worst takeover after a kill: the follower sees the last renewal up to ``retry`` seconds late and waits ``duration``
from there: 2 + 10 s, and one request.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from finetune_operator.cluster.errors import AlreadyExists, ApiError, Conflict, NotFound
from finetune_operator.cluster.transport import Manifest, Transport

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeaseTimes:
    """Seconds. ``duration`` > ``renew_deadline`` > ``retry``; ``request`` bounds one attempt."""

    duration: float = 10.0
    renew_deadline: float = 7.0
    retry: float = 2.0
    request: float = 2.0


class LeaseStore(Protocol):
    """The one Lease. ``fetch`` and ``replace`` raise NotFound, ``replace`` Conflict, ``create`` AlreadyExists."""

    def fetch(self) -> Manifest: ...
    def create(self, spec: Manifest) -> Manifest: ...
    def replace(self, lease: Manifest) -> Manifest: ...


class ClusterLease:
    """The Lease ``namespace/name`` at the API server."""

    def __init__(self, transport: Transport, namespace: str, name: str, timeout: float = LeaseTimes.request) -> None:
        self._transport = transport
        self._metadata = {"namespace": namespace, "name": name}
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._path = f"{self._collection}/{name}"
        self._timeout = timeout

    def fetch(self) -> Manifest:
        return self._transport.request("get", "leases", self._path, timeout=self._timeout)

    def create(self, spec: Manifest) -> Manifest:
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": self._metadata,
            "spec": spec,
        }
        return self._transport.request("create", "leases", self._collection, lease, timeout=self._timeout)

    def replace(self, lease: Manifest) -> Manifest:
        return self._transport.request("update", "leases", self._path, lease, timeout=self._timeout)


class LeaderElector:
    """Holds the Lease from a thread of its own; :meth:`is_leader` never blocks and never outlives the deadline."""

    def __init__(
        self,
        store: LeaseStore,
        identity: str,
        on_started_leading: Callable[[], None],
        times: LeaseTimes = LeaseTimes(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._identity = identity
        self._on_started_leading = on_started_leading
        self._times = times
        self._clock = clock
        self._seen: Manifest | None = None
        self._seen_at = 0.0
        self._renewed_at: float | None = None  # when the last renewal that succeeded was *sent*; None: not the holder
        self._attempted_at = clock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leader-election", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop renewing and give the Lease back, so that the next one takes it at once."""
        self._stop.set()
        self._thread.join()
        if self._renewed_at is None or self._seen is None:
            return
        self._renewed_at = None
        spec = {**self._seen["spec"], "holderIdentity": None, "renewTime": _now()}
        try:
            self._store.replace({**self._seen, "spec": spec})
        except ApiError as error:
            log.warning("lease not released, it expires in %.0f s: %s", self._times.duration, error)

    def is_leader(self) -> bool:
        """Whether this process may start work; false from the renew deadline on, even while a renewal hangs."""
        renewed_at = self._renewed_at
        return renewed_at is not None and self._clock() < renewed_at + self._times.renew_deadline

    def seconds_to_write(self) -> float:
        """How long a write that starts now may take before another process can hold the Lease; 0: none may start."""
        renewed_at = self._renewed_at
        if renewed_at is None or not self.is_leader():
            return 0.0
        return renewed_at + self._times.duration - self._clock()

    def stalled_seconds(self) -> float:
        """Time since the last attempt began: beyond a few retries the thread hangs or is dead."""
        return self._clock() - self._attempted_at

    def attempt(self) -> None:
        """Renew, take or watch the Lease, once.

        :raises ApiError: the API server could not be asked; leadership then runs out by itself.
        """
        self._attempted_at = self._clock()
        if self._renewed_at is None:
            self._fetch()
        try:
            self._renewed_at = self._try_claim()
        except (Conflict, AlreadyExists, NotFound):
            # Written by somebody else, deleted, or by us in a request whose answer got lost: look, then try once more.
            self._fetch()
            self._renewed_at = self._try_claim()

    def next_attempt_in(self) -> float:
        """Seconds to the next attempt: a follower also wakes at the very moment the Lease expires."""
        now = self._clock()
        due = self._attempted_at + self._times.retry
        if self._renewed_at is None and self._seen is not None and self._seen_at + self._times.duration > now:
            due = min(due, self._seen_at + self._times.duration)
        return max(0.0, due - now)

    def _run(self) -> None:
        was_leader = False
        while not self._stop.is_set():
            try:
                self.attempt()
            except ApiError as error:
                log.warning("lease: %s", error)
            if self.is_leader() != was_leader:
                was_leader = not was_leader
                log.info("leading" if was_leader else "following")
                if was_leader:
                    self._on_started_leading()
            self._stop.wait(self.next_attempt_in())

    def _fetch(self) -> None:
        try:
            self._observe(self._store.fetch())
        except NotFound:
            self._seen = None

    def _observe(self, lease: Manifest) -> None:
        if self._seen is None or self._seen["metadata"]["resourceVersion"] != lease["metadata"]["resourceVersion"]:
            self._seen, self._seen_at = lease, self._clock()

    def _try_claim(self) -> float | None:
        """When the claim that succeeded was sent; None while somebody else holds the Lease."""
        sent_at = self._clock()
        if self._seen is None:
            self._observe(self._store.create(self._claim({})))
        elif self._may_take(self._seen["spec"].get("holderIdentity")):
            self._observe(self._store.replace({**self._seen, "spec": self._claim(self._seen["spec"])}))
        else:
            return None
        return sent_at

    def _may_take(self, holder: str | None) -> bool:
        return holder in (None, "", self._identity) or self._clock() >= self._seen_at + self._times.duration

    def _claim(self, spec: Manifest) -> Manifest:
        mine = spec.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(self._times.duration),
            "renewTime": _now(),
            "acquireTime": spec["acquireTime"] if mine else _now(),
            "leaseTransitions": spec.get("leaseTransitions", 0) + (0 if mine or not spec else 1),
        }


def _now() -> str:
    """A metav1.MicroTime; for people who read the Lease, no decision is made on it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
