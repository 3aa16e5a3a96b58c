"""A tokenizer as llama.cpp reads it out of a GGUF file: vocabulary, kinds of tokens, merges, how text is split."""

import json
from dataclasses import dataclass
from typing import Any

_SPLITS = ("llama-bpe", "qwen2", "tekken", "gpt-4o", "qwen35")
"""llama.cpp's names of ways to split text, of each regular expression one."""


class UnknownTokenizerError(Exception):
    """llama.cpp has no such tokenizer; ``str()`` says what is unknown about it."""


@dataclass(frozen=True)
class Vocabulary:
    """What of a tokenizer stands in the file."""

    model: str
    """``gpt2``: byte-level BPE; ``llama``: SentencePiece's BPE, whose merges follow from scores."""
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    add_space_prefix: bool | None


def read_vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    """The tokenizer's vocabulary, filled up to the model's ``size``. Raises: UnknownTokenizerError."""
    if not tokenizer.is_fast:
        raise UnknownTokenizerError(f"{type(tokenizer).__name__} is no fast tokenizer")
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    model = definition["model"]
    if model["type"] != "BPE":
        raise UnknownTokenizerError(f"its model is {model['type']}, not BPE")
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(size)]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    sentencepiece = bool(model.get("byte_fallback"))
    return Vocabulary(
        model="llama" if sentencepiece else "gpt2",
        pre="default" if sentencepiece else _find_split(definition["pre_tokenizer"]),
        tokens=tokens,
        types=[_find_type(number, by_id, tokenizer, sentencepiece) for number in range(size)],
        merges=[] if sentencepiece else [" ".join(pair) for pair in pairs],
        scores=_score(tokens, pairs) if sentencepiece else [],
        add_space_prefix=_adds_space(definition) if sentencepiece else None,
    )


def add_vocabulary(writer: Any, tokenizer: Any, size: int) -> None:
    """Write the tokenizer into a GGUFWriter. Raises: UnknownTokenizerError."""
    vocabulary = read_vocabulary(tokenizer, size)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    for number, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if number is not None:
            add(number)
    encoded = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and encoded[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and encoded[-1] == tokenizer.eos_token_id)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _find_type(number: int, by_id: dict[int, str], tokenizer: Any, sentencepiece: bool) -> int:
    from gguf import TokenType

    if number not in by_id:
        return int(TokenType.UNUSED)
    if sentencepiece and number == tokenizer.unk_token_id:
        return int(TokenType.UNKNOWN)
    added = tokenizer.added_tokens_decoder.get(number)
    if added is not None:
        return int(TokenType.CONTROL if added.special else TokenType.USER_DEFINED)
    token = by_id[number]
    if sentencepiece and len(token) == 6 and token.startswith("<0x"):
        return int(TokenType.BYTE)
    return int(TokenType.NORMAL)


def _find_split(definition: dict[str, Any] | None) -> str:
    """llama.cpp's name of how a byte-level tokenizer splits text."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    steps = [] if definition is None else definition.get("pretokenizers", [definition])
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0]["use_regex"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1]["use_regex"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        expression = steps[0]["pattern"].get("Regex")
        for name in _SPLITS:
            if GGUF_PRE_TOKENIZER_SPLITS[name] == expression:
                return name
    raise UnknownTokenizerError(f"it splits text in a way that has no name there: {' + '.join(kinds) or 'not at all'}")


def _score(tokens: list[str], pairs: list[list[str]]) -> list[float]:
    """SentencePiece merges what scores best first: the earlier a token's merge, the higher."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, len(pairs))) for token in tokens]


def _adds_space(definition: dict[str, Any]) -> bool:
    """Whether a space is put before the text: by a Metaspace, or a normalizer that prepends it."""
    text = json.dumps([definition["pre_tokenizer"], definition["normalizer"]])
    return '"Prepend"' in text or ('"Metaspace"' in text and '"prepend_scheme": "never"' not in text)
