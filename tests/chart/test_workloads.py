"""What the operator renders of a job, for each provider, fabric and backend: valid to the API server's schemas, and taken by it."""

from pathlib import Path

import pytest
import yaml

from tests.chart.test_render import check
from tests.cluster.harness.control_plane import ControlPlane
from tests.golden.test_golden import JOBS, build


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_manifests_are_valid_and_accepted(path: Path, cluster: ControlPlane, schemas: Path, namespace: str) -> None:
    manifests = build(path)
    text = yaml.safe_dump_all(manifests)
    printed = check(text, schemas)
    assert f"{len(manifests)} resources found" in printed
    assert f"Valid: {len(manifests)}, Invalid: 0, Errors: 0, Skipped: 0" in printed
    for manifest in manifests:
        manifest["metadata"]["namespace"] = namespace
    # Server-side, as the operator applies them.
    options = ("--server-side", "--dry-run=server", "--field-manager=finetune-operator", "--filename", "-")
    accepted = cluster.kubectl("apply", *options, namespace=namespace, stdin=yaml.safe_dump_all(manifests))
    assert accepted.count("serverside-applied (server dry run)") == len(manifests)
