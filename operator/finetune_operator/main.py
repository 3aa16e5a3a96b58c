"""The operator process: watches, queue, leader election, health and reconciler wired together, and a graceful end."""

import argparse
import json
import logging
import random
import signal
import socket
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from finetune_operator.cluster.client import Cluster
from finetune_operator.cluster.errors import ApiError, NotLeader
from finetune_operator.cluster.lease import ClusterLease, LeaderElector
from finetune_operator.cluster.transport import Transport, load_client
from finetune_operator.health import HealthServer, find_faults
from finetune_operator.queue import Key, ReconcileQueue
from finetune_operator.reconcile import Reconciler
from finetune_operator.settings import Settings, load_settings
from finetune_operator.telemetry import Telemetry
from finetune_operator.watch import Watches, WatchFreshness, build_registry

log = logging.getLogger(__name__)

ENDING = {signal.SIGTERM, signal.SIGINT}
# Below the 30 s that a pod gets to end by default, with time left to release the Lease.
GRACE_SECONDS = 20.0


class Operator:
    """One replica. :meth:`run` returns the exit code."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._telemetry = Telemetry()
        self._ended = threading.Event()
        # One connection a worker, one for the elector, one for the resync.
        transport = Transport(
            load_client(settings.workers + 2), self._telemetry, f"finetune-operator/{version('finetune-operator')}"
        )
        self._elector = LeaderElector(
            ClusterLease(transport, settings.lease_namespace, settings.lease_name),
            identity=f"{socket.gethostname()}_{uuid.uuid4()}",
            on_started_leading=self._enqueue_all,
        )
        self._cluster = Cluster(transport, self._elector.seconds_to_write)
        reconcile = measure(Reconciler(self._cluster, settings, self._telemetry).reconcile, self._telemetry)
        self._queue = ReconcileQueue(reconcile, settings.workers, may_work=self._elector.is_leader)
        self._freshness = WatchFreshness()
        registry = build_registry(self._queue.add, self._freshness)
        self._watches = Watches(registry, list(settings.namespaces), on_end=self._ended.set)
        self._health = HealthServer(settings.health_port, self.check_health, self.check_ready, self._telemetry.registry)
        self._telemetry.observe_queue(lambda: self._queue.depth)
        self._telemetry.observe_leadership(self._elector.is_leader)
        self._telemetry.observe_jobs(self._count_by_phase)

    def run(self) -> int:
        """Run until SIGTERM or SIGINT (0), or until the watches end by themselves (1)."""
        # Waited for instead of handled, and so blocked before any thread exists: a handler could interrupt a held lock.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        self._health.start()
        try:
            self._compare_watch_with_list()
        except ApiError as error:  # kopf would watch nothing and not say so
            log.error("FineTuneJobs can't be listed, is the CustomResourceDefinition installed? %s", error)
            return 1
        self._queue.start()
        self._watches.start()
        self._elector.start()
        threading.Thread(target=self._resync, name="resync", daemon=True).start()
        log.info("started; health at port %d", self._health.port)
        code = 1
        while code and not self._ended.is_set():
            if signal.sigtimedwait(ENDING, 1.0):
                code = 0
        self._shut_down()
        return code

    def check_health(self) -> list[str]:
        """Why the process should be restarted."""
        return find_faults(
            watch_owes=self._freshness.stale_seconds,
            watch_may_owe=self._settings.watch_stale_seconds,
            key_waits=self._queue.oldest_wait_seconds,
            pass_runs=self._queue.longest_run_seconds,
            lease_rests=self._elector.stalled_seconds(),
        )

    def check_ready(self) -> list[str]:
        """Why the process does not yet know all FineTuneJobs."""
        ready = self._watches.started.is_set() and self._freshness.synced
        return [] if ready else ["watch: not all FineTuneJobs delivered yet"]

    def _shut_down(self) -> None:
        """Finish the running passes while still leading, then let the next leader in."""
        log.info("stopping")
        self._ended.set()
        if not self._queue.stop(GRACE_SECONDS):
            log.warning("a pass still runs after %.0f s; the next leader repeats it", GRACE_SECONDS)
        self._elector.stop()
        self._watches.stop()
        self._health.stop()
        log.info("stopped")

    def _enqueue_all(self) -> None:
        """What is known is due once for a new leader: the one before may have died in the middle of anything."""
        for key in self._freshness.known():
            self._queue.add(key)
        self._queue.wake()

    def _count_by_phase(self) -> Counter[str]:
        return self._freshness.count_by_phase() if self._elector.is_leader() else Counter()

    def _resync(self) -> None:
        while not self._ended.wait(self._settings.resync_seconds * random.uniform(0.9, 1.1)):
            try:
                keys = self._compare_watch_with_list()
            except ApiError as error:
                log.warning("resync: %s", error)
                continue
            for key in keys:
                self._queue.add(key)

    def _compare_watch_with_list(self) -> list[Key]:
        self._freshness.begin_list()
        listed: list[tuple[Key, str]] = []
        scopes: list[str] | list[None] = list(self._settings.namespaces) or [None]
        for namespace in scopes:
            for metadata in self._cluster.list_finetunejob_metadata(namespace):
                listed.append(((metadata["namespace"], metadata["name"]), metadata["resourceVersion"]))
        self._freshness.listed(listed)
        return [key for key, _ in listed]


def measure(reconcile: Callable[[Key], float | None], telemetry: Telemetry) -> Callable[[Key], float | None]:
    """``reconcile`` with its duration and result counted and its errors logged."""

    def measured(key: Key) -> float | None:
        started = time.monotonic()
        result = "error"
        try:
            requeue_after = reconcile(key)
            result = "done" if requeue_after is None else "requeue"
            return requeue_after
        except (ApiError, NotLeader) as error:  # the cluster's state, not a bug: no traceback
            telemetry.reconcile_errors.inc()
            log.warning("%s/%s: %s: %s", *key, type(error).__name__, error)
            raise
        except Exception:
            telemetry.reconcile_errors.inc()
            log.exception("%s/%s", *key)
            raise
        finally:
            telemetry.reconcile_seconds.labels(result=result).observe(time.monotonic() - started)

    return measured


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(log_format: str, level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if log_format == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # kopf logs each event it passes on and that it gets no signals (this module waits for them), urllib3 each request.
    for name, least in {"kopf": "WARNING", "kopf._core.reactor.running": "ERROR", "urllib3": "WARNING"}.items():
        logging.getLogger(name).setLevel(least)


def main() -> None:
    """Entry point of ``finetune-operator``."""
    parser = argparse.ArgumentParser(prog="finetune-operator", description="Turns FineTuneJobs into running training.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of operator settings")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--version", action="version", version=version("finetune-operator"))
    arguments = parser.parse_args()
    settings = load_settings(arguments.config)
    configure_logging(settings.log_format, arguments.log_level)
    sys.exit(Operator(settings).run())


if __name__ == "__main__":
    main()
