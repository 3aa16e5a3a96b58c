"""Binds every PersistentVolumeClaim to a folder of this machine, as a cluster's storage provisioner would."""

import shutil
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cluster.harness.api import Api, Object


class Provisioner:
    """Makes a hostPath PersistentVolume for each pending claim, of whatever storage class, with or without one.

    The folder is kept as long as the claim. Kubernetes' own controller does the binding.
    """

    def __init__(self, api: Api, folder: Path) -> None:
        self._api, self._folder = api, folder
        self._watch = api.watch("/api/v1/persistentvolumeclaims")
        self._thread = threading.Thread(target=self._follow, name="provisioner", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.stop()
        self._thread.join()

    def is_due(self, claim: Object) -> bool:
        """Whether this pending claim gets its volume now."""
        return True

    def build_volume(self, claim: Object, name: str, folder: Path) -> Object:
        """The claim's PersistentVolume."""
        return build_volume(claim, name, {"hostPath": {"path": str(folder)}})

    def _follow(self) -> None:
        done: set[str] = set()
        for event, claim in self._watch:
            name = f"pvc-{claim['metadata']['uid']}"
            if event == "DELETED":
                if name in done:
                    shutil.rmtree(self._folder / name, ignore_errors=True)
                    self._api.delete(f"/api/v1/persistentvolumes/{name}")
            elif name not in done and claim["status"]["phase"] == "Pending" and self.is_due(claim):
                done.add(name)
                (self._folder / name).mkdir(parents=True)
                self._api.post("/api/v1/persistentvolumes", self.build_volume(claim, name, self._folder / name))


def build_volume(claim: Object, name: str, source: Object) -> Object:
    """A PersistentVolume for this claim alone, whose volume is `source`."""
    spec, metadata = claim["spec"], claim["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "accessModes": spec["accessModes"],
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "claimRef": {"namespace": metadata["namespace"], "name": metadata["name"], "uid": metadata["uid"]},
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": spec.get("storageClassName", ""),
            "volumeMode": spec.get("volumeMode", "Filesystem"),
        }
        | source,
    }
