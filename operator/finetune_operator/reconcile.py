"""One pass over one FineTuneJob: gather, decide, do, report."""

from dataclasses import replace

from finetune_api.errors import InvalidFineTuneJob, Problem
from finetune_api.kubernetes import parse_duration
from finetune_api.spec import FineTuneJob
from finetune_operator.cluster.client import Cluster
from finetune_operator.cluster.errors import Forbidden, Invalid, NotFound
from finetune_operator.intent import Intent, decide_intent
from finetune_operator.manifests.build import build_manifests
from finetune_operator.manifests.metadata import Manifest, name_kind
from finetune_operator.observe.gather import decide_children, gather_snapshot
from finetune_operator.observe.progress import ProgressPoller
from finetune_operator.observe.snapshot import Snapshot, find_workload_kind, parse_workload, wrap_policy
from finetune_operator.plan.decide import Decided, decide_plan
from finetune_operator.plan.layout import ContainerLayout
from finetune_operator.plan.price import find_unpriced
from finetune_operator.queue import Key
from finetune_operator.run_state import read_run_state
from finetune_operator.settings import Settings
from finetune_operator.spec.parse import parse_finetunejob
from finetune_operator.status.decide import decide_status
from finetune_operator.status.events import decide_events
from finetune_operator.status.stage import Stage, decide_failure, decide_stage, is_finished
from finetune_operator.telemetry import Telemetry

# Seconds until what stands in the way is looked at again; nothing tells when it is gone.
OBSTACLE_SECONDS = 5.0
REFUSAL_SECONDS = 60.0

UNSERVED = {
    "PyTorchJob": "This cluster serves no PyTorchJobs (kubeflow.org/v1): install Kubeflow's training operator, or use "
    "parallelism.backend: Job.",
    "PodGroup.scheduling.volcano.sh": "This cluster serves no PodGroups of Volcano: install Volcano, or drop "
    "resources.gang.",
    "PodGroup.scheduling.x-k8s.io": "This cluster serves no PodGroups of scheduler-plugins: install its coscheduling, or "
    "drop resources.gang.",
}
"""Kinds that not every cluster has."""


class Reconciler:
    """Level-triggered: a pass needs nothing but the key, and may be cut off anywhere and repeated."""

    def __init__(self, cluster: Cluster, settings: Settings, telemetry: Telemetry) -> None:
        self._cluster = cluster
        self._telemetry = telemetry
        self._settings = settings
        self._layout = ContainerLayout()
        self._progress_seconds = parse_duration(settings.progress_interval)
        self._poller = ProgressPoller(self._progress_seconds)

    def reconcile(self, key: Key) -> float | None:
        """One pass. Returns the seconds after which time alone asks for another; None: only a change does.

        :raises ApiError: a request failed; the pass is to be repeated.
        """
        finetunejob = self._cluster.fetch_finetunejob(*key)
        if finetunejob is None or "deletionTimestamp" in finetunejob["metadata"] or _is_settled(finetunejob):
            return None
        try:
            job = parse_finetunejob(finetunejob)
        except InvalidFineTuneJob as error:
            self._refuse(finetunejob, error.problems)
            return None
        if problems := find_unpriced(job, self._settings):
            self._refuse(finetunejob, problems)
            return None
        decided = decide_plan(job, self._settings, self._layout)
        run = read_run_state(finetunejob)
        manifests = build_manifests(job, decided, self._settings, self._layout, run)
        snapshot = self._gather(finetunejob, decided, manifests)
        intent = (
            Intent()
            if is_finished(snapshot.status) and snapshot.workload is None
            else decide_intent(snapshot, manifests, has_failed=decide_failure(snapshot) is not None)
        )
        applied, refusal = self._carry_out(intent, snapshot)
        if applied is not None:
            snapshot = replace(snapshot, workload=parse_workload(applied))
        stage = decide_stage(snapshot, [], intent.obstacle, refusal)
        self._report(snapshot, stage, job, decided)
        return self._look_again(snapshot, stage, intent, refusal)

    def _gather(self, finetunejob: Manifest, decided: Decided, manifests: list[Manifest]) -> Snapshot:
        port = decided.plan.observability.metrics_port
        kind, children = manifests[-1]["kind"], decide_children(manifests)
        return gather_snapshot(self._cluster, self._poller, finetunejob, kind, children, port)

    def _refuse(self, finetunejob: Manifest, problems: list[Problem]) -> None:
        snapshot = gather_snapshot(self._cluster, self._poller, finetunejob, find_workload_kind(finetunejob), [], 0)
        self._report(snapshot, decide_stage(snapshot, problems, None, None), None, None)

    def _carry_out(self, intent: Intent, snapshot: Snapshot) -> tuple[Manifest | None, str | None]:
        """Returns the Job as it was applied, if it was, and the API server's words when it refused for good."""
        metadata, applied, kind = snapshot.finetunejob["metadata"], None, ""
        try:
            for old in intent.delete:
                self._cluster.delete(
                    old["kind"], metadata["namespace"], old["metadata"]["name"], old["metadata"]["uid"]
                )
            for manifest in intent.apply:
                kind = name_kind(manifest)
                applied = self._cluster.apply(manifest)  # the workload comes last
            if intent.workload_patch and snapshot.workload is not None:
                workload = snapshot.workload
                patch = {"spec": wrap_policy(workload.kind, intent.workload_patch)}
                self._cluster.merge_patch(workload.kind, metadata["namespace"], metadata["name"], patch)
        except (Forbidden, Invalid) as error:
            return None, str(error)
        except NotFound as error:
            if kind in UNSERVED:
                return None, UNSERVED[kind]
            raise error
        return applied, None

    def _report(self, snapshot: Snapshot, stage: Stage, job: FineTuneJob | None, decided: Decided | None) -> None:
        """Events first: a pass that dies in between posts them again, and the API server knows them by their name."""
        status = decide_status(snapshot, stage, job, decided)
        if status == snapshot.status:
            return
        for event in decide_events(stage, snapshot.status, status):
            self._cluster.create_event(snapshot.finetunejob, event.type, event.reason, event.message)
        metadata = snapshot.finetunejob["metadata"]
        self._cluster.replace_status(metadata["namespace"], metadata["name"], metadata["resourceVersion"], status)
        self._telemetry.count_end(snapshot.status.get("phase"), status["phase"])

    def _look_again(self, snapshot: Snapshot, stage: Stage, intent: Intent, refusal: str | None) -> float | None:
        if refusal is not None:
            return REFUSAL_SECONDS
        if intent.obstacle is not None:
            return OBSTACLE_SECONDS
        if snapshot.leader is not None and snapshot.leader.running:
            return float(self._progress_seconds)
        return stage.look_again_seconds


def _is_settled(finetunejob: Manifest) -> bool:
    """Nothing is left to do or to say: the end is written down for this very spec."""
    status = finetunejob.get("status") or {}
    return is_finished(status) and status.get("observedGeneration") == finetunejob["metadata"]["generation"]
