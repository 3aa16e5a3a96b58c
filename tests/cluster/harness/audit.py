"""What the API server was asked, read from its audit log.

The log has every request at metadata level, and the bodies of writes to the kinds named in POLICY.
"""

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITE_VERBS = frozenset({"create", "update", "patch", "delete", "deletecollection"})
_MARK_URI = "/version?mark="

POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitManagedFields": True,
    "omitStages": ["RequestReceived"],
    "rules": [
        {
            "level": "RequestResponse",
            "verbs": sorted(WRITE_VERBS),
            "resources": [
                {"group": "finetune.dev"},
                {"group": "batch"},
                {"group": "coordination.k8s.io"},
                {"group": "events.k8s.io"},
                {"group": "", "resources": ["configmaps", "persistentvolumeclaims", "events"]},
            ],
        },
        {"level": "Metadata"},
    ],
}


@dataclass(frozen=True)
class Request:
    """One request: `code` is the HTTP status, `body` the request's object (writes of POLICY's kinds only)."""

    verb: str
    user: str
    group: str
    resource: str
    subresource: str
    namespace: str
    name: str
    code: int
    body: Any
    time: str
    user_agent: str

    @property
    def is_write(self) -> bool:
        return self.verb in WRITE_VERBS

    def __str__(self) -> str:
        resource = "/".join(filter(None, (self.group, self.resource, self.subresource)))
        return f"{self.verb} {resource} {self.namespace}/{self.name} -> {self.code}"


@dataclass(frozen=True)
class Mark:
    """A moment in the audit log."""

    offset: int


class AuditLog:
    """Requests between two moments, each counted once.

    `get` makes a GET request: a mark is where such a request shows in the log.
    """

    def __init__(self, path: Path, get: Callable[[str], object]) -> None:
        self.path, self._get = path, get

    def mark(self) -> Mark:
        """The moment of this call: whatever was answered before it lies before the mark."""
        uri = _MARK_URI + uuid.uuid4().hex
        start = self.path.stat().st_size
        self._get(uri)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for line, end in self._lines(start):
                if line["requestURI"] == uri:
                    return Mark(end)
            time.sleep(0.02)
        raise TimeoutError(f"the audit log {self.path} did not show the request that marks the moment")

    def requests(
        self,
        since: Mark,
        until: Mark | None = None,
        *,
        user: str | None = None,
        verbs: frozenset[str] | set[str] | None = None,
        resource: str | None = None,
        namespace: str | None = None,
        name: str | None = None,
    ) -> list[Request]:
        """The requests between two marks (until now without `until`) that fit all that is given, in the order they were done.

        A watch is listed when it starts. `user` is a full name: see `service_account_user`.
        """
        wanted = {"user": user, "resource": resource, "namespace": namespace, "name": name}
        seen: set[str] = set()
        found = []
        for line, _ in self._lines(since.offset, (until or self.mark()).offset):
            # A watch has two lines, its start and its end; marks are not the business of any test.
            if line["auditID"] in seen or line["requestURI"].startswith(_MARK_URI):
                continue
            seen.add(line["auditID"])
            request = _parse_request(line)
            fits = all(value in (None, getattr(request, field)) for field, value in wanted.items())
            # A watch that only ended in this span started (and was counted) before it.
            ended_watch = request.verb == "watch" and line["stage"] != "ResponseStarted"
            if fits and not ended_watch and (verbs is None or request.verb in verbs):
                found.append(request)
        return found

    def writes(self, since: Mark, until: Mark | None = None, **filters: Any) -> list[Request]:
        """The create, update, patch and delete requests among `requests`."""
        return self.requests(since, until, verbs=WRITE_VERBS, **filters)

    def count(self, since: Mark, until: Mark | None = None, **filters: Any) -> Counter[tuple[str, str]]:
        """How many requests of each (verb, resource or resource/subresource)."""
        return Counter(
            (request.verb, "/".join(filter(None, (request.resource, request.subresource))))
            for request in self.requests(since, until, **filters)
        )

    def _lines(self, start: int, end: int | None = None) -> list[tuple[dict[str, Any], int]]:
        """The complete lines of a span of bytes, each with the offset after it."""
        with self.path.open("rb") as file:
            file.seek(start)
            data = file.read() if end is None else file.read(end - start)
        lines, offset = [], start
        for raw in data.splitlines(keepends=True):
            offset += len(raw)
            if raw.endswith(b"\n"):
                lines.append((json.loads(raw), offset))
        return lines


def service_account_user(namespace: str, name: str) -> str:
    """The user name of a ServiceAccount in the audit log."""
    return f"system:serviceaccount:{namespace}:{name}"


def _parse_request(line: dict[str, Any]) -> Request:
    ref = line.get("objectRef", {})
    return Request(
        verb=line["verb"],
        user=line["user"]["username"],
        group=ref.get("apiGroup", ""),
        resource=ref.get("resource", ""),
        subresource=ref.get("subresource", ""),
        namespace=ref.get("namespace", ""),
        name=ref.get("name", ""),
        code=line.get("responseStatus", {}).get("code", 0),
        body=line.get("requestObject"),
        time=line["requestReceivedTimestamp"],
        user_agent=line.get("userAgent", ""),
    )
