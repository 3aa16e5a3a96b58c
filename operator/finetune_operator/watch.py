"""kopf as the source of events, and the check that its watch delivers them.

kopf only watches here: no stateful handlers, annotations, finalizers, peering or posted events. It writes nothing.
"""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import kopf

from finetune_api import names
from finetune_operator.queue import Key

log = logging.getLogger(__name__)

PODS = ("v1", "pods")
JOBS = ("batch", "v1", "jobs")
FINETUNEJOBS = (names.GROUP, names.VERSION, names.PLURAL)

STOP_SECONDS = 10.0


class WatchFreshness:
    """Compares what a list returned with what the watch delivered: the only way to notice a watch that fell silent.

    Keeps the resourceVersion and the phase of each FineTuneJob the watch knows.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._delivered: dict[Key, tuple[int, str]] = {}
        self._missing: dict[Key, int] = {}  # listed, not delivered yet
        self._deleted: set[Key] = set()  # since the list was begun
        self._listed_at: float | None = None

    def delivered(self, key: Key, resource_version: str, phase: str, deleted: bool) -> None:
        """Record one watch event. resourceVersions of one kind compare as integers (KEP-5504)."""
        version = int(resource_version)
        with self._lock:
            if deleted:
                self._delivered.pop(key, None)
                self._deleted.add(key)
            else:
                self._delivered[key] = (version, phase)
            if version >= self._missing.get(key, version + 1):
                del self._missing[key]

    def begin_list(self) -> None:
        """Call before the list: an object deleted while it is under way is not to be waited for."""
        with self._lock:
            self._deleted.clear()

    def listed(self, versions: Iterable[tuple[Key, str]]) -> None:
        """Expect the watch to have caught up with these resourceVersions soon."""
        with self._lock:
            self._missing = {
                key: int(version)
                for key, version in versions
                if key not in self._deleted and int(version) > self._delivered.get(key, (0, ""))[0]
            }
            self._listed_at = self._clock()

    @property
    def synced(self) -> bool:
        """Whether the watch has delivered all that the last list returned."""
        with self._lock:
            return self._listed_at is not None and not self._missing

    @property
    def stale_seconds(self) -> float:
        """How long the watch has owed something; 0 if nothing."""
        with self._lock:
            return self._clock() - self._listed_at if self._missing and self._listed_at is not None else 0.0

    def known(self) -> list[Key]:
        """Every FineTuneJob the watch knows."""
        with self._lock:
            return list(self._delivered)

    def count_by_phase(self) -> Counter[str]:
        with self._lock:
            return Counter(phase for _, phase in self._delivered.values())


def build_registry(add: Callable[[Key], None], freshness: WatchFreshness) -> kopf.OperatorRegistry:
    """Handlers that put the key of the FineTuneJob on the queue; those of its jobs and pods find it in the label."""
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(kopf.login_via_client)

    async def finetunejob_changed(event: kopf.RawEvent, **_: Any) -> None:
        body = event["object"]
        key = (body["metadata"]["namespace"], body["metadata"]["name"])
        phase = body.get("status", {}).get("phase") or names.Phase.PENDING
        freshness.delivered(key, body["metadata"]["resourceVersion"], phase, event["type"] == "DELETED")
        add(key)

    async def child_changed(event: kopf.RawEvent, **_: Any) -> None:
        metadata = event["object"]["metadata"]
        add((metadata["namespace"], metadata["labels"][names.LABEL_JOB_NAME]))

    owned = {names.LABEL_JOB_NAME: kopf.PRESENT}
    kopf.on.event(*FINETUNEJOBS, registry=registry)(finetunejob_changed)
    kopf.on.event(*JOBS, labels=owned, registry=registry)(child_changed)
    kopf.on.event(*PODS, labels=owned, registry=registry)(child_changed)
    return registry


def build_kopf_settings() -> kopf.OperatorSettings:
    """No writes, no scanning, and bounds on every way in which a watch can fall silent."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True  # no watch of all CRDs and namespaces; main checks that the CRD is there
    # Filtered by the API server, or every pod of the cluster would pass through this process.
    settings.watching.label_selectors[JOBS] = names.LABEL_JOB_NAME
    settings.watching.label_selectors[PODS] = names.LABEL_JOB_NAME
    # A dead connection is silent, but a bookmark comes each minute (from the first event of the kind on, since the API
    # server started): without one, connect again.
    settings.watching.inactivity_timeout = 70.0
    settings.watching.server_timeout = 600
    settings.watching.client_timeout = 660
    settings.watching.connect_timeout = 5
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    # No worker_limit: kopf's workers only pass keys on. They end soon, to be few after a burst of events.
    settings.queueing.idle_timeout = 1.0
    settings.queueing.exit_timeout = 0.5
    return settings


class Watches:
    """kopf in a thread with an event loop of its own, so that it can neither delay nor prevent the process's end."""

    def __init__(self, registry: kopf.OperatorRegistry, namespaces: list[str], on_end: Callable[[], None]) -> None:
        """:param on_end: called from the thread when kopf ended, asked or not."""
        self._registry = registry
        self._namespaces = namespaces
        self._on_end = on_end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self.started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._operate())
        except Exception:
            log.exception("kopf ended")
        finally:
            self._loop = None
            self._on_end()

    async def _operate(self) -> None:
        self._loop = asyncio.get_running_loop()
        await kopf.operator(
            registry=self._registry,
            settings=build_kopf_settings(),
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            stop_flag=self._stop,
            ready_flag=self.started,
        )
