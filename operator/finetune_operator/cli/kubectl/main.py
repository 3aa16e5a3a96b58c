"""``kubectl finetune``: the options of each command."""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.markup import escape
from rich.table import Table

from finetune_api.names import Condition
from finetune_operator.cli.errors import CommandError
from finetune_operator.cli.kubectl.client import RESOURCE, Kubectl, Object
from finetune_operator.cli.kubectl.follow import follow_job
from finetune_operator.cli.kubectl.view import choose_pod, is_true, list_card, list_events, pod_selector
from finetune_operator.cli.output import open_stdout

app = typer.Typer(
    name="kubectl finetune",
    help="See and steer FineTuneJobs. kubectl's flags -n/--namespace, --context, --kubeconfig and --as work everywhere.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Name = Annotated[str, typer.Argument(help="Name of the FineTuneJob.", show_default=False)]
Wait = Annotated[bool, typer.Option("--wait", "-w", help="Follow it until that is so.")]


@app.command()
def status(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Name; all of the namespace without.", show_default=False)] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it to its end with a progress bar.")] = False,
) -> None:
    """Show where jobs stand. With --watch the exit status is 1 when the job fails."""
    kubectl: Kubectl = context.obj
    if name is None:
        raise typer.Exit(kubectl.show("get", RESOURCE, "--output=wide", *(["--watch"] if watch else [])))
    job = follow_job(kubectl, name, open_stdout()) if watch else kubectl.fetch_job(name)
    _print_card(job)
    raise typer.Exit(watch and is_true(job, Condition.FAILED))


@app.command()
def logs(
    context: typer.Context,
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on while it trains.")] = False,
    tail: Annotated[int, typer.Option(help="Lines from the end; -1: all.")] = -1,
) -> None:
    """Print the log of the newest pod."""
    kubectl: Kubectl = context.obj
    pod = choose_pod(kubectl.fetch_job(name), _list_children(kubectl, "pods", name))
    flags = [f"--tail={tail}", *(["--follow"] if follow else [])]
    raise typer.Exit(kubectl.show("logs", pod["metadata"]["name"], *flags))


@app.command()
def events(context: typer.Context, name: Name) -> None:
    """Show what happened to a job, its workload and its pods, oldest first."""
    kubectl: Kubectl = context.obj
    _print_events(kubectl, kubectl.fetch_job(name))


@app.command()
def describe(context: typer.Context, name: Name) -> None:
    """Show status, spec and events of a job."""
    kubectl: Kubectl = context.obj
    job = kubectl.fetch_job(name)
    _print_card(job)
    print("\nSpec")
    print("\n".join(f"  {line}" for line in yaml.safe_dump(job["spec"], sort_keys=False).splitlines()))
    print("\nEvents")
    _print_events(kubectl, job)


@app.command()
def stop(context: typer.Context, name: Name, wait: Wait = False) -> None:
    """Suspend a job: it saves a checkpoint, and its pod ends."""
    kubectl: Kubectl = context.obj
    _require_unfinished(kubectl, name)
    kubectl.set_suspend(name, True)
    print(f"{name} stops after a checkpoint; `kubectl finetune resume {name}` goes on from there")
    if wait:
        follow_job(kubectl, name, open_stdout())


@app.command()
def resume(context: typer.Context, name: Name, wait: Wait = False) -> None:
    """Let a suspended job go on from its newest checkpoint."""
    kubectl: Kubectl = context.obj
    job = _require_unfinished(kubectl, name)
    kubectl.set_suspend(name, False)
    latest = job.get("status", {}).get("checkpoints", {}).get("latest")
    print(f"{name} goes on from {'step ' + str(latest['step']) if latest else 'the start'}")
    if wait:
        follow_job(kubectl, name, open_stdout(), (Condition.COMPLETE, Condition.FAILED))


@app.command()
def render(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Name of a FineTuneJob of the cluster.", show_default=False)] = None,
    file: Annotated[Path | None, typer.Option("--filename", "-f", help="YAML file instead; - is stdin.", show_default=False)] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="yaml or json.")] = "yaml",
) -> None:  # fmt: skip
    """Print the objects that the operator applies for a job, with default settings."""
    kubectl: Kubectl = context.obj
    from finetune_operator.cli.render import render_file, render_jobs
    from finetune_operator.spec.parse import parse_finetunejob

    if (name is None) == (file is None):
        raise typer.BadParameter("give either a name or --filename")
    if file is not None:
        render_file(file, None, None, output)
    else:
        render_jobs([parse_finetunejob(kubectl.fetch_job(name or ""))], None, output)


def _list_children(kubectl: Kubectl, kind: str, name: str) -> list[Object]:
    return kubectl.list_objects(kind, f"--selector={pod_selector(name)}")


def _require_unfinished(kubectl: Kubectl, name: str) -> Object:
    job = kubectl.fetch_job(name)
    for type_ in (Condition.COMPLETE, Condition.FAILED):
        if is_true(job, type_):
            raise CommandError(f"{name} has ended ({job['status']['phase']}): there is nothing to stop or to resume")
    return job


def _print_card(job: Object) -> None:
    out = open_stdout()
    for label, text in list_card(job, datetime.now(UTC)):
        out.print(f"[bold]{label:<12}[/]  {escape(text)}")


def _print_events(kubectl: Kubectl, job: Object) -> None:
    name = job["metadata"]["name"]
    children = {
        each["metadata"]["uid"] for kind in ("jobs.batch", "pods") for each in _list_children(kubectl, kind, name)
    }
    rows = list_events(job, children, kubectl.list_objects("events"), datetime.now(UTC))
    table = Table("AGE", "TYPE", "REASON", "OBJECT", "MESSAGE", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    open_stdout().print(table if rows else "none")


def _take_flags(arguments: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """kubectl's own flags, wherever they stand, and what is left."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in (("--namespace", "-n"), ("--context",), ("--kubeconfig",), ("--as",)):
        parser.add_argument(*flag)
    found, rest = parser.parse_known_args(arguments)
    return tuple(f"--{flag}={value}" for flag, value in vars(found).items() if value is not None), rest


def main() -> None:
    """Entry point of the console script ``kubectl-finetune``."""
    flags, rest = _take_flags(sys.argv[1:])
    try:
        app(rest, obj=Kubectl(flags))
    except (CommandError, LookupError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
