"""``finetune recommend`` and ``finetune estimate``"""

import json
import re
from pathlib import Path
from typing import Any

from rich.markup import escape

from finetune_api.memory import ASSUMED_LENGTH, GIB, Estimate, ModelShape, estimate, find_shape, list_parts, parse_shape
from finetune_api.plan import TrainingPlan
from finetune_api.presets import USABLE_SHARE, Task, recommend
from finetune_api.spec import MODEL_SOURCE_PATTERN
from finetune_operator.cli.errors import CommandError, UsageError
from finetune_operator.cli.inputs import read_jobs, read_settings
from finetune_operator.cli.output import open_stderr, open_stdout, print_data, print_objects
from finetune_operator.plan.decide import decide_plan
from finetune_operator.plan.layout import ContainerLayout, parse_source
from finetune_operator.spec.wording import format_value


def recommend_settings(model: str, gpu_memory_gib: int, gpus: int, task: Task, output: str) -> None:
    """Prints what is recommended and why, then a FineTuneJob with it; the job alone as yaml or json."""
    if not re.fullmatch(MODEL_SOURCE_PATTERN, model):
        raise UsageError(
            f"--model {model}: no source of a model; write it as a FineTuneJob does, such as hf://org/name"
        )
    found = recommend(model, gpu_memory_gib, gpus, task)
    if found is None:
        raise CommandError(_unknown_size(model))
    if not found.fits:
        needed = found.estimate.gib / USABLE_SHARE
        open_stderr().print(
            f"nothing fits {gpu_memory_gib:g} GiB a GPU: what needs the least takes {needed:.0f} GiB", style="yellow"
        )
    if output == "table":
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        table.add_column("FIELD", no_wrap=True)
        table.add_column("VALUE", no_wrap=True)
        table.add_column("REASON", overflow="fold")
        for setting in found.settings:
            value = list(setting.value) if isinstance(setting.value, tuple) else setting.value
            table.add_row(setting.field, escape(format_value(value)), escape(setting.reason))
        open_stdout().print(table, soft_wrap=False)
        _print_parts(found.estimate, gpu_memory_gib)
        print("---")
    print_objects([found.build_job()], "json" if output == "json" else "yaml")


def estimate_file(
    file: Path, settings_file: Path | None, like: str | None, gpu_memory_gib: int | None, output: str
) -> None:
    """Prints what each GPU needs for every FineTuneJob in the file, part by part."""
    settings = read_settings(settings_file)
    told: dict[str, Estimate] = {}
    for job, _ in read_jobs(file).jobs:
        plan = decide_plan(job, settings, ContainerLayout()).plan
        shape = _find_shape(like or job.spec.model.source)
        told[job.metadata.name] = estimate(shape, plan)
        if output == "table":
            open_stdout().print(f"[bold]{escape(job.metadata.name)}[/bold]  {_describe(plan, shape)}")
            _print_parts(told[job.metadata.name], gpu_memory_gib or job.spec.resources.gpu.memory_gib)
    if output != "table":
        print_data({name: {**_bytes(each), "total": each.total} for name, each in told.items()}, output)


def _bytes(estimated: Estimate) -> dict[str, int]:
    return dict(zip(Estimate._fields, estimated, strict=True))


def _describe(plan: TrainingPlan, shape: ModelShape) -> str:
    training = plan.training
    length = str(training.max_length) if training.max_length else f"{ASSUMED_LENGTH} (assumed)"
    return (
        f"{shape.parameters / 1e9:.2f}B parameters, {plan.method.type}, {plan.parallelism.strategy} on "
        f"{plan.parallelism.world_size}, {training.per_device_batch_size} x {length} tokens"
    )


def _print_parts(estimated: Estimate, gpu_memory_gib: int | None) -> None:
    out = open_stdout()
    for name, size in list_parts(estimated):
        out.print(f"  {name:<12} {size / GIB:8.2f} GiB")
    verdict = ""
    if gpu_memory_gib is not None:
        fits = estimated.gib <= USABLE_SHARE * gpu_memory_gib
        verdict = f"  {'fits' if fits else 'does not fit'} {gpu_memory_gib:g} GiB, of which 90 % are counted on"
    out.print(f"  {'total':<12} {estimated.gib:8.2f} GiB a GPU{verdict}")


def _find_shape(model: str) -> ModelShape:
    """By the config.json of a folder on this machine, else by the name. Raises CommandError."""
    shape = find_shape(model)
    if model.startswith("file://"):
        config = Path(parse_source(model).path) / "config.json"
        if config.exists():
            found: dict[str, Any] = json.loads(config.read_text())
            shape = parse_shape(found) or shape
    if shape is None:
        raise CommandError(f"{_unknown_size(model)}; --like NAME takes another model's size")
    return shape


def _unknown_size(model: str) -> str:
    return (
        f"{model}: the model's size is unknown, the name has neither a known family (such as Llama-3.1-8B) nor a size "
        "(such as 8B)"
    )
