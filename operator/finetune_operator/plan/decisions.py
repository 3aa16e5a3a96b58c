"""Values of a job with their reasons, as ``finetune render --explain`` tells them."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Origin = Literal["you", "default", "platform", "derived"]


@dataclass(frozen=True)
class Decision:
    """One value of the job: where it came from, and why."""

    path: str
    value: Any
    origin: Origin
    reason: str


@dataclass
class Decisions:
    """Collects the decisions of one job."""

    made: list[Decision] = field(default_factory=list)

    def choose(self, path: str, given: T | None, fallback: T, reason: str, origin: Origin = "derived") -> T:
        """``given`` if the person gave it, else ``fallback`` for ``reason``."""
        value, because = (fallback, reason) if given is None else (given, "set in the file")
        self.made.append(Decision(path, value, origin if given is None else "you", because))
        return value
