"""``finetune render``"""

from pathlib import Path

from finetune_api.spec import FineTuneJob
from finetune_operator.cli.explain import explain_job
from finetune_operator.cli.inputs import read_jobs, read_settings
from finetune_operator.cli.output import open_stdout, print_data, print_objects
from finetune_operator.manifests.build import build_manifests
from finetune_operator.plan.decide import decide_plan
from finetune_operator.plan.layout import ContainerLayout
from finetune_operator.spec.wording import format_value


def render_file(file: Path, settings_file: Path | None, namespace: str | None, output: str) -> None:
    """Prints the objects of every FineTuneJob in the file."""
    render_jobs([job for job, _ in read_jobs(file, namespace).jobs], settings_file, output)


def render_jobs(jobs: list[FineTuneJob], settings_file: Path | None, output: str) -> None:
    """Prints the objects of each of them."""
    settings, layout = read_settings(settings_file), ContainerLayout()
    objects = []
    for job in jobs:
        objects += build_manifests(job, decide_plan(job, settings, layout), settings, layout)
    print_objects(objects, output)


def explain_file(file: Path, settings_file: Path | None, namespace: str | None, output: str) -> None:
    """Prints, for every field of every FineTuneJob in the file, its value, where it came from and why."""
    settings = read_settings(settings_file)
    explained = {
        job.metadata.name: explain_job(
            job, entry.content["spec"], decide_plan(job, settings, ContainerLayout()), settings
        )
        for job, entry in read_jobs(file, namespace).jobs
    }
    if output != "table":
        print_data(
            {
                name: [
                    {"field": row.path, "value": row.value, "from": row.origin, "reason": row.reason} for row in rows
                ]
                for name, rows in explained.items()
            },
            output,
        )
        return
    from rich.table import Table

    styles = {"you": "bold green", "platform": "cyan", "derived": "yellow", "default": "dim"}
    for name, rows in explained.items():
        table = Table(box=None, title=name if len(explained) > 1 else None, title_justify="left", pad_edge=False)
        table.add_column("FIELD", no_wrap=True)
        table.add_column("VALUE", overflow="fold", max_width=48)
        table.add_column("FROM", no_wrap=True)
        table.add_column("REASON", overflow="fold")
        for row in rows:
            value = "-" if row.value is None else format_value(row.value)
            short = value if len(value) <= 200 else f"{value[:197]}..."
            table.add_row(
                *(_plain(each) for each in (row.path, short)),
                f"[{styles[row.origin]}]{row.origin}[/]",
                _plain(row.reason),
            )
        open_stdout().print(table, soft_wrap=False)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text.replace("\n", "\\n"))
