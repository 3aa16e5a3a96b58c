"""Duplicates: the text that rows are compared by, and which row of several is kept.

Rows are compared by their whole text (of a conversation all turns with their roles, of a preference both answers), in
Unicode's compatibility form NFKC, case folded, each run of white space as one space. Near duplicates share so many of
their word 5-grams (Broder 1997, Jaccard similarity), as estimated by MinHash; the first row of a family stays.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from typing import Any, Literal

from finetune_api.plan import CleaningPlan
from finetune_trainer.data.formats import Continuation, Conversation, Example, Judged, Preference, Prompt, Text, Turns

_SHINGLE = 5
"""Words that are compared as one."""
_PERMUTATIONS = 128


def text_of(example: Example) -> str:
    """The normalised text of an example."""
    parts: list[Turns]
    match example:
        case Text():
            parts = [example.text]
        case Continuation():
            parts = [example.prompt, example.completion]
        case Conversation():
            parts = [example.messages]
        case Preference():
            parts = [example.prompt, example.chosen, example.rejected]
        case Judged():
            parts = [example.prompt, example.completion, "liked" if example.label else "disliked"]
        case Prompt():
            parts = [example.prompt]
    return _normalise("\n".join(_flatten(part) for part in parts))


def _flatten(turns: Turns) -> str:
    if isinstance(turns, str):
        return turns
    lines = []
    for message in turns:
        calls = json.dumps(message["tool_calls"], sort_keys=True) if message.get("tool_calls") else ""
        lines.append(f"{message['role']}: {message['content']}{calls}")
    return "\n".join(lines)


def _normalise(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def key_of(text: str) -> bytes:
    """What stands for a normalised text among many."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


class Deduplicator:
    """Remembers the texts it has seen, with their places, by the plan's rule."""

    def __init__(self, plan: CleaningPlan) -> None:
        self._plan = plan
        self._places: dict[bytes, str] = {}
        self._signatures: list[tuple[Any, str]] = []
        self._index: Any = None
        if plan.dedup == "minhash":
            from datasketch import MinHashLSH  # type: ignore[import-untyped]

            self._index = MinHashLSH(threshold=plan.threshold, num_perm=_PERMUTATIONS)

    def find(self, text: str, place: str) -> tuple[Literal["exact", "near"], str] | None:
        """How and of which earlier place ``text`` is a duplicate; None: it is new, and remembered."""
        if self._plan.dedup == "none":
            return None
        key = key_of(text)
        if key in self._places:
            return "exact", self._places[key]
        if self._index is not None:
            signature = _sign(text)
            near = self._find_near(signature)
            if near is not None:
                return "near", near
            self._index.insert(len(self._signatures), signature)
            self._signatures.append((signature, place))
        self._places[key] = place
        return None

    def _find_near(self, signature: Any) -> str | None:
        """The most similar kept row. The index finds bands that agree; the whole signature decides."""
        families = (self._signatures[number] for number in self._index.query(signature))
        candidates = [(signature.jaccard(kept), place) for kept, place in families]
        similarity, place = max(candidates, default=(0.0, ""))
        return place if similarity >= self._plan.threshold else None


def _sign(text: str) -> Any:
    from datasketch import MinHash

    signature = MinHash(num_perm=_PERMUTATIONS)
    signature.update_batch([shingle.encode(errors="surrogatepass") for shingle in _shingles(text)])
    return signature


def _shingles(text: str) -> Iterable[str]:
    words = text.split()
    return {" ".join(words[start : start + _SHINGLE]) for start in range(max(1, len(words) - _SHINGLE + 1))}
