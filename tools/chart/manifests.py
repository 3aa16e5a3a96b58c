"""manifests/: what the chart renders, for people who use kustomize.

The base is the chart's default. An overlay is a values.yaml, written by a person, and the difference it makes.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.chart.programs import run_program

RELEASE, NAMESPACE = "finetune-operator", "finetune-system"
HEADER = "# Generated from helm/finetune-operator by tools/generate_chart.py; `make generate` writes it anew.\n"
BASE_FILES = {
    "crd.yaml": ["crds.yaml"],
    "rbac.yaml": ["serviceaccount.yaml", "rbac.yaml"],
    "user-roles.yaml": ["user-roles.yaml"],
    "operator.yaml": ["settings.yaml", "deployment.yaml", "service.yaml", "poddisruptionbudget.yaml", "networkpolicy.yaml"],
}  # fmt: skip

Manifest = dict[str, Any]
Identity = tuple[str, str, str]
"""Kind, namespace and name."""


def render(chart: Path, values: Path | None = None) -> dict[str, list[str]]:
    """Texts of the objects of each template, with their comments and without what only Helm needs."""
    where = ["--namespace", NAMESPACE, *(["--values", str(values)] if values else [])]
    text = run_program("helm", "template", RELEASE, chart, "--skip-tests", "--set", "crds.keep=false", *where)
    # What Helm needs to know its own.
    text = re.sub(r"^ +(helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n", "", text, flags=re.MULTILINE)
    rendered: dict[str, list[str]] = {}
    for document in re.split(r"^---\n", text, flags=re.MULTILINE):
        if match := re.match(r"# Source: [^/]+/templates/(.*)\n", document):
            body = re.sub(r"\n\n+", "\n", document[match.end() :]).strip("\n") + "\n"
            rendered.setdefault(match[1], []).append(body)
    return rendered


def identify(manifest: Manifest) -> Identity:
    """What tells the objects of a build apart."""
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace", ""), metadata["name"]


def build_manifests(chart: Mapping[str, str], source: Path, target: Path) -> dict[Path, str]:
    """Files of manifests/base and manifests/overlays.

    :param chart: generated files of the chart by their path in it.
    :param source: the chart's folder, for those that are written by hand.
    :param target: manifests/, for the overlays' values.
    """
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / source.name
        for path in source.rglob("*"):
            if path.is_file():
                copy = folder / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
        for name, text in chart.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        default = render(folder)
        files = {target / "base" / name: text for name, text in _build_base(default).items()}
        for values in sorted(target.glob("overlays/*/values.yaml")):
            overlay = _build_overlay(default, render(folder, values))
            files |= {values.parent / name: text for name, text in overlay.items()}
    return files


def _build_base(rendered: dict[str, list[str]]) -> dict[str, str]:
    files = {
        name: HEADER + "---\n".join(text for template in templates for text in rendered[template])
        for name, templates in BASE_FILES.items()
    }
    if left := rendered.keys() - {template for templates in BASE_FILES.values() for template in templates}:
        raise ValueError(f"no file of manifests/base for {sorted(left)}: extend BASE_FILES")
    files["kustomization.yaml"] = HEADER + _dump(_kustomization(resources=["namespace.yaml", *BASE_FILES]))
    return files


def _build_overlay(default: dict[str, list[str]], rendered: dict[str, list[str]]) -> dict[str, str]:
    old, new = dict(_objects(default)), dict(_objects(rendered))
    added = [text for identity, (text, _) in new.items() if identity not in old]
    patches: list[Manifest] = [
        {"patch": _dump(_build_deletion(manifest))} for key, (_, manifest) in old.items() if key not in new
    ]
    for key in old.keys() & new.keys():
        if operations := list(_compare(old[key][1], new[key][1], "")):
            kind, namespace, name = key
            where = {"kind": kind, "name": name} | ({"namespace": namespace} if namespace else {})
            patches.append({"target": where, "patch": _dump(operations)})
    patches.sort(key=_dump)
    content = _kustomization(resources=["../../base", *(["objects.yaml"] if added else [])])
    files = {"kustomization.yaml": HEADER + _dump(content | ({"patches": patches} if patches else {}))}
    if added:
        files["objects.yaml"] = HEADER + "---\n".join(added)
    return files


def _objects(rendered: dict[str, list[str]]) -> Iterator[tuple[Identity, tuple[str, Manifest]]]:
    for texts in rendered.values():
        for text in texts:
            manifest = yaml.safe_load(text)
            yield identify(manifest), (text, manifest)


def _build_deletion(manifest: Manifest) -> Manifest:
    metadata = {key: value for key, value in manifest["metadata"].items() if key in ("name", "namespace")}
    return {"$patch": "delete", "apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "metadata": metadata}


def _compare(old: Any, new: Any, path: str) -> Iterator[Manifest]:
    """JSON patch (RFC 6902); lists are replaced as a whole. The path comes last: kustomize cuts a patch's last line break."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            here = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
            if key not in new:
                yield {"op": "remove", "path": here}
            elif key not in old:
                yield {"op": "add", "value": new[key], "path": here}
            else:
                yield from _compare(old[key], new[key], here)
    elif old != new:
        yield {"op": "replace", "value": new, "path": path}


def _kustomization(**content: Any) -> Manifest:
    return {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"} | content


class _Dumper(yaml.SafeDumper):
    """Text of several lines as a block."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def _dump(content: Any) -> str:
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
