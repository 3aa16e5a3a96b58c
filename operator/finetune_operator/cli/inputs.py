"""Files of a person -> documents and FineTuneJobs."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from finetune_api.errors import InvalidFineTuneJob, Problem
from finetune_api.names import GROUP, KIND
from finetune_api.spec import FineTuneJob
from finetune_operator.cli.errors import CommandError, UsageError
from finetune_operator.settings import Settings, load_settings
from finetune_operator.spec.documents import Document, InvalidYaml, load_documents
from finetune_operator.spec.parse import parse_finetunejob


@dataclass(frozen=True)
class Entry:
    """One object of a file. ``path`` leads to it in the document: empty, or items[…] of a List."""

    file: str
    content: Any
    document: Document
    path: str = ""

    def find_line(self, field: str) -> int:
        return self.document.find_line(".".join(filter(None, (self.path, field))))

    def locate(self, problem: Problem) -> str:
        """``file:line: field: value: message; mend``"""
        return f"{self.file}:{self.find_line(problem.field)}: {problem}"


def read_entries(file: Path) -> list[Entry]:
    """The objects in a file, those in Lists taken out. Raises CommandError, InvalidYaml."""
    name = "<stdin>" if str(file) == "-" else str(file)
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CommandError(f"{name}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None
    return [entry for document in load_documents(text) for entry in _unpack(name, document)]


def _unpack(file: str, document: Document) -> Iterator[Entry]:
    content = document.content
    if (
        isinstance(content, dict)
        and content.get("kind") in ("List", f"{KIND}List")
        and isinstance(content.get("items"), list)
    ):
        for index, item in enumerate(content["items"]):
            yield Entry(file, item, document, f"items[{index}]")
    else:
        yield Entry(file, content, document)


def is_finetunejob(content: Any) -> bool:
    """Whether an object means to be a FineTuneJob, well written or not."""
    if not isinstance(content, dict):
        return True  # nothing that kubectl takes: told as what it is
    return (
        content.get("kind") == KIND
        or str(content.get("apiVersion", "")).partition("/")[0] == GROUP
        or not content.get("kind")
    )


@dataclass(frozen=True)
class JobFile:
    """A valid file: its FineTuneJobs as parsed and as written, and all its other objects."""

    jobs: list[tuple[FineTuneJob, Entry]]
    others: list[dict[str, Any]]


def read_jobs(file: Path, namespace: str | None = None) -> JobFile:
    """Raises CommandError with every problem of every FineTuneJob in the file, or when there is none."""
    try:
        entries = read_entries(file)
    except InvalidYaml as error:
        raise CommandError(f"{file}:{error.line}: {error.problem}") from None
    jobs, problems = [], []
    for entry in entries:
        if not is_finetunejob(entry.content):
            continue
        entry = replace(entry, content=_place(entry.content, namespace))
        try:
            jobs.append((parse_finetunejob(entry.content), entry))
        except InvalidFineTuneJob as error:
            problems += [entry.locate(problem) for problem in error.problems]
    if problems:
        raise CommandError("the file is not valid\n" + "\n".join(problems))
    if not jobs:
        raise CommandError(f"{file} holds no FineTuneJob")
    return JobFile(jobs, [entry.content for entry in entries if not is_finetunejob(entry.content)])


def _place(content: Any, namespace: str | None) -> Any:
    """As kubectl does: a namespace for an object that names none."""
    if namespace is None or not isinstance(content, dict) or not isinstance(content.get("metadata"), dict):
        return content
    return content | {"metadata": {"namespace": namespace} | content["metadata"]}


def read_settings(file: Path | None) -> Settings:
    """Raises CommandError."""
    try:
        return load_settings(file)
    except ValidationError as error:
        told = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_url=False)]
        raise CommandError(f"{file}: " + "; ".join(told)) from None
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise CommandError(f"{file}: {error}") from None
