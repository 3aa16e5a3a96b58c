"""What the operator's ServiceAccounts did, by the audit logs of all control planes of this process; what RBAC lets them do."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.cluster.harness.api import Object

ACCOUNT = "finetune-operator"

ended: "Counter[Right]" = Counter()
"""Used in control planes that have ended."""


class Right(NamedTuple):
    """A verb on a resource (with its subresource, if any) of an API group."""

    verb: str
    group: str
    resource: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{self.group and '.' + self.group}"


def count_used(audit_log: Path) -> Counter[Right]:
    """How often each right was used by a ServiceAccount of the operator's name, in whatever namespace."""
    used: Counter[Right] = Counter()
    with audit_log.open() as file:
        for text in file:
            if f":{ACCOUNT}" not in text:
                continue
            line = json.loads(text)
            user, reference = line["user"]["username"], line.get("objectRef", {})
            if line["stage"] == "ResponseStarted" or not user.endswith(f":{ACCOUNT}") or "resource" not in reference:
                continue  # a watch has a second line; /version and discovery are everybody's
            resource = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
            right = Right(line["verb"], reference.get("apiGroup", ""), resource)
            used[right] += 1
            if right.verb == "patch" and line["responseStatus"].get("code") == 201:
                used[right._replace(verb="create")] += 1  # a server-side apply that creates needs both
    return used


def list_granted(objects: Iterable[Object]) -> set[Right]:
    """What the Roles and ClusterRoles that are bound to the operator's ServiceAccount grant."""
    objects = list(objects)
    bindings = [each for each in objects if each["kind"] in ("RoleBinding", "ClusterRoleBinding")]
    bound = {
        each["roleRef"]["name"] for each in bindings if any(s["name"] == ACCOUNT for s in each.get("subjects", ()))
    }
    return {
        Right(verb, group, resource)
        for role in objects
        if role["kind"] in ("Role", "ClusterRole") and role["metadata"]["name"] in bound
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
