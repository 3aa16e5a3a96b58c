"""Several adapters in one model, switched while it answers."""

import subprocess
import sys
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_trainer import chat
from tests.trainer.plans import make_plan
from tests.trainer.running import run
from tests.trainer.test_evaluation import write_one_answer

QUESTION = "Is it 3?"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    """Two adapters of one model, each trained towards an answer of its own."""
    folders = {}
    for name, answer in (("polite", "Yes, indeed"), ("curt", "No")):
        root = tmp_path_factory.mktemp(name)
        rows = write_one_answer(root / "rows.jsonl", answer)
        plan = make_plan(
            root,
            tiny_model,
            rows,
            dataset={"validation_fraction": None},
            method={"lora": {"rank": 8, "alpha": 32.0, "dropout": 0.0, "target_modules": ("all-linear",)}},
            training={"epochs": 4.0},
            checkpoint={"every_steps": 99},
        )
        run(plan)
        folders[name] = Path(plan.output.directory) / "adapter"
    return folders


def _arguments(model: Path, adapters: dict[str, Path]) -> list[str]:
    options = [option for name, folder in adapters.items() for option in ("--adapter", f"{name}={folder}")]
    return ["--model", str(model), "--max-tokens", "8", *options]


def _plain_answer(model: Path, adapter: Path | None) -> str:
    """The first answer by plain transformers and PEFT, of this adapter alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    if adapter is not None:
        loaded = PeftModel.from_pretrained(loaded, adapter)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = loaded.generate(**rendered, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return str(tokenizer.decode(output[0, rendered["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def test_adapters_are_switched_hot(tiny_model: Path, adapters: dict[str, Path]) -> None:
    """Each answers as if it were alone, and the base model as if there were none."""
    conversation = chat.open_chat(str(tiny_model), adapters, "cpu", 8)
    answers = {}
    for name in ("curt", "base", "polite"):
        conversation.switch(name)
        conversation.forget()
        answers[name] = conversation.answer(QUESTION)
    assert answers == {name: _plain_answer(tiny_model, adapters.get(name)) for name in answers}
    assert len(set(answers.values())) == 3


def test_a_conversation_by_lines(
    tiny_model: Path, adapters: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [QUESTION, "/new", "/adapter curt", QUESTION, "", "/base", "/adapter none", "/what", "/quit", QUESTION]
    assert chat.main(_arguments(tiny_model, adapters), lines) == ExitCode.OK
    told = capsys.readouterr()
    polite, curt = (_plain_answer(tiny_model, folder) for folder in adapters.values())
    assert told.out.startswith(polite) and told.out.strip().endswith(curt)
    # Behind the bars of the libraries, which only a process of its own keeps silent.
    said = told.err[told.err.index("polite answers; /adapter NAME switches") :].splitlines()
    assert said[1:4] == ["a new conversation", "curt answers", "base answers"]
    assert said[4] == "there is no adapter none: there is polite, curt, base"
    assert said[5].startswith("there is no command /what: ")


def test_what_is_not_there(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat.main(_arguments(tiny_model, {"mine": tmp_path}), []) == ExitCode.INVALID
    assert f"--adapter mine={tmp_path}: there is no adapter" in capsys.readouterr().err
    assert chat.main(_arguments(tmp_path, {}), []) == ExitCode.INVALID
    assert f"--model {tmp_path}: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        chat.main(["--model", str(tiny_model), "--adapter", "nameless"])
    assert "nameless: write NAME=FOLDER" in capsys.readouterr().err


def test_the_command_s_terminal_is_the_model_s(tiny_model: Path, adapters: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "finetune_operator.cli.main", "chat", *_arguments(tiny_model, adapters)]
    done = subprocess.run(command, input=f"{QUESTION}\n/quit\n", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == _plain_answer(tiny_model, adapters["polite"])
    assert done.stderr.startswith("polite answers")
