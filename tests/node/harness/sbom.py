"""Software bills of materials of the images, read from what is installed in them (CycloneDX 1.6)."""

import json
from typing import Any

from tests.node.harness.images import VERSION, Builder, build_tag

_LIST_PACKAGES = """
import importlib.metadata, json, pathlib, re
python = [{"name": each.name, "version": each.version, "licenses": each.metadata.get("License-Expression")}
          for each in importlib.metadata.distributions()]
status = pathlib.Path("/var/lib/dpkg/status")
debian = re.findall(r"^Package: (.*)\\nStatus: install ok installed\\n(?:.*\\n)*?Architecture: (.*)\\n(?:.*\\n)*?Version: (.*)$",
                    status.read_text(), re.MULTILINE) if status.exists() else []
print(json.dumps({"python": python, "debian": debian}))
"""


def build_sbom(builder: Builder, image: str) -> dict[str, Any]:
    """The document of an image that the builder has: Python packages, and Debian's where the base has some."""
    packages = json.loads(builder.run_inside(build_tag(image), "/opt/finetune/bin/python", "-c", _LIST_PACKAGES))
    components = [
        _build_component(
            each["name"].lower().replace("_", "-"), each["version"], "pypi/{name}@{version}", each["licenses"]
        )
        for each in packages["python"]
    ]
    components += [
        _build_component(name, version, f"deb/debian/{{name}}@{{version}}?arch={architecture}", None)
        for name, architecture, version in packages["debian"]
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": image, "version": VERSION}},
        "components": sorted(components, key=lambda component: str(component["purl"])),
    }


def _build_component(name: str, version: str, purl: str, license_expression: str | None) -> dict[str, Any]:
    component = {
        "type": "library",
        "name": name,
        "version": version,
        "purl": "pkg:" + purl.format(name=name, version=version),
    }
    return component | ({"licenses": [{"expression": license_expression}]} if license_expression else {})
