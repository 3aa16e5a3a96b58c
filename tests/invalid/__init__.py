"""FineTuneJobs that must be refused, each with a header of comments that says why.

# field: the path that is named
# refused-by: crd (the API server itself), operator (only it can know), kubectl (it never reaches the API server)
# message: part of what the person is told
# server-says: part of the API server's message, where it names no field
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_operator.spec.documents import load_documents


@dataclass(frozen=True)
class Invalid:
    """One file."""

    path: Path
    field: str
    refused_by: str
    message: str
    server_says: str | None

    @property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def document(self) -> Any:
        return load_documents(self.text)[0].content


def load_corpus() -> list[Invalid]:
    """All files, in order."""
    return [_read(path) for path in sorted(Path(__file__).parent.glob("*.yaml"))]


def _read(path: Path) -> Invalid:
    header = dict(re.findall(r"^# ([a-z-]+): (.+)$", path.read_text(), re.MULTILINE))
    return Invalid(path, header["field"], header["refused-by"], header["message"], header.get("server-says"))
