"""CustomResourceDefinitions from files."""

from pathlib import Path

import yaml

from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.waiting import wait_until


def install_definition(control_plane: ControlPlane, file: Path) -> None:
    """Applies a file with one definition, and waits until its kind is served."""
    control_plane.kubectl("apply", "--server-side", "--filename", str(file))
    wait_for_definition(control_plane, yaml.safe_load(file.read_text())["metadata"]["name"])


def wait_for_definition(control_plane: ControlPlane, name: str) -> None:
    """Until the API server serves the kind of the definition of this name."""
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"

    def is_served() -> bool:
        # For a moment it has no conditions, which `kubectl wait` takes for an error.
        conditions = control_plane.api.get(path).get("status", {}).get("conditions") or ()
        return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)

    wait_until(is_served, f"{name} established", 60)
