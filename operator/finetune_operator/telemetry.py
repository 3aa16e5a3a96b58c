"""The operator's own Prometheus metrics; the trainer's are in ``finetune_api.metrics``."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_api.names import Phase

PREFIX = "finetune_operator"
_ENDS = (Phase.SUCCEEDED, Phase.FAILED)


class Telemetry:
    """Every metric of one operator process, in a registry of its own (tests make several)."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.reconcile_seconds = Histogram(
            f"{PREFIX}_reconcile_duration_seconds",
            "Duration of one reconcile pass by its result: done, requeue or error.",
            ["result"],
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self.reconcile_errors = Counter(
            f"{PREFIX}_reconcile_errors", "Reconcile passes that raised.", registry=self.registry
        )
        self.api_requests = Counter(
            f"{PREFIX}_api_requests",
            "Requests to the API server without kopf's watches; code is the HTTP status, 'none' without an answer.",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        self._jobs_finished = Counter(
            f"{PREFIX}_jobs_finished",
            "FineTuneJobs that this process saw end, by the phase they ended in.",
            ["phase"],
            registry=self.registry,
        )
        for phase in _ENDS:  # from 0 on, or nobody sees the first increase
            self._jobs_finished.labels(phase=phase)
        self._queue_depth = Gauge(f"{PREFIX}_queue_depth", "Keys due and not yet taken.", registry=self.registry)
        self._leader = Gauge(f"{PREFIX}_leader", "1 while this process holds the Lease.", registry=self.registry)

    def count_end(self, before: str | None, phase: str) -> None:
        """Counts a job that has entered its last phase; does nothing otherwise."""
        if phase in _ENDS and phase != before:
            self._jobs_finished.labels(phase=phase).inc()

    def observe_queue(self, depth: Callable[[], int]) -> None:
        self._queue_depth.set_function(depth)

    def observe_leadership(self, is_leader: Callable[[], bool]) -> None:
        self._leader.set_function(lambda: float(is_leader()))

    def observe_jobs(self, count_by_phase: Callable[[], Mapping[str, int]]) -> None:
        self.registry.register(_JobsByPhase(count_by_phase))


class _JobsByPhase(Collector):
    """Counted at scrape time, so that a phase nobody is in any more does not linger."""

    def __init__(self, count_by_phase: Callable[[], Mapping[str, int]]) -> None:
        self._count_by_phase = count_by_phase

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(f"{PREFIX}_jobs", "FineTuneJobs by phase, told by the leader.", labels=["phase"])
        for phase, count in self._count_by_phase().items():
            family.add_metric([phase], count)
        yield family
