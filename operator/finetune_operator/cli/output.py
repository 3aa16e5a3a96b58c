"""How results are printed: data on stdout, all else on stderr, colours only for a terminal that wants them."""

import json
import math
import sys
from typing import Any

import yaml
from pydantic import BaseModel
from rich.console import Console

_WIDE = 100_000  # a line stays a line in a file or a pipe


def open_stdout() -> Console:
    """For data."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDE)


def open_stderr() -> Console:
    """For people."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def print_data(data: Any, output: str) -> None:
    """Plain data as json or yaml."""
    plain = _plain(data)
    if output == "json":
        print(json.dumps(plain, indent=2, ensure_ascii=False))
    else:
        print(yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDE), end="")


def print_objects(objects: list[dict[str, Any]], output: str) -> None:
    """Kubernetes objects: a stream of YAML documents, or a JSON List."""
    if output == "json":
        print_data({"apiVersion": "v1", "kind": "List", "items": objects}, output)
    else:
        print(yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDE), end="")


def _plain(value: Any) -> Any:
    """JSON holds neither models nor NaN."""
    if isinstance(value, BaseModel):
        return value.model_dump(by_alias=True, exclude_none=True, mode="json")
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class _Dumper(yaml.SafeDumper):
    """Text of several lines as a block, such as the plan."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)
