"""How a refusal is told: which field, which value, what is wrong with it, and the mend."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a FineTuneJob."""

    field: str
    """Path such as ``spec.method.rank`` or ``spec.podTemplate.env[2].name``."""
    value: Any
    message: str
    mend: str

    def __str__(self) -> str:
        return f"{self.field}: {_show(self.value)}: {self.message}; {self.mend}"


class InvalidFineTuneJob(ValueError):
    """A FineTuneJob that can't be run. ``problems`` has at least one entry."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


def _show(value: Any) -> str:
    text = "nothing" if value is None else f"{value!r}" if isinstance(value, str) else str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
