"""What became of the rows of one source: counted, with examples, and said."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_EXAMPLES = 5
"""Rows of each fate that the report names."""


@dataclass
class Tally:
    """Rows of one source by their fate. Examples: of a conversation that became several rows, each counts."""

    uri: str
    read: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def count(self, fate: str, example: str) -> None:
        """One more row had this fate; ``example`` tells which."""
        self.fates[fate] += 1
        kept = self.examples.setdefault(fate, [])
        if len(kept) < _EXAMPLES:
            kept.append(example)

    def fits(self, row: dict[str, Any], length: int) -> bool:
        """Whether ``length`` leaves something of an encoded row to train; counts what it does to it."""
        fits: bool = row["least"] <= length
        if row["length"] > length or not fits:
            self.count(CUT if fits else BEYOND, f"{row['place']}, {row['length']} tokens")
        return fits

    def to_json(self) -> dict[str, Any]:
        """For the report beside the prepared rows."""
        return {
            "source": self.uri,
            "read": self.read,
            **{fate: {"rows": number, "examples": self.examples[fate]} for fate, number in self.fates.items()},
        }

    def describe_cleaning(self) -> str:
        """What ``dataset.cleaning`` did, in a sentence."""
        parts = [f"{self.fates[fate]} {words}" for fate, words in _CLEANED.items() if self.fates[fate]]
        return f"cleaned {self.uri}: of {self.read} rows {', '.join(parts) or 'none'} left out"

    @property
    def cleaned(self) -> int:
        """Rows that ``dataset.cleaning`` left out."""
        return sum(self.fates[fate] for fate in _CLEANED)


EXACT, NEAR, SHORT, LONG = "exactDuplicates", "nearDuplicates", "tooShort", "tooLong"
UNTRAINED, BEYOND, CUT, REWRITTEN = "untrained", "beyondMaxLength", "cutToMaxLength", "rewrittenByTemplate"
HELD_OUT = "alsoInValidation"

_CLEANED = {
    EXACT: "exact duplicates",
    NEAR: "near duplicates",
    SHORT: "shorter than dataset.cleaning.minLength",
    LONG: "longer than dataset.cleaning.maxLength",
}
