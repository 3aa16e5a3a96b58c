"""Keyed, level-triggered work queue: a key says *that* something changed, never *what*.

Semantics follow client-go's workqueue: a key waits at most once, is worked on by at most one worker, and is worked on
again if it was added meanwhile. A failing key is retried with exponential backoff and full jitter.
"""

import heapq
import logging
import random
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""(namespace, name) of a FineTuneJob."""

BACKOFF_BASE_SECONDS = 0.5
BACKOFF_MAX_SECONDS = 300.0
ASK_AGAIN_SECONDS = 1.0


class Backlog:
    """Which key is due, and when: the queue's bookkeeping without threads or a clock (times are passed in, seconds).

    One timer a key, and taking a key clears it: the pass that follows decides anew. Otherwise each event during a
    requeue wait would start one more endless chain of timers.
    """

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self._ready: dict[Key, float] = {}  # in order of arrival -> since when it waits
        self._running: dict[Key, float] = {}  # -> since when it runs
        self._dirty: dict[Key, float] = {}  # added while running -> when
        self._timers: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []  # may hold superseded entries; _timers is the truth
        self._failures: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._ready)

    def add(self, key: Key, now: float) -> None:
        """Make the key due, at once or as soon as its running pass ends."""
        (self._dirty if key in self._running else self._ready).setdefault(key, now)

    def add_after(self, key: Key, seconds: float, now: float) -> None:
        """Make the key due in ``seconds``; an earlier timer of the key wins."""
        when = now + seconds
        if when < self._timers.get(key, float("inf")):
            self._timers[key] = when
            heapq.heappush(self._heap, (when, key))

    def take(self, now: float) -> Key | None:
        """The key that has waited longest, now running; None if nothing is due."""
        self._ring(now)
        if not self._ready:
            return None
        key = next(iter(self._ready))
        del self._ready[key]
        self._timers.pop(key, None)
        self._running[key] = now
        return key

    def finish(self, key: Key, requeue_after: float | None, now: float) -> None:
        """End a pass that succeeded."""
        self._failures.pop(key, None)
        self._end(key, requeue_after, now)

    def fail(self, key: Key, now: float) -> float:
        """End a pass that raised; returns the seconds until the retry, in [0, min(300, 0.5 * 2**failures)]."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = self._uniform(0.0, min(BACKOFF_MAX_SECONDS, BACKOFF_BASE_SECONDS * 2 ** min(failures, 10)))
        self._end(key, delay, now)
        return delay

    def next_timer(self) -> float | None:
        """When the earliest timer rings."""
        while self._heap and self._timers.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def oldest_ready(self) -> float | None:
        """Since when the oldest due key has waited."""
        return min(self._ready.values(), default=None)

    def oldest_running(self) -> float | None:
        """Since when the longest pass runs."""
        return min(self._running.values(), default=None)

    @property
    def running(self) -> int:
        return len(self._running)

    def _end(self, key: Key, requeue_after: float | None, now: float) -> None:
        del self._running[key]
        added = self._dirty.pop(key, None)
        if added is not None:
            self._ready[key] = added
        if requeue_after is not None:
            self.add_after(key, requeue_after, now)

    def _ring(self, now: float) -> None:
        when = self.next_timer()
        while when is not None and when <= now:
            _, key = heapq.heappop(self._heap)
            del self._timers[key]
            self.add(key, when)
            when = self.next_timer()


class ReconcileQueue:
    """Worker threads over a :class:`Backlog`.

    ``reconcile`` returns the seconds until the key is due again, or None. ``may_work`` is asked before each key (it is
    the leader's check); while it says no, keys are kept. :meth:`wake` spares the second until it is asked again.
    """

    def __init__(
        self,
        reconcile: Callable[[Key], float | None],
        workers: int = 16,
        may_work: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._reconcile = reconcile
        self._may_work = may_work
        self._clock = clock
        self._backlog = Backlog(uniform)
        self._changed = threading.Condition()
        self._stopping = False
        self._woken = clock()
        self._threads = [
            threading.Thread(target=self._work, name=f"reconcile-{index}", daemon=True) for index in range(workers)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, grace_seconds: float) -> bool:
        """Take no more keys and wait for the running passes; False if one still runs after the grace."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._backlog.running == 0, grace_seconds)

    def add(self, key: Key) -> None:
        """Make the key due now."""
        with self._changed:
            self._backlog.add(key, self._clock())
            self._changed.notify()

    def add_after(self, key: Key, seconds: float) -> None:
        """Make the key due in ``seconds``."""
        with self._changed:
            self._backlog.add_after(key, seconds, self._clock())
            self._changed.notify()

    def wake(self) -> None:
        """Look again whether work is allowed; the wait of the kept keys counts from now."""
        with self._changed:
            self._woken = self._clock()
            self._changed.notify_all()

    @property
    def depth(self) -> int:
        """Keys that are due and not yet taken."""
        with self._changed:
            return len(self._backlog)

    @property
    def oldest_wait_seconds(self) -> float:
        """How long the oldest due key has waited while work was allowed."""
        with self._changed:
            since = self._backlog.oldest_ready()
            return 0.0 if since is None or not self._may_work() else self._clock() - max(since, self._woken)

    @property
    def longest_run_seconds(self) -> float:
        with self._changed:
            since = self._backlog.oldest_running()
            return 0.0 if since is None else self._clock() - since

    def _work(self) -> None:
        while (key := self._next()) is not None:
            try:
                requeue_after = self._reconcile(key)
            except Exception as error:  # ``reconcile`` tells what happened; the queue only tries again
                with self._changed:
                    delay = self._backlog.fail(key, self._clock())
                log.info("%s/%s again in %.1f s after %s", *key, delay, type(error).__name__)
            else:
                with self._changed:
                    self._backlog.finish(key, requeue_after, self._clock())

    def _next(self) -> Key | None:
        with self._changed:
            while not self._stopping:
                allowed = self._may_work()
                if allowed and (key := self._backlog.take(self._clock())) is not None:
                    # Hand the watch over what is left, timers too, to one that idles: this worker is gone for a while.
                    self._changed.notify()
                    return key
                when = self._backlog.next_timer() if allowed else self._clock() + ASK_AGAIN_SECONDS
                self._changed.wait(None if when is None else max(0.0, when - self._clock()))
            self._changed.notify_all()  # stop() waits for the last one
            return None
