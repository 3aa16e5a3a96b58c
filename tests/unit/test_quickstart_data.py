"""The quickstart's questions and answers: well formed, and with a held-out set that is really held out."""

import json
import re
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "manifests" / "examples" / "data"
TRAIN = DATA / "finetune-faq.train.jsonl"
VALIDATION = DATA / "finetune-faq.validation.jsonl"
DEMO_QUESTIONS = DATA / "demo-questions.txt"


def read_rows(path: Path) -> list[tuple[str, str]]:
    """(question, answer) of each line; raises where a line is not one user turn and one assistant turn in ChatML."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert set(row) == {"messages"}, line
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"], line
        assert all(set(message) == {"role", "content"} for message in row["messages"]), line
        question, answer = (message["content"] for message in row["messages"])
        rows.append((question, answer))
    return rows


def normalise(question: str) -> str:
    """The question without case and punctuation, so that a held-out one differs from a trained one by its words."""
    return " ".join(re.findall(r"\w+", question.lower()))


@pytest.mark.parametrize("path", [TRAIN, VALIDATION], ids=lambda path: path.name)
def test_every_turn_has_clean_text(path: Path) -> None:
    for row in read_rows(path):
        for text in row:
            assert text and text == " ".join(text.split())


@pytest.mark.parametrize(("path", "at_least"), [(TRAIN, 200), (VALIDATION, 50)], ids=lambda value: str(value)[-20:])
def test_enough_rows(path: Path, at_least: int) -> None:
    assert len(read_rows(path)) >= at_least


def test_no_question_is_asked_twice_in_either_file() -> None:
    questions = [normalise(question) for path in (TRAIN, VALIDATION) for question, _ in read_rows(path)]
    assert sorted(questions) == sorted(set(questions))


def test_held_out_questions_ask_for_trained_facts() -> None:
    trained_answers = {answer for _, answer in read_rows(TRAIN)}
    assert {answer for _, answer in read_rows(VALIDATION)} <= trained_answers


def test_demo_questions_are_held_out() -> None:
    questions = DEMO_QUESTIONS.read_text(encoding="utf-8").splitlines()
    assert len(set(questions)) == len(questions) == 5
    assert set(questions) <= {question for question, _ in read_rows(VALIDATION)}


def test_files_fit_into_a_config_map() -> None:
    # A ConfigMap holds at most 1 MiB; 200 kB keeps `kubectl apply` (which copies it into an annotation of 256 KiB) working.
    assert sum(path.stat().st_size for path in (TRAIN, VALIDATION, DEMO_QUESTIONS)) < 200_000
