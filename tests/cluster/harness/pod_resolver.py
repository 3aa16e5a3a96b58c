"""What a container's spec refers to, resolved as a kubelet does: environment variables and volumes."""

import base64
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from kubernetes.client import ApiException

from tests.cluster.harness.api import Api, Object

_SIZES = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class ContainerConfigError(Exception):
    """Something that the container refers to is not there (yet); a kubelet waits for it."""


class PodResolver:
    """Resolves the references of one pod. Its volumes are filled once, into `folder`; a real kubelet updates them.

    Not supported: resourceFieldRef, subPathExpr, csi and other volume types than those in `_fill`.
    """

    def __init__(self, api: Api, pod: Object, pod_ip: str, folder: Path) -> None:
        self._api, self._pod, self._folder = api, pod, folder
        self._base = f"/api/v1/namespaces/{pod['metadata']['namespace']}"
        self._pod_ip = pod_ip

    def resolve_environment(self, container: Object, image: dict[str, str]) -> dict[str, str]:
        """Name to value; `image` is what the image itself sets."""
        server = urlparse(self._api.client.configuration.host)
        env = image | {"KUBERNETES_SERVICE_HOST": str(server.hostname), "KUBERNETES_SERVICE_PORT": str(server.port)}
        for source in container.get("envFrom", ()):
            kind = "configMapRef" if "configMapRef" in source else "secretRef"
            content = self._fetch_content(kind.removesuffix("Ref"), source[kind])
            env |= {source.get("prefix", "") + key: value.decode() for key, value in content.items()}
        for variable in container.get("env", ()):
            if "valueFrom" not in variable:
                env[variable["name"]] = expand(variable.get("value", ""), env)
            elif (value := self._resolve_value(variable["valueFrom"])) is not None:
                env[variable["name"]] = value
        return env

    def resolve_mounts(self, container: Object) -> list[Object]:
        """The container's volumeMounts as mounts of sandbox.py."""
        volumes = {volume["name"]: volume for volume in self._pod["spec"].get("volumes", ())}
        mounts = []
        for mount in container.get("volumeMounts", ()):
            volume = volumes[mount["name"]]
            entry = {"target": mount["mountPath"].rstrip("/"), "read_only": mount.get("readOnly", False)}
            if volume.get("emptyDir", {}).get("medium") == "Memory":
                # A tmpfs of this container's own: two containers of a pod don't share it here.
                mounts.append(entry | {"tmpfs_bytes": parse_bytes(volume["emptyDir"].get("sizeLimit", "0"))})
                continue
            source = self._fill(volume)
            if sub_path := mount.get("subPath"):
                source = source / sub_path
                if not source.exists():
                    source.mkdir(parents=True)
            mounts.append(entry | {"source": str(source)})
        return mounts

    def _resolve_value(self, source: Object) -> str | None:
        if "fieldRef" in source:
            return self._resolve_field(source["fieldRef"]["fieldPath"])
        kind = next((kind for kind in ("secretKeyRef", "configMapKeyRef") if kind in source), None)
        if kind is None:
            raise ContainerConfigError(f"the test kubelet can't resolve {source}")
        ref = source[kind]
        content = self._fetch_content(kind.removesuffix("KeyRef"), ref)
        if ref["key"] not in content and not ref.get("optional"):
            raise ContainerConfigError(f"couldn't find key {ref['key']} in {kind.removesuffix('KeyRef')} {ref['name']}")
        return content[ref["key"]].decode() if ref["key"] in content else None

    def _resolve_field(self, path: str) -> str:
        metadata, spec = self._pod["metadata"], self._pod["spec"]
        if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
            return str(metadata.get(match[1], {}).get(match[2], ""))
        if path in ("status.podIP", "status.podIPs", "status.hostIP", "status.hostIPs"):
            return self._pod_ip if "podIP" in path else "127.0.0.1"
        section, _, field = path.partition(".")
        return str((metadata if section == "metadata" else spec)[field])

    def _fetch_content(self, kind: str, ref: Object) -> dict[str, bytes]:
        """The data of a ConfigMap or Secret; nothing when it is missing and optional."""
        resource = "secrets" if kind == "secret" else "configmaps"
        name = ref.get("name") or ref.get("secretName")
        try:
            found = self._api.get(f"{self._base}/{resource}/{name}")
        except ApiException as error:
            if error.status != 404:
                raise
            if ref.get("optional"):
                return {}
            raise ContainerConfigError(f"{resource.removesuffix('s')} {name!r} not found") from error
        encoded = found.get("data", {}) if kind == "secret" else found.get("binaryData", {})
        plain = {} if kind == "secret" else found.get("data", {})
        return {key: value.encode() for key, value in plain.items()} | {
            key: base64.b64decode(value) for key, value in encoded.items()
        }

    def _fill(self, volume: Object) -> Path:
        """The folder behind a volume."""
        if claim := volume.get("persistentVolumeClaim"):
            name = self._api.get(f"{self._base}/persistentvolumeclaims/{claim['claimName']}")["spec"]["volumeName"]
            return Path(self._api.get(f"/api/v1/persistentvolumes/{name}")["spec"]["hostPath"]["path"])
        if "hostPath" in volume:
            return Path(volume["hostPath"]["path"])
        folder: Path = self._folder / "volumes" / volume["name"]
        folder.mkdir(parents=True, exist_ok=True)
        if "emptyDir" in volume:
            folder.chmod(0o777)
            return folder
        if "projected" in volume:
            files: dict[str, bytes] = {}
            for source in volume["projected"]["sources"]:
                files |= self._resolve_files(*next(iter(source.items())))
        else:
            files = self._resolve_files(*next((key, value) for key, value in volume.items() if key != "name"))
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return folder

    def _resolve_files(self, kind: str, source: Object) -> dict[str, bytes]:
        """Path to content, for one source of files."""
        if kind == "serviceAccountToken":
            return {source["path"]: self._request_token(source).encode()}
        if kind == "downwardAPI":
            return {
                item["path"]: self._resolve_field(item["fieldRef"]["fieldPath"]).encode() for item in source["items"]
            }
        if kind not in ("configMap", "secret"):
            raise ContainerConfigError(f"the test kubelet has no volumes of type {kind}")
        content = self._fetch_content(kind, source)
        if "items" not in source:
            return content
        return {item["path"]: content[item["key"]] for item in source["items"] if item["key"] in content}

    def _request_token(self, source: Object) -> str:
        metadata = self._pod["metadata"]
        bound = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
        spec: dict[str, Any] = {"expirationSeconds": source.get("expirationSeconds", 3600), "boundObjectRef": bound}
        if "audience" in source:
            spec["audiences"] = [source["audience"]]
        account = self._pod["spec"]["serviceAccountName"]
        path = f"{self._base}/serviceaccounts/{account}/token"
        return str(self._api.post(path, {"kind": "TokenRequest", "spec": spec})["status"]["token"])


def expand(text: str, env: dict[str, str]) -> str:
    """$(NAME) becomes the variable's value, if there is one; $$ is a $."""

    def substitute(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else env.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([\w.-]+)\)", substitute, text)


def parse_bytes(quantity: str) -> int:
    """A whole Kubernetes quantity in bytes."""
    match = re.fullmatch(r"(\d+)(\D*)", quantity)
    if not match:
        raise ContainerConfigError(f"the test kubelet can't read the quantity {quantity!r}")
    return int(match[1]) * _SIZES[match[2]]
