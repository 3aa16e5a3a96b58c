"""``finetune``: the options of each command. What a command does stands in its module, loaded when it runs."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from finetune_operator.cli.errors import CommandError

app = typer.Typer(
    name="finetune",
    help="Check, render and run FineTuneJobs without a cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Output(StrEnum):
    """Formats of what is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class ObjectOutput(StrEnum):
    """Formats of Kubernetes objects."""

    YAML = "yaml"
    JSON = "json"


class Task(StrEnum):
    """What the model is to learn."""

    CHAT = "chat"
    CODE = "code"
    CLASSIFICATION = "classification"
    REASONING = "reasoning"


data = typer.Typer(help="Look at training data.", no_args_is_help=True)
app.add_typer(data, name="data")

File = typer.Argument(help="YAML file; - is stdin.", show_default=False)
SettingsFile = Annotated[
    Path | None,
    typer.Option("--settings", help="The operator's settings, for the platform's defaults.", show_default=False),
]  # fmt: skip


@app.command()
def validate(
    files: Annotated[list[Path], File],
    output: Annotated[Output, typer.Option("--output", "-o", help="Format of the report.")] = Output.TABLE,
) -> None:
    """Say everything that is wrong with the FineTuneJobs in FILES: where, which field, which value, and the mend.

    Objects of other kinds are left alone. Exit status: 0 all are valid, 1 one is not, 2 usage.
    """
    from finetune_operator.cli.validate import validate_files

    raise typer.Exit(validate_files(files, output.value))


@app.command()
def render(
    file: Annotated[Path, typer.Option("--filename", "-f", help="YAML file; - is stdin.", show_default=False)],
    settings: SettingsFile = None,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace of jobs that name none.", show_default="default")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show every field's value and where it came from instead.")] = False,
    output: Annotated[Output | None, typer.Option("--output", "-o", help="Format; table only with --explain.", show_default="yaml, with --explain table")] = None,
) -> None:  # fmt: skip
    """Print exactly the objects that the operator would apply for the FineTuneJobs in a file."""
    from finetune_operator.cli.render import explain_file, render_file

    if explain:
        explain_file(file, settings, namespace, (output or Output.TABLE).value)
    elif output is Output.TABLE:
        raise typer.BadParameter("table needs --explain", param_hint="--output")
    else:
        render_file(file, settings, namespace, (output or Output.YAML).value)


@app.command()
def run(
    file: Annotated[Path, File],
    output_dir: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="finetune-runs/<name>")] = None,
    claim: Annotated[list[str] | None, typer.Option(metavar="NAME=DIR", help="Folder that stands for a PersistentVolumeClaim; repeatable.", show_default=False)] = None,
    settings: SettingsFile = None,
) -> None:  # fmt: skip
    """Train here: the rendered command with the rendered environment as a local process.

    Run again, it goes on from its last checkpoint; a changed job or dataset is a new run. ConfigMaps are taken from the
    same file, secrets from environment variables of the name that the trainer gets. Exit status: the trainer's.
    """
    from finetune_operator.cli.run import run_file

    raise typer.Exit(run_file(file, output_dir, claim or [], settings))


@app.command()
def recommend(
    model: Annotated[str, typer.Option("--model", help="Model, such as hf://Qwen/Qwen3-8B; its size is taken from its name.", show_default=False)],
    gpu_memory: Annotated[int, typer.Option("--gpu-memory", metavar="GIB", min=1, help="Memory of one GPU in GiB.", show_default=False)],
    gpus: Annotated[int, typer.Option("--gpus", min=1, max=16, help="GPUs.")] = 1,
    task: Annotated[Task, typer.Option("--task", help="What the model is to learn.")] = Task.CHAT,
    output: Annotated[Output, typer.Option("--output", "-o", help="table: reasons, then the FineTuneJob; else only that.")] = Output.TABLE,
) -> None:  # fmt: skip
    """Recommend settings that fit the GPUs, each with its reason, and print a FineTuneJob with them."""
    from finetune_operator.cli.recommend import recommend_settings

    recommend_settings(model, gpu_memory, gpus, task.value, output.value)


@app.command()
def estimate(
    file: Annotated[Path, File],
    like: Annotated[str | None, typer.Option("--like", metavar="NAME", help="Take the size of this model, for one whose name doesn't say it.", show_default=False)] = None,
    gpu_memory: Annotated[int | None, typer.Option("--gpu-memory", metavar="GIB", min=1, help="Say whether it fits.", show_default="resources.gpu.memoryGiB")] = None,
    settings: SettingsFile = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="Format; json and yaml in bytes.")] = Output.TABLE,
) -> None:  # fmt: skip
    """Estimate the memory that each GPU needs for the FineTuneJobs in a file, part by part."""
    from finetune_operator.cli.recommend import estimate_file

    estimate_file(file, settings, like, gpu_memory, output.value)


@data.command()
def preview(
    file: Annotated[Path, typer.Argument(help="FineTuneJob (.yaml), or a data file with --model.", show_default=False)],
    rows: Annotated[int, typer.Option("--rows", min=1, max=1000, help="Rows shown.")] = 3,
    model: Annotated[str | None, typer.Option("--model", help="Model whose tokenizer and chat template encode a data file.", show_default=False)] = None,
    claim: Annotated[list[str] | None, typer.Option(metavar="NAME=DIR", help="Folder that stands for a PersistentVolumeClaim; repeatable.", show_default=False)] = None,
    settings: SettingsFile = None,
) -> None:  # fmt: skip
    """Show rows as the model sees them: decoded tokens, those that it learns from marked."""
    from finetune_operator.cli.data import preview_file

    raise typer.Exit(preview_file(file, rows, model, claim or [], settings))


@app.command()
def chat(
    model: Annotated[str, typer.Option("--model", help="Folder of a model, or its id on the hub.", show_default=False)],
    adapter: Annotated[list[str] | None, typer.Option(metavar="NAME=FOLDER", help="Adapter of that model; repeatable, the first one answers.", show_default=False)] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Most new tokens of an answer.")] = 256,
) -> None:  # fmt: skip
    """Talk to a model here, and switch between its adapters without loading anything again.

    /adapter NAME switches, /base disables adapters, /new forgets the conversation, /quit ends.
    """
    from finetune_operator.cli.chat import hold_chat

    raise typer.Exit(hold_chat(model, adapter or [], max_tokens))


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as read_version

    try:
        print(f"finetune {read_version('finetune-operator')}")
    except PackageNotFoundError:  # run from a checkout by PYTHONPATH
        print("finetune (not installed)")


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)


if __name__ == "__main__":
    main()
