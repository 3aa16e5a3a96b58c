"""The command as a person meets it: output, streams, exit statuses. Training itself: tests/trainer/test_finetune_run.py."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from finetune_api.names import PLAN_KEY
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.cli import local
from finetune_operator.cli.errors import CommandError
from finetune_operator.cli.main import app, main
from finetune_operator.cli.summary import print_summary
from finetune_operator.manifests.build import build_manifests
from finetune_operator.plan.decide import decide_plan
from finetune_operator.plan.layout import ContainerLayout
from finetune_operator.settings import Settings
from finetune_operator.spec.parse import parse_finetunejob
from tests.invalid import load_corpus

JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: support-bot
spec:
  model: {source: hf://Qwen/Qwen3-0.6B}
  dataset: {source: configMap://faq/train.jsonl}
  method:
    rank: 8
"""
CONFIG_MAP = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: faq}
data:
  train.jsonl: |
    {"prompt": "a", "completion": "b"}
  LEVEL: debug
---
"""
BROKEN = JOB.replace("rank: 8", "rank: 0\n    rnak: 8")


def finetune(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments], input=stdin)


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(CONFIG_MAP + JOB)
    return path


def test_valid_file(job_file: Path) -> None:
    done = finetune("validate", job_file)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "1 FineTuneJob valid\n")


def test_problems_stand_on_stdout_one_a_line_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(CONFIG_MAP + BROKEN)
    done = finetune("validate", path)
    assert done.exit_code == 1
    assert done.stdout.splitlines() == [
        f"{path}:17: spec.method.rank: 0: must be at least 1 and at most 1024; such as 16",
        f"{path}:18: spec.method.rnak: 8: unknown field; did you mean rank?",
    ]
    assert done.stderr == "1 of 1 FineTuneJob not valid\n"


@pytest.mark.parametrize("case", load_corpus(), ids=lambda case: case.path.stem)
def test_corpus_is_refused_with_field_and_mend(case: Any) -> None:
    done = finetune("validate", case.path, "--output", "json")
    assert done.exit_code == 1
    ((problem,),) = [job["problems"] for job in json.loads(done.stdout)["jobs"]]
    assert problem["field"] == case.field
    assert case.message in problem["message"]
    assert problem["mend"]
    assert 3 < problem["line"] <= len(case.text.splitlines())


@pytest.mark.parametrize(("output", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_validate_for_machines(tmp_path: Path, output: str, load: Any) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(JOB + "---\n" + BROKEN)
    done = finetune("validate", path, "-o", output)
    report = load(done.stdout)
    assert (done.exit_code, report["valid"]) == (1, False)
    assert [(job["name"], job["line"], len(job["problems"])) for job in report["jobs"]] == [
        ("support-bot", 1, 0),
        ("support-bot", 11, 2),
    ]
    assert report["jobs"][1]["problems"][0] == {
        "line": 19,
        "field": "spec.method.rank",
        "value": 0,
        "message": "must be at least 1 and at most 1024",
        "mend": "such as 16",
    }


def test_numbers_that_json_lacks(tmp_path: Path) -> None:
    done = finetune("validate", "-", "-o", "json", stdin=JOB + "  training: {epochs: .nan}\n")
    assert json.loads(done.stdout)["jobs"][0]["problems"][0]["value"] == "nan"


def test_stdin_lists_and_other_kinds() -> None:
    listed = yaml.safe_dump(
        {"apiVersion": "v1", "kind": "List", "items": [yaml.safe_load(BROKEN), {"kind": "Secret", "data": 3}]}
    )
    done = finetune("validate", "-", stdin=listed)
    assert done.exit_code == 1
    assert "<stdin>:" in done.stdout and "did you mean rank?" in done.stdout
    assert done.stderr == "1 of 1 FineTuneJob not valid\n"


def test_several_files(job_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "config.yaml"
    other.write_text(CONFIG_MAP)
    assert finetune("validate", job_file, other).exit_code == 0


def test_file_without_a_job_is_no_success(tmp_path: Path) -> None:
    other = tmp_path / "config.yaml"
    other.write_text(CONFIG_MAP)
    done = finetune("validate", other)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "no FineTuneJob in" in done.stderr


@pytest.mark.parametrize("kind", ["FinetuneJob", "FineTuneJobs"])
def test_mistyped_kind_is_told(kind: str) -> None:
    done = finetune("validate", "-", stdin=JOB.replace("FineTuneJob", kind))
    assert "did you mean FineTuneJob" in done.stdout or "use FineTuneJob" in done.stdout
    assert done.exit_code == 1


def test_broken_yaml_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(JOB + "  training: [\n")
    done = finetune("validate", path)
    assert done.exit_code == 1
    assert done.stdout.startswith(f"{path}:11: while parsing a flow")


def _main(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Exit status of the console script."""
    monkeypatch.setattr(sys, "argv", ["finetune", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


@pytest.mark.parametrize("arguments", [["validate", "absent.yaml"], ["validate"], ["nonsense"], ["render", "-f", "absent.yaml"], ["run", "absent.yaml"], ["validate", "-o", "xml", "-"]])  # fmt: skip
def test_usage_errors_exit_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert _main(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err != ""


def test_render_is_what_the_operator_applies(job_file: Path) -> None:
    done = finetune("render", "-f", job_file, "--namespace", "team-a")
    job = parse_finetunejob(yaml.safe_load(JOB) | {"metadata": {"name": "support-bot", "namespace": "team-a"}})
    layout = ContainerLayout()
    applied = build_manifests(job, decide_plan(job, Settings(), layout), Settings(), layout)
    assert list(yaml.safe_load_all(done.stdout)) == applied
    assert json.loads(finetune("render", "-f", job_file, "-n", "team-a", "-o", "json").stdout)["items"] == applied
    assert done.stderr == ""


def test_render_takes_the_platform_s_settings(job_file: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("trainerImage: registry.example.com/trainer:9\n")
    assert "image: registry.example.com/trainer:9" in finetune("render", "-f", job_file, "--settings", settings).stdout


def test_render_shows_the_plan_as_a_block(job_file: Path) -> None:
    assert f"  {PLAN_KEY}: |\n" in finetune("render", "-f", job_file).stdout


@pytest.mark.parametrize("text", ["trainerImag: x\n", "trainerImage: [\n"])
def test_broken_settings_are_told(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(text)
    assert _main(monkeypatch, "render", "-f", job_file, "--settings", settings) == 1
    assert str(settings) in capsys.readouterr().err


def test_render_of_an_invalid_file_prints_problems_on_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(BROKEN)
    assert _main(monkeypatch, "render", "-f", path) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{path}:9: spec.method.rank: 0:" in captured.err


def _leaves(model: Any, above: str = "") -> set[str]:
    """Every field of the spec; for objects that may be absent, the object."""
    found = set()
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
            found |= _leaves(field.annotation, f"{above}{field.alias}.")
        else:
            found.add(f"{above}{field.alias}")
    return found


def test_explain_has_every_field_with_origin_and_reason(job_file: Path) -> None:
    rows = json.loads(finetune("render", "--explain", "-f", job_file, "-o", "json").stdout)["support-bot"]
    by_field = {row["field"]: row for row in rows}
    assert len(by_field) == len(rows)
    missing = {
        path
        for path in _leaves(FineTuneJobSpec)
        if path not in by_field and not any(key.startswith(f"{path}.") for key in by_field)
    }
    assert missing == set()
    assert all(row["reason"] for row in rows)
    assert {row["from"] for row in rows} == {"you", "default", "platform", "derived"}
    assert (by_field["method.rank"]["value"], by_field["method.rank"]["from"]) == (8, "you")
    assert (by_field["method.alpha"]["value"], by_field["method.alpha"]["from"]) == (16.0, "derived")
    assert (by_field["training.seed"]["value"], by_field["training.seed"]["from"]) == (42, "default")
    assert by_field["resources.memory"]["from"] == "platform"
    assert (by_field["podTemplate.image"]["value"], by_field["podTemplate.image"]["from"]) == (
        Settings().trainer_image,
        "platform",
    )


def test_explain_as_a_table_stays_on_its_lines(job_file: Path) -> None:
    lines = finetune("render", "--explain", "-f", job_file).stdout.splitlines()
    assert lines[0].split() == ["FIELD", "VALUE", "FROM", "REASON"]
    (rank,) = (line for line in lines if line.startswith("method.rank "))
    assert rank.split(maxsplit=3)[:3] == ["method.rank", "8", "you"]
    assert "\x1b" not in "".join(lines)


def test_no_color_and_pipes_get_no_escapes(job_file: Path) -> None:
    environment = os.environ | {"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "finetune_operator.cli.main", "validate", str(job_file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "\x1b[3" not in done.stdout + done.stderr


def test_version() -> None:
    assert finetune("version").stdout.startswith("finetune ")


def test_completion_is_offered() -> None:
    assert "--install-completion" in finetune("--help").stdout


def test_loads_nothing_heavy() -> None:
    code = """
import sys
sys.argv = ["finetune", "version"]
from finetune_operator.cli.main import main
try:
    main()
except SystemExit:
    pass
print(sorted({"torch", "kubernetes", "kopf", "yaml", "rich", "finetune_operator.manifests"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_run_does_not_import_torch() -> None:
    code = "import sys, finetune_operator.cli.run; print({'torch', 'transformers', 'kubernetes', 'kopf'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# ---- what `run` starts


class Here:
    """A folder with all that a local run needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config_maps = {"faq": next(yaml.safe_load_all(CONFIG_MAP))}
        self.caller = {"PATH": "/bin", "HOME": "/home/me"}
        self.taken_ports: set[int] = set()

    def build(self, claims: dict[str, Path] | None = None, **spec: Any) -> local.LocalRun:
        document = yaml.safe_load(JOB)
        document["spec"] |= {"model": {"source": "package://dist/model"}, "resources": {"gpu": {"count": 0}}} | spec
        job = parse_finetunejob(document)
        layout = local.build_layout(job, self.folder / "run", self.folder / "cache", claims or {})
        return local.build_local_run(job, Settings(), layout, self.config_maps, self.caller, self.taken_ports)


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path)


def test_run_starts_the_rendered_command(here: Here) -> None:
    built = here.build()
    assert built.command == [sys.executable, "-m", "finetune_trainer", "--plan", str(here.folder / "run/plan.json")]
    assert built.environment["PATH"] == "/bin"
    assert built.environment["HOME"] == "/home/me"
    assert "FINETUNE_LOG_FORMAT" not in built.environment
    assert built.environment["POD_IP"] == "127.0.0.1"
    assert built.environment["HF_HOME"] == str(here.folder / "cache/huggingface")


def test_run_has_one_node_and_needs_a_folder_for_checkpoints_of_a_claim(here: Here) -> None:
    with pytest.raises(CommandError, match=r"parallelism\.nodes 2: a run on this machine has one node"):
        here.build(parallelism={"nodes": 2})
    checkpoint = {"storage": "pvc://kept/bot", "async": True}
    with pytest.raises(CommandError, match="pvc://kept/bot needs a folder"):
        here.build(checkpoint=checkpoint)
    built = here.build({"kept": here.folder / "kept"}, checkpoint=checkpoint, spot={"enabled": True})
    assert built.plan.checkpoint.directory.startswith(f"{here.folder}/kept/bot/")
    assert built.plan.checkpoint.staging == f"{here.folder}/run/scratch/checkpoints/{built.plan.job.run_id}"
    assert built.remarks == ["spot is left out: this machine stays"]


def test_run_writes_the_plan_and_the_config_map(here: Here) -> None:
    built = here.build()
    data = here.folder / "run/config-maps/faq/train.jsonl"
    assert built.files[data] == b'{"prompt": "a", "completion": "b"}\n'
    plan = json.loads(built.files[here.folder / "run/plan.json"])
    assert plan["dataset"]["source"]["location"] == str(data)
    assert plan == json.loads(built.plan.to_json())


def test_a_taken_port_is_replaced_and_the_run_stays_the_same(here: Here) -> None:
    free = here.build()
    here.taken_ports = {8000}
    built = here.build()
    assert json.loads(built.files[here.folder / "run/plan.json"])["observability"]["metricsPort"] == 0
    assert "port 8000 is taken here: metrics are on a free one" in built.remarks
    assert built.plan.job.run_id == free.plan.job.run_id


def test_same_job_is_the_same_run_and_a_changed_one_is_not(here: Here) -> None:
    first = here.build().plan.job.run_id
    assert here.build().plan.job.run_id == first
    assert here.build(method={"rank": 9}).plan.job.run_id != first
    here.config_maps["faq"]["data"]["train.jsonl"] += "{}\n"
    assert here.build().plan.job.run_id != first


def test_changed_data_is_another_run(here: Here, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("one")
    claims, dataset = {"data": tmp_path}, {"source": "pvc://data/train.jsonl"}
    first = here.build(claims, dataset=dataset)
    (tmp_path / "train.jsonl").write_text("two")
    assert here.build(claims, dataset=dataset).plan.job.run_id != first.plan.job.run_id
    assert first.plan.dataset.source.location == str(tmp_path / "train.jsonl")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"dataset": {"source": "pvc://data/x.jsonl"}}, "pvc://data/x.jsonl needs a folder that stands for the claim: add --claim data=DIR"),
        ({"dataset": {"source": "configMap://other/x"}}, "there is no ConfigMap other in the file"),
        ({"dataset": {"source": "configMap://faq/x"}}, "ConfigMap faq has no text under the key x"),
        ({"dataset": {"source": "file:///nowhere/x.jsonl"}}, "/nowhere/x.jsonl does not exist"),
        ({"model": {"source": "hf://a/b", "tokenSecretRef": {"name": "hf", "key": "token"}}}, "HF_TOKEN comes from key token of Secret hf on a cluster: set the environment variable HF_TOKEN here"),
        ({"podTemplate": {"env": [{"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "faq", "key": "x"}}}]}}, "MODE comes from key x of ConfigMap faq"),
    ],
)  # fmt: skip
def test_what_is_missing_is_told_before_the_start(here: Here, spec: dict[str, Any], told: str) -> None:
    with pytest.raises(CommandError) as caught:
        here.build(**spec)
    assert told in str(caught.value)


def test_references_are_followed_here(here: Here) -> None:
    here.caller["HF_TOKEN"] = "from-the-shell"
    built = here.build(
        model={"source": "hf://a/b", "tokenSecretRef": {"name": "hf", "key": "token"}},
        resources={"gpu": {"count": 0}, "memory": "2Gi", "cpu": "1500m"},
        podTemplate={
            "envFrom": [{"prefix": "FAQ_", "configMapRef": {"name": "faq"}}],
            "env": [
                {"name": "LEVEL", "valueFrom": {"configMapKeyRef": {"name": "faq", "key": "LEVEL"}}},
                {"name": "JOB", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}},
                {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                {"name": "TEXT", "value": "$(JOB) at $(LEVEL), $$(JOB) $(UNKNOWN)"},
                {"name": "MAYBE", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}},
                {"name": "HOME", "value": "/elsewhere"},
            ],
        },
    )
    wanted = {
        "HF_TOKEN": "from-the-shell", "LEVEL": "debug", "FAQ_LEVEL": "debug", "JOB": "support-bot", "CPUS": "2", "MEMORY": "2048",
        "TEXT": "support-bot at debug, $(JOB) $(UNKNOWN)", "HOME": "/elsewhere",
    }  # fmt: skip
    assert {name: built.environment[name] for name in wanted} == wanted
    assert "MAYBE" not in built.environment
    assert "from-the-shell" not in built.files[here.folder / "run/plan.json"].decode()


def test_run_refuses_bad_claims(
    job_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for claim in ("data", "data=/does/not/exist", "=x"):
        assert _main(monkeypatch, "run", job_file, "--claim", claim) == 2
        assert "--claim" in capsys.readouterr().err


def test_run_tells_when_the_trainer_is_missing(
    job_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from finetune_operator.cli import run

    monkeypatch.setattr(run, "_NEEDED", ("finetune_trainer_of_the_future",))
    assert _main(monkeypatch, "run", job_file) == 1
    assert "install finetune-operator[trainer]" in capsys.readouterr().err


def test_run_takes_one_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(JOB + "---\n" + JOB)
    assert _main(monkeypatch, "run", path) == 1
    assert "holds 2 FineTuneJobs" in capsys.readouterr().err


def test_summary_shows_what_matters() -> None:
    from rich.console import Console

    from finetune_api.progress import ArtifactRecord, GateOutcome, Sample
    from finetune_api.progress import Result as RunResult

    result = RunResult(
        run_id="r", job="support-bot", steps=30, epochs=3.0, loss=0.5, eval_loss_before=2.0, eval_loss=0.75, tokens_seen=9,
        tokens_per_second=1234.5, train_seconds=75.2, peak_host_memory_bytes=3 * 2**30, peak_gpu_memory_bytes=0,
        trainable_parameters=10, total_parameters=1000, resumes=1, versions={},
        artifacts=(ArtifactRecord(type="adapter", path="/out/[adapter]", bytes=2048, sha256="x", difference=1e-5),),
        evaluation_before={"loss": 2.0, "bleu": 1.5}, evaluation={"loss": 0.75, "bleu": 40.25, "harness/arc/acc": 0.5},
        gates=(GateOutcome(metric="bleu", op=">=", bound=50.0, value=40.25, held=False),), best_step=20,
        pushed_to="https://hub.example/acme/bot",
        samples=(Sample(prompt="Why?", before="no", after="yes\nyes"),),
    )  # fmt: skip
    out = io.StringIO()
    print_summary(result, Console(file=out, width=200))
    text = out.getvalue()
    for part in (
        "2.0000 before, 0.7500 after",
        "1,234 tokens/s",
        "1m 15s",
        "resumed 1 time",
        "3.0 GiB",
        "/out/[adapter] (2.0 KiB, verified to 1e-05)",
        "bleu             1.5 before, 40.25 after",
        "harness/arc/acc  0.5 after",
        "gate             bleu >= 50: 40.25",
        "best weights     of step 20",
        "uploaded to      https://hub.example/acme/bot",
        "before  no",
        "after   yes yes",
    ):
        assert part in text, part
