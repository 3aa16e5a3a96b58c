"""What the operator asks of the API server, one method a request. Manifests go in and come out as plain dicts."""

import hashlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from finetune_api import names
from finetune_operator.cluster.errors import AlreadyExists, NotFound, NotLeader
from finetune_operator.cluster.transport import READ_TIMEOUT_SECONDS, Manifest, Transport
from finetune_operator.manifests.metadata import name_kind

log = logging.getLogger(__name__)

APPLY = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
PAGE_SIZE = 500
POSTED_EVENTS_KEPT = 10_000


class Resource(NamedTuple):
    """Where the objects of a kind live: ``{api}/namespaces/{namespace}/{plural}/{name}``."""

    api: str
    plural: str


RESOURCES = {
    "ConfigMap": Resource("/api/v1", "configmaps"),
    "Event": Resource("/api/v1", "events"),
    "PersistentVolumeClaim": Resource("/api/v1", "persistentvolumeclaims"),
    "Pod": Resource("/api/v1", "pods"),
    "Service": Resource("/api/v1", "services"),
    "Job": Resource("/apis/batch/v1", "jobs"),
    "PyTorchJob": Resource(f"/apis/{names.PYTORCHJOB_API_VERSION}", "pytorchjobs"),
    "PodGroup.scheduling.volcano.sh": Resource("/apis/scheduling.volcano.sh/v1beta1", "podgroups"),
    "PodGroup.scheduling.x-k8s.io": Resource("/apis/scheduling.x-k8s.io/v1alpha1", "podgroups"),
    names.KIND: Resource(f"/apis/{names.API_VERSION}", names.PLURAL),
}


class Cluster:
    """Requests for the namespaced kinds of :data:`RESOURCES`.

    Reads are always allowed; writes raise NotLeader unless ``seconds_to_write`` (the elector's) leaves time, and give
    up before another process can hold the Lease. All methods raise ApiError and are safe to call from many threads.
    """

    def __init__(self, transport: Transport, seconds_to_write: Callable[[], float]) -> None:
        self._transport = transport
        self._seconds_to_write = seconds_to_write
        self._posted_events: set[str] = set()

    def fetch(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object, or None if there is none."""
        try:
            return self._transport.request("get", RESOURCES[kind].plural, _path(kind, namespace, name))
        except NotFound:
            return None

    def fetch_finetunejob(self, namespace: str, name: str) -> Manifest | None:
        return self.fetch(names.KIND, namespace, name)

    def list_pods(self, namespace: str, job_name: str) -> list[Manifest]:
        """The pods labelled as belonging to the FineTuneJob ``job_name``, whoever made them."""
        query = {"labelSelector": f"{names.LABEL_JOB_NAME}={job_name}"}
        pods: list[Manifest] = self._transport.request("list", "pods", _path("Pod", namespace), query=query)["items"]
        return pods

    def list_warnings(self, namespace: str, uid: str, reason: str) -> list[Manifest]:
        """The Events of this reason about the object with this uid, whoever posted them."""
        query = {"fieldSelector": f"involvedObject.uid={uid},reason={reason}"}
        events: list[Manifest] = self._transport.request("list", "events", _path("Event", namespace), query=query)[
            "items"
        ]
        return events

    def list_finetunejob_metadata(self, namespace: str | None) -> list[Manifest]:
        """``metadata`` of every FineTuneJob of the namespace (None: of all), without spec and status.

        :raises NotFound: the CRD is not installed.
        """
        found: list[Manifest] = []
        query = {"limit": str(PAGE_SIZE)}
        while True:
            page = self._transport.request(
                "list", names.PLURAL, _path(names.KIND, namespace), query=query, accept=METADATA_ONLY
            )
            found += [item["metadata"] for item in page["items"] or []]  # null when there are none
            following = page["metadata"].get("continue")
            if not following:
                return found
            query["continue"] = following

    def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply under the operator's field manager, taking over fields that others set."""
        kind, metadata = name_kind(manifest), manifest["metadata"]
        query = {"fieldManager": names.FIELD_MANAGER, "force": "true"}
        path = _path(kind, metadata["namespace"], metadata["name"])
        return self._write("patch", RESOURCES[kind].plural, path, manifest, query=query, content_type=APPLY)

    def merge_patch(self, kind: str, namespace: str, name: str, patch: Manifest) -> Manifest:
        """JSON merge patch. With ``metadata.resourceVersion`` in it, Conflict if the object changed since."""
        query = {"fieldManager": names.FIELD_MANAGER}
        path = _path(kind, namespace, name)
        return self._write("patch", RESOURCES[kind].plural, path, patch, query=query, content_type=MERGE_PATCH)

    def replace_status(self, namespace: str, name: str, resource_version: str, status: Manifest) -> Manifest:
        """Make ``status`` the FineTuneJob's whole status, in one request.

        An update, not a patch: what ``status`` leaves out is gone. The API server ignores everything but the status
        here, so neither spec nor metadata need to be sent.

        :raises Conflict: the object is not the one that was decided on any more.
        """
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"namespace": namespace, "name": name, "resourceVersion": resource_version},
            "status": status,
        }
        query = {"fieldManager": names.FIELD_MANAGER}
        path = f"{_path(names.KIND, namespace, name)}/status"
        return self._write("update", f"{names.PLURAL}/status", path, body, query=query)

    def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Delete exactly the object with this uid, its dependents in the background; nothing if it is gone.

        :raises Conflict: another object bears the name now.
        """
        body = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            self._write("delete", RESOURCES[kind].plural, _path(kind, namespace, name), body)
        except NotFound:
            return

    def create_event(self, about: Manifest, type_: str, reason: str, message: str) -> None:
        """Post an Event (``type_`` Normal or Warning) about an object, once for each generation, reason and message.

        Its name is derived from these, so that a process that died after posting does not post again.
        """
        metadata = about["metadata"]
        identity = (metadata["uid"], str(metadata["generation"]), reason, message)
        digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:16]
        name = f"{metadata['name'][:200]}.{digest}"
        if name in self._posted_events:
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": metadata["namespace"], "name": name},
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "type": type_,
            "reason": reason,
            "message": message[:1024],  # what an events.k8s.io/v1 note may hold
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": names.FIELD_MANAGER},
            "reportingComponent": names.FIELD_MANAGER,
        }
        try:
            self._write("create", "events", _path("Event", metadata["namespace"]), event)
        except AlreadyExists:
            log.debug("event %s was posted before", name)
        if len(self._posted_events) >= POSTED_EVENTS_KEPT:
            self._posted_events.clear()  # costs an AlreadyExists each at worst
        self._posted_events.add(name)

    def _write(self, verb: str, resource: str, path: str, body: Manifest, **options: Any) -> Manifest:
        seconds = self._seconds_to_write()
        if seconds <= 0:
            raise NotLeader(f"{verb} {path}")
        timeout = min(READ_TIMEOUT_SECONDS, seconds)
        return self._transport.request(verb, resource, path, body, timeout=timeout, **options)


def _path(kind: str, namespace: str | None, name: str | None = None) -> str:
    resource = RESOURCES[kind]
    scope = "" if namespace is None else f"/namespaces/{namespace}"
    return f"{resource.api}{scope}/{resource.plural}" + ("" if name is None else f"/{name}")
