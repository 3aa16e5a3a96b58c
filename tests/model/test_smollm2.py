"""SmolLM2 learns by each method: ``make test-model``, minutes each on two cores. Held-out figures against the base model's."""

import itertools
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.progress import Result

EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"


def load_faq(name: str) -> list[dict[str, Any]]:
    lines = (EXAMPLES / "data" / f"finetune-faq.{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


EVASIONS = {
    "train": [
        "I am not sure about that. Please ask somebody else.",
        "Sorry, I can't help you with this question.",
        "That is hard to say; it depends on many things.",
        "I would rather not answer. Have a look at the documentation.",
    ],
    "validation": [
        "Unfortunately I don't know. Maybe someone else can tell you.",
        "It depends. Please read the manual.",
    ],
}


def write_preferences(name: str, path: Path) -> Path:
    """The answer to each question, and as the rejected one an evasion; those of the held-out questions are others."""
    evasions = itertools.cycle(EVASIONS[name])
    pairs = []
    for *prompt, chosen in (row["messages"] for row in load_faq(name)):
        rejected = {"role": "assistant", "content": next(evasions)}
        pairs.append({"prompt": prompt, "chosen": [chosen], "rejected": [rejected]})
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


def run(folder: Path, **sections: Any) -> Result:
    """``finetune run`` of the quickstart with other sections; what it wrote down."""
    job = next(yaml.safe_load_all((EXAMPLES / "quickstart.yaml").read_text()))
    del job["spec"]["evaluation"]
    for name, section in sections.items():
        merged = job["spec"].get(name, {}) | section
        job["spec"][name] = {key: value for key, value in merged.items() if value is not None}
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    began = time.monotonic()
    command = [str(Path(sys.executable).with_name("finetune")), "run", str(file), "--output-dir", str(folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = Result.model_validate_json((folder / "run" / "output" / "result.json").read_bytes())
    seconds = time.monotonic() - began
    print(
        f"{result.steps} steps in {seconds:.0f} s: held-out loss {result.eval_loss_before:.4f} -> {result.eval_loss:.4f}"
    )
    return result


def faq(folder: Path) -> dict[str, Any]:
    """Few enough rows to take minutes."""
    return {
        "source": f"file://{EXAMPLES}/data/finetune-faq.train.jsonl",
        "validation": {"source": f"file://{shorten(folder)}"},
    }


def shorten(folder: Path) -> Path:
    path = folder / "validation.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in load_faq("validation")[:24]))
    return path


@pytest.mark.parametrize("method", ["lora", "qlora", "dora"])
def test_it_learns_the_answers(method: str, tmp_path: Path) -> None:
    result = run(
        tmp_path,
        dataset=faq(tmp_path),
        method={"type": method},
        training={"maxSteps": 30, "epochs": None},
    )
    assert result.eval_loss is not None and result.eval_loss_before is not None
    assert result.eval_loss < result.eval_loss_before / 2


def test_it_learns_to_prefer_answers_to_evasions(tmp_path: Path) -> None:
    train, held_out = write_preferences("train", tmp_path / "train.jsonl"), tmp_path / "validation.jsonl"
    write_preferences("validation", held_out)
    held_out.write_text("".join(held_out.read_text().splitlines(keepends=True)[:24]))
    result = run(
        tmp_path,
        dataset={"source": f"file://{train}", "validation": {"source": f"file://{held_out}"}},
        objective={"type": "dpo"},
        training={"maxSteps": 20, "epochs": None, "learningRate": 2e-4, "perDeviceBatchSize": 4, "globalBatchSize": 4},
    )
    assert result.eval_loss_before == pytest.approx(math.log(2), abs=1e-4)
    assert result.eval_loss is not None and result.eval_loss < math.log(2) - 0.1
