"""Which tokens are trained, read back as text, under the templates that people meet."""

import copy
from typing import Any

import pytest

from finetune_trainer.data.encode import IGNORED, Encoded, Encoder
from finetune_trainer.data.formats import Continuation, Conversation, Text
from finetune_trainer.errors import InvalidInputError
from tests.trainer import templates

TWO_TURNS = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello, friend!"},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Now we eat. "},
]
REASONED = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "<think>be kind</think>Hello!"},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "<think>lunch</think>Eat."},
]


@pytest.fixture
def with_template(tokenizer: Any) -> Any:
    """``with_template(template)``: the tokenizer with another chat template; None keeps SmolLM2's ChatML."""

    def change(template: str | None, special: tuple[str, ...] = ()) -> Any:
        changed = copy.deepcopy(tokenizer)
        if template is not None:
            changed.chat_template = template
        changed.add_special_tokens({"additional_special_tokens": list(special)})
        return changed

    return change


def trained(tokenizer: Any, row: Encoded) -> list[str]:
    """The texts of the labelled runs of tokens, in order."""
    assert len(row.input_ids) == len(row.labels)
    texts: list[list[int]] = []
    inside = False
    for token, label in zip(row.input_ids, row.labels, strict=True):
        assert label in (IGNORED, token)
        if label != IGNORED and not inside:
            texts.append([])
        inside = label != IGNORED
        if inside:
            texts[-1].append(token)
    return [tokenizer.decode(ids) for ids in texts]


def encode(tokenizer: Any, messages: list[dict[str, str]], response_only: bool = True, **kwargs: Any) -> list[Encoded]:
    return Encoder(tokenizer, response_only).encode(Conversation(messages, **kwargs))


def test_chatml_trains_every_answer_with_its_end(tokenizer: Any) -> None:
    [row] = encode(tokenizer, TWO_TURNS)
    assert trained(tokenizer, row) == ["Hello, friend!<|im_end|>\n", "Now we eat. <|im_end|>\n"]
    assert row.input_ids == tokenizer.apply_chat_template(TWO_TURNS, return_dict=True)["input_ids"]


def test_llama_like_without_generation_tags(with_template: Any) -> None:
    tokenizer = with_template(templates.LLAMA_LIKE, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"))
    [row] = encode(tokenizer, [{"role": "system", "content": "Be brief."}, *TWO_TURNS])
    assert trained(tokenizer, row) == ["Hello, friend!<|eot_id|>", "Now we eat.<|eot_id|>"]


def test_the_date_of_today_stays_out_of_the_rows(with_template: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is resumed tomorrow has to see today's rows."""
    tokenizer = with_template(templates.LLAMA_LIKE)
    [row] = encode(tokenizer, TWO_TURNS)
    assert "Today Date: 26 Jul 2024" in tokenizer.decode(row.input_ids)


def test_gemma_like_template(with_template: Any) -> None:
    tokenizer = with_template(templates.GEMMA_LIKE, ("<start_of_turn>", "<end_of_turn>"))
    [row] = encode(tokenizer, TWO_TURNS)
    assert trained(tokenizer, row) == ["Hello, friend!<end_of_turn>\n", "Now we eat.<end_of_turn>\n"]


def test_what_the_template_refuses_is_named(with_template: Any) -> None:
    tokenizer = with_template(templates.GEMMA_LIKE)
    with pytest.raises(InvalidInputError, match=r"refuses a conversation of system, user.*System role not supported"):
        encode(tokenizer, [{"role": "system", "content": "x"}, *TWO_TURNS])


def test_qwen3_like_template_drops_earlier_reasoning_so_each_answer_gets_its_row(with_template: Any) -> None:
    tokenizer = with_template(templates.QWEN3_LIKE)
    encoder = Encoder(tokenizer, response_only=True)
    first, second = encoder.encode(Conversation(REASONED))
    assert encoder.rewritten == 1
    assert trained(tokenizer, first) == ["<think>\nbe kind\n</think>\n\nHello!<|im_end|>\n"]
    assert trained(tokenizer, second) == ["<think>\nlunch\n</think>\n\nEat.<|im_end|>\n"]
    assert "be kind" not in tokenizer.decode(second.input_ids)
    assert "Hello!" in tokenizer.decode(second.input_ids)


def test_qwen3_like_template_with_one_turn_is_one_row(with_template: Any) -> None:
    tokenizer = with_template(templates.QWEN3_LIKE)
    encoder = Encoder(tokenizer, response_only=True)
    [row] = encoder.encode(Conversation(TWO_TURNS[:2]))
    assert encoder.rewritten == 0
    assert trained(tokenizer, row) == ["<think>\n\n</think>\n\nHello, friend!<|im_end|>\n"]


def test_system_prompt_that_moves_to_the_last_question(with_template: Any) -> None:
    tokenizer = with_template(templates.LAST_USER_SYSTEM)
    rows = encode(tokenizer, [{"role": "system", "content": "SYS"}, *TWO_TURNS])
    assert [trained(tokenizer, row) for row in rows] == [[" Hello, friend!<|im_end|>"], [" Now we eat. <|im_end|>"]]
    assert all(tokenizer.decode(row.input_ids).count("SYS") == 1 for row in rows)


def test_opening_that_the_answer_doesnt_keep(with_template: Any) -> None:
    """The prompt opens with <think>, the written answer has none: the span starts where the two part."""
    tokenizer = with_template(templates.REASONER_LIKE)
    [row] = encode(tokenizer, TWO_TURNS[:2])
    assert trained(tokenizer, row) == ["Hello, friend!<|im_end|>"]


def test_missing_end_of_turn_is_added_and_trained(with_template: Any) -> None:
    tokenizer = with_template(templates.WITHOUT_END)
    [row] = encode(tokenizer, TWO_TURNS)
    # The space before the answer makes one token with its first word, which is trained.
    assert trained(tokenizer, row) == [" Hello, friend!\n", " Now we eat. \n<|im_end|>"]


def test_answers_in_the_prompt_are_not_trained(tokenizer: Any) -> None:
    [row] = encode(tokenizer, TWO_TURNS, prompt_length=3)
    assert trained(tokenizer, row) == ["Now we eat. <|im_end|>\n"]


def test_all_tokens(tokenizer: Any) -> None:
    [row] = encode(tokenizer, TWO_TURNS, response_only=False)
    assert row.labels == row.input_ids


def test_plain_prompt_and_completion_follow_trl(tokenizer: Any) -> None:
    [row] = Encoder(tokenizer, True).encode(Continuation("The sky is", " blue"))
    assert trained(tokenizer, row) == [" blue<|im_end|>"]
    assert tokenizer.decode(row.input_ids) == "The sky is blue<|im_end|>"


def test_text_is_trained_whole(tokenizer: Any) -> None:
    [row] = Encoder(tokenizer, True).encode(Text("Once upon a time"))
    assert trained(tokenizer, row) == ["Once upon a time<|im_end|>"]


def test_letters_of_several_bytes_keep_the_border(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Grüße 🦙🦙"}, {"role": "assistant", "content": "日本語 🦙!"}]
    [row] = encode(tokenizer, messages)
    assert trained(tokenizer, row) == ["日本語 🦙!<|im_end|>\n"]


def test_token_across_the_border_is_trained(tokenizer: Any) -> None:
    """As in TRL: what the prompt's end and the answer's start have become together is new after the prompt."""
    [row] = encode(tokenizer, [TWO_TURNS[0], {"role": "assistant", "content": "  indented"}])
    assert trained(tokenizer, row) == ["\n  indented<|im_end|>\n"]


def test_tokenizer_without_template(tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(InvalidInputError, match=r"no chat template: set model\.chatTemplate"):
        encode(bare, TWO_TURNS)
    plain = Continuation("Q: Hi\nA:\n", "Hello")
    [row] = Encoder(bare, True).encode(Conversation(TWO_TURNS, plain=plain))
    assert trained(bare, row) == ["Hello<|im_end|>"]
