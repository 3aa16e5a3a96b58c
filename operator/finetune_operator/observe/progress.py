"""Asks running trainers how far they are."""

import threading
import time
import urllib.request
from collections.abc import Callable

from pydantic import ValidationError

from finetune_api.progress import Progress

TIMEOUT_SECONDS = 2.0
MAX_BYTES = 65536
AT_ONCE = 8


class ProgressPoller:
    """Reads ``/progress`` of each pod at most once an interval, and of at most ``AT_ONCE`` pods at a time.

    A trainer that doesn't answer costs ``TIMEOUT_SECONDS`` and is asked again an interval later.
    """

    def __init__(self, interval_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval_seconds
        self._clock = clock
        self._slots = threading.BoundedSemaphore(AT_ONCE)
        self._lock = threading.Lock()
        self._asked: dict[str, float] = {}
        # The pod's own address: no proxy of the operator's environment may come between.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def poll(self, pod: str, ip: str, port: int) -> Progress | None:
        """News of the pod (named by namespace and name), or None: not due, or no answer. The first is due an interval
        after the pod was first seen."""
        now = self._clock()
        with self._lock:
            if now - self._asked.setdefault(pod, now) < self._interval:
                return None
            self._asked[pod] = now
        if not self._slots.acquire(blocking=False):
            return None
        try:
            with self._opener.open(f"http://{ip}:{port}/progress", timeout=TIMEOUT_SECONDS) as response:
                return Progress.model_validate_json(response.read(MAX_BYTES))
        except (OSError, ValidationError):
            return None
        finally:
            self._slots.release()

    def forget(self, pod: str) -> None:
        """The pod has ended."""
        with self._lock:
            self._asked.pop(pod, None)
