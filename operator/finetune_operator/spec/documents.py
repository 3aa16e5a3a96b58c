"""YAML text -> documents with the line of every field, read as kubectl reads them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from finetune_operator.spec.fields import format_path

_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null")}
_MOST_NODES = 200_000


@dataclass(frozen=True)
class Document:
    """One YAML document."""

    content: Any
    line: int
    """Line it starts at, from 1."""
    lines: dict[str, int]
    """Line of each field by its path, such as ``spec.method.rank``."""

    def find_line(self, path: str) -> int:
        """Line of a field; that of the nearest object around it when it isn't there."""
        while path and path not in self.lines:
            path = re.sub(r'(\.[^.\[\]"]+|\["[^"]*"\]|\[\d+\]|^[^.\[]+)$', "", path)
        return self.lines.get(path, self.line)


class InvalidYaml(ValueError):
    """Text that is no YAML. The message holds nothing of the text, which may be secret."""

    def __init__(self, line: int, problem: str) -> None:
        self.line, self.problem = line, problem
        super().__init__(f"line {line}: {problem}")


class _Loader(yaml.SafeLoader):
    """Scalars as kubectl takes them: 2e-4 is a number, 1:30 and 2026-01-01 are text."""


# PyYAML's YAML 1.1 rules for numbers and dates give way to those of kubectl's parser.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] in ("bool", "null", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+0123456789."),
)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: _parse_int(node.value))


def load_documents(text: str) -> list[Document]:
    """The documents of a YAML (or JSON) text; empty ones are left out.

    Raises InvalidYaml on a syntax error, a key that stands twice in a mapping, and what JSON can't hold.
    """
    documents = []
    try:
        loader = _Loader(text)
        while loader.check_node():
            node: Any = loader.get_node()
            lines = {format_path(path): line for path, line in _walk(node, (), [0], ())}
            content = loader.construct_document(node)
            if content is not None:
                documents.append(Document(content, node.start_mark.line + 1, lines))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InvalidYaml(
            mark.line + 1 if mark else 1, ", ".join(filter(None, (error.context, error.problem)))
        ) from None
    except yaml.reader.ReaderError as error:
        raise InvalidYaml(
            text.count("\n", 0, error.position) + 1, f"the character {chr(error.character)!r} is not allowed"
        ) from None
    return documents


def _walk(
    node: yaml.Node, path: tuple[str | int, ...], count: list[int], above: tuple[int, ...]
) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """(path, line) of every field below a node."""
    line = node.start_mark.line + 1
    count[0] += 1
    if id(node) in above:
        raise InvalidYaml(line, "an alias that contains itself")
    if count[0] > _MOST_NODES:  # a few lines of nested aliases unfold to more than memory holds
        raise InvalidYaml(line, f"more than {_MOST_NODES} values after the aliases are unfolded")
    if node.tag not in _PLAIN_TAGS:
        raise InvalidYaml(line, f"the tag {node.tag.replace('tag:yaml.org,2002:', '!!')} is not allowed")
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*path, index), item.start_mark.line + 1
            yield from _walk(item, (*path, index), count, (*above, id(node)))
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise InvalidYaml(line, "a key must be a plain word")
            if key.tag == "tag:yaml.org,2002:merge":
                yield from _walk(value, path, count, (*above, id(node)))
                continue
            if key.value in seen:
                raise InvalidYaml(line, f"the key {key.value} stands twice in the same mapping")
            seen.add(key.value)
            yield (*path, key.value), line
            yield from _walk(value, (*path, key.value), count, (*above, id(node)))


def _parse_int(text: str) -> int:
    digits = text.replace("_", "")
    return int(digits, 8) if re.fullmatch(r"[-+]?0[0-7]+", digits) else int(digits, 0)
