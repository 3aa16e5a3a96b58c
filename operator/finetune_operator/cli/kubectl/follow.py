"""A job followed to its end: a progress bar on a terminal, a line a change elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from finetune_api.names import Condition, Phase
from finetune_operator.cli.kubectl.client import Kubectl, Object
from finetune_operator.cli.kubectl.view import describe_job, is_true

ENDS = (Condition.COMPLETE, Condition.FAILED, Condition.SUSPENDED)


def follow_job(kubectl: Kubectl, name: str, out: Console, ends: tuple[str, ...] = ENDS) -> Object:
    """Shows the job until one of the conditions holds; returns it as it was then."""
    with (_open_bar if out.is_terminal else _open_lines)(out) as show:
        while True:  # the API server ends a watch after a while
            for job in kubectl.watch_job(name):
                show(job)
                if any(is_true(job, type_) for type_ in ends):
                    return job


@contextmanager
def _open_bar(out: Console) -> Iterator[Callable[[Object], None]]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}")
    with Progress(*columns, console=out) as bar:
        task = bar.add_task(Phase.PENDING, total=None, numbers="")

        def show(job: Object) -> None:
            status = job.get("status") or {}
            progress = status.get("progress") or {}
            phase, _, text = describe_job(job).partition(": ")
            numbers = text.partition(", ")[2] if progress.get("totalSteps") else text
            bar.update(
                task,
                description=phase,
                completed=progress.get("step", 0),
                total=progress.get("totalSteps"),
                numbers=escape(numbers),
            )

        yield show


@contextmanager
def _open_lines(out: Console) -> Iterator[Callable[[Object], None]]:
    told = ""

    def show(job: Object) -> None:
        nonlocal told
        line = describe_job(job)
        if line != told:
            out.print(escape(line))
            out.file.flush()  # a pipe would hold it back
        told = line

    yield show
