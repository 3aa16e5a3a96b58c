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
    """Two adapters of one model: each has learnt an answer of its own."""
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
            training={"epochs": 10.0, "learning_rate": 2e-2},
            checkpoint={"every_steps": 99},
        )
        run(plan)
        folders[name] = Path(plan.output.directory) / "adapter"
    return folders


def _arguments(model: Path, adapters: dict[str, Path]) -> list[str]:
    options = [option for name, folder in adapters.items() for option in ("--adapter", f"{name}={folder}")]
    return ["--model", str(model), "--max-tokens", "8", *options]


def test_adapters_are_switched_hot(
    tiny_model: Path, adapters: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        QUESTION,
        "/new",
        "/adapter curt",
        QUESTION,
        "/new",
        "/base",
        QUESTION,
        "/adapter polite",
        "/new",
        QUESTION,
    ]
    assert (
        chat.main(_arguments(tiny_model, adapters), [*lines, "/adapter none", "/what", "/quit", QUESTION])
        == ExitCode.OK
    )
    told = capsys.readouterr()
    answers = told.out.splitlines()
    assert (answers[0], answers[1], answers[-1]) == ("Yes, indeed", "No", "Yes, indeed")
    assert answers[2] not in ("Yes, indeed", "No")
    assert "polite answers; /adapter NAME switches" in told.err
    assert "there is no adapter none: there is polite, curt, base" in told.err
    assert "there is no command /what" in told.err


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
    assert done.stdout == "Yes, indeed\n"
    assert done.stderr.startswith("polite answers")
