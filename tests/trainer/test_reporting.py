"""/metrics, /progress, the lines on stderr, and the termination message."""

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_api import metrics
from finetune_api.exit_codes import ExitCode
from finetune_api.plan import JobIdentity, TrainingPlan
from finetune_api.progress import ArtifactRecord, Progress, Termination
from finetune_trainer.distributed import Ranks
from finetune_trainer.report import devices
from finetune_trainer.report.server import serve_state
from finetune_trainer.report.state import RunState, Throughput
from finetune_trainer.report.terminal import JsonTerminal, RichTerminal
from finetune_trainer.report.termination import build_termination, format_termination, write_termination
from tests.trainer.running import Recorder, run


def _get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return answer.read()


@pytest.fixture
def state() -> RunState:
    return RunState(JobIdentity(name="job-1", namespace="team-a", run_id="run-1"))


def test_all_metrics_with_their_labels(state: RunState, monkeypatch: pytest.MonkeyPatch) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    monkeypatch.setenv("POD_NAME", "job-1-abc")
    monkeypatch.setenv("POD_IP", "127.0.0.1")
    server = serve_state(state, devices.Devices(0), 0)
    try:
        text = _get(server.server_port, "/metrics").decode()
        assert "finetune_loss{" not in text, "a number that isn't known yet is left out"
        state.update(
            stage="training", step=3, total_steps=12, epoch=0.5, loss=1.5, eval_loss=2.5, learning_rate=1e-4,
            grad_norm=0.7, tokens_per_second=321.0, eta_seconds=9.0, checkpoint_step=2,
        )  # fmt: skip
        state.set_throughput(Throughput(tokens_seen=4096, step_seconds=0.25))
        samples = {
            sample.name: sample
            for family in text_string_to_metric_families(_get(server.server_port, "/metrics").decode())
            for sample in family.samples
        }
        assert set(samples) == {metric.name for metric in metrics.ALL if metric not in metrics.OF_DEVICES}
        for sample in samples.values():
            assert sample.labels == {"namespace": "team-a", "job": "job-1", "pod": "job-1-abc", "rank": "0"}
        assert samples["finetune_tokens_seen_total"].value == 4096
        assert samples["finetune_progress_ratio"].value == 0.25
        assert samples["finetune_step_seconds"].value == 0.25
        assert samples["finetune_host_memory_peak_bytes"].value > 1e7

        progress = Progress.model_validate_json(_get(server.server_port, "/progress"))
        assert progress == state.progress
        assert _get(server.server_port, "/healthz") == b"ok\n"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            _get(server.server_port, "/plan")
    finally:
        server.shutdown()
        server.server_close()


def test_a_taken_port_is_no_reason_to_stop(state: RunState) -> None:
    first = serve_state(state, devices.Devices(0), 0)
    second = serve_state(state, devices.Devices(0), first.server_port)
    try:
        assert first.server_port != second.server_port
        assert _get(second.server_port, "/healthz") == b"ok\n"
    finally:
        for server in (first, second):
            server.shutdown()
            server.server_close()


def test_a_run_reports_every_step(make: Callable[..., TrainingPlan], state: RunState) -> None:
    recorder = Recorder()
    result = run(make(), recorder, state)
    logged = [progress for progress in recorder.progresses if progress.loss is not None]
    assert sorted({progress.step for progress in logged}) == list(range(1, 10))
    assert all(progress.total_steps == 9 and progress.run_id == "run-1" for progress in logged)
    assert all(progress.tokens_per_second and progress.grad_norm for progress in logged)
    assert [progress.eta_seconds for progress in logged][-1] == 0
    assert {"training", "evaluating", "exporting"} <= {progress.stage for progress in recorder.progresses}
    assert state.progress.checkpoint_step == 9
    assert state.throughput.tokens_seen == result.tokens_seen
    assert result.loss == logged[-1].loss
    assert result.tokens_per_second == pytest.approx(result.tokens_seen / result.train_seconds)
    assert result.steps == 9 and result.epochs == 3.0
    assert 0 < result.trainable_parameters < result.total_parameters


def test_tokens_are_counted_without_padding(make: Callable[..., TrainingPlan]) -> None:
    from finetune_trainer.data.prepare import load_data, prepare_data
    from finetune_trainer.model.load import load_tokenizer

    plan = make(dataset={"validation_fraction": None}, training={"epochs": 1.0})
    result = run(plan)
    location = plan.model.source.location
    tokenizer = load_tokenizer(plan, location)
    rows = load_data(plan, prepare_data(plan, location, tokenizer, print), tokenizer, print).train
    assert result.tokens_seen == sum(len(row["input_ids"]) for row in rows)


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = JsonTerminal()
    terminal.event("warning", "look", step=3)
    terminal.progress(Progress(run_id="r", stage="training", step=1, loss=0.5))
    warning, progress = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert warning["event"] == "warning" and warning["message"] == "look" and warning["step"] == 3
    assert progress["event"] == "progress" and progress["loss"] == 0.5 and "evalLoss" not in progress


def test_progress_bar_shows_the_numbers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("FORCE_COLOR", "1")
    terminal = RichTerminal()
    terminal.event("failed", "[x] is no markup")
    terminal.progress(
        Progress(
            run_id="r",
            stage="training",
            step=3,
            total_steps=9,
            loss=1.23456,
            eval_loss=2.5,
            learning_rate=1e-4,
            tokens_per_second=1234.5,
            eta_seconds=3725,
        )
    )
    terminal.close()
    shown = capsys.readouterr().err
    for part in ("[x] is no markup", "3/9", "loss 1.2346", "eval 2.5000", "lr 1.00e-04", "1,234 tok/s", "1:02:05 left"):
        assert part in shown


def test_termination_fits_into_4096_bytes() -> None:
    artifacts = tuple(
        ArtifactRecord(type="adapter", path="/data/" + "x" * 300, bytes=1, sha256="0" * 64) for _ in range(2)
    )
    long = build_termination(ExitCode.INVALID, "ä" * 9000, Progress(run_id="r", stage="training", step=5), artifacts)
    text = format_termination(long)
    assert len(text.encode()) <= 4096
    short = Termination.model_validate_json(text)
    assert short.reason == "InvalidPlanOrData" and short.step == 5 and short.artifacts == artifacts
    assert short.message.startswith("ä" * 200) and short.message.endswith("…")


def test_termination_is_written_into_the_mounted_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kubelet mounts the file itself, so it has to stay the same file."""
    path = tmp_path / "termination-log"
    path.touch()
    inode = path.stat().st_ino
    monkeypatch.setenv("FINETUNE_TERMINATION_LOG", str(path))
    write_termination(build_termination(ExitCode.OK, "done"))
    assert json.loads(path.read_text())["reason"] == "Succeeded"
    assert path.stat().st_ino == inode


def test_the_launcher_tells_the_cause_not_the_first_seen() -> None:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    from finetune_trainer.launcher import _find_cause

    def failure(rank: int, code: int) -> Any:
        return ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file="<N/A>")

    assert _find_cause({}, False) == (0, 0)
    assert _find_cause({0: failure(0, 1), 1: failure(1, 11)}, False) == (11, 1)
    assert _find_cause({0: failure(0, 75), 1: failure(1, 75)}, True) == (75, 0)
    assert _find_cause({1: failure(1, -9)}, False) == (137, 1)
    assert _find_cause({1: failure(1, -15)}, True) == (75, 1)
    assert _find_cause({1: failure(1, -15)}, False) == (143, 1)


class FakeNvml:
    """Stands for NVIDIA's driver and three GPUs, which no test machine has.

    The second is a part of a GPU (MIG), which tells no utilisation; the third doesn't measure its power.
    """

    class NVMLError(Exception):
        pass

    def __init__(self, driver: bool = True) -> None:
        self._driver = driver

    def nvmlInit(self) -> None:
        if not self._driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index > 2:
            raise self.NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return {"GPU-c": 2, "GPU-a": 0}[uuid]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=10 + handle, total=80)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if handle == 2:
            raise self.NVMLError("Not Supported")
        return 350_000

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        if handle == 1:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(gpu=90 + handle)


@pytest.mark.parametrize(
    ("visible", "processes", "utilization", "problem"),
    [
        (None, 3, {0: 0.9, 2: 0.92}, "Not Supported (GPU of rank 1)"),
        (None, 1, {0: 0.9}, None),
        ("GPU-c,GPU-a", 2, {0: 0.92, 1: 0.9}, None),
        ("2", 1, {0: 0.92}, None),
        ("7", 1, {}, "Invalid Argument"),
        (None, 0, {}, None),
    ],
)
def test_devices_by_local_rank(
    visible: str | None,
    processes: int,
    utilization: dict[int, float],
    problem: str | None,
    monkeypatch: pytest.MonkeyPatch,
    state: RunState,
) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    monkeypatch.setattr(devices, "pynvml", FakeNvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    opened = devices.Devices(processes)
    assert opened.problem == problem
    server = serve_state(state, opened, 0)
    try:
        text = _get(server.server_port, "/metrics").decode()
    finally:
        server.shutdown()
        server.server_close()
    found: dict[str, dict[int, float]] = {metric.name: {} for metric in metrics.OF_DEVICES}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in found:
                found[sample.name][int(sample.labels["rank"])] = sample.value
    of_gpu = {0.9: (10, 350.0), 0.92: (12, None)}  # utilisation -> memory, power
    powers = {rank: of_gpu[share][1] for rank, share in utilization.items()}
    assert found == {
        metrics.GPU_UTILIZATION.name: utilization,
        metrics.GPU_POWER.name: {rank: power for rank, power in powers.items() if power is not None},
        metrics.GPU_DEVICE_MEMORY_USED.name: {rank: of_gpu[share][0] for rank, share in utilization.items()},
        metrics.GPU_DEVICE_MEMORY_TOTAL.name: dict.fromkeys(utilization, 80),
    }


def test_a_run_without_a_driver_says_so_once_and_trains(
    make: Callable[..., TrainingPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU here, taken for a run on one GPU."""
    from finetune_trainer import __main__ as trainer
    from finetune_trainer.stop import StopRequest

    monkeypatch.setattr(devices, "pynvml", FakeNvml(driver=False))
    monkeypatch.setattr(trainer, "Devices", lambda _: devices.Devices(1))
    plan, recorder = make(observability={"metrics_port": 0}), Recorder()
    result = trainer._run(plan, True, recorder, RunState(plan.job), StopRequest())
    assert result is not None and result.steps == 9
    assert recorder.messages("warning") == ["GPU metrics by NVML are incomplete: Driver Not Loaded"]


def test_a_run_on_the_cpu_tells_nothing_of_gpus(
    make: Callable[..., TrainingPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may see some: idle, or others'."""
    from finetune_trainer import __main__ as trainer

    opened: list[int] = []
    monkeypatch.setattr(trainer, "Devices", lambda processes: opened.append(processes) or devices.Devices(processes))
    monkeypatch.setattr("finetune_trainer.run.run_training", lambda *_: None)
    for parallelism in ({}, {"device": "cuda", "processes_per_node": 4}):
        plan = make(observability={"metrics_port": 0}, parallelism=parallelism)
        monkeypatch.setattr("finetune_trainer.distributed.join_ranks", lambda each: Ranks(0, 0, each.world_size))
        trainer._run(plan, True, Recorder(), RunState(plan.job), trainer.StopRequest())
    assert opened == [0, 4]


def test_the_real_library_tells_of_a_gpu_or_why_not() -> None:
    opened = devices.Devices(1)
    assert (0 in opened.read()[metrics.GPU_UTILIZATION]) == (opened.problem is None)
