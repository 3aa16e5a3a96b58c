"""``finetune validate``"""

from pathlib import Path
from typing import Any

from rich.markup import escape

from finetune_api.errors import InvalidFineTuneJob, Problem
from finetune_operator.cli.inputs import Entry, is_finetunejob, read_entries
from finetune_operator.cli.output import open_stderr, open_stdout, print_data
from finetune_operator.spec.documents import InvalidYaml
from finetune_operator.spec.parse import parse_finetunejob


def validate_files(files: list[Path], output: str) -> int:
    """The exit status; prints every problem."""
    reports = [report for file in files for report in _validate(file)]
    invalid = [report for report in reports if report["problems"]]
    if output == "table":
        _print_problems(reports)
    else:
        print_data({"valid": bool(reports) and not invalid, "jobs": reports}, output)
    err = open_stderr()
    if not reports:
        err.print(f"no FineTuneJob in {', '.join(map(str, files))}", style="red", markup=False)
        return 1
    if invalid:
        err.print(f"{len(invalid)} of {_count(len(reports))} not valid", style="red")
        return 1
    if output == "table":
        err.print(f"{_count(len(reports))} valid", style="green")
    return 0


def _count(number: int) -> str:
    return f"{number} FineTuneJob{'s' if number > 1 else ''}"


def _validate(file: Path) -> list[dict[str, Any]]:
    try:
        entries = read_entries(file)
    except InvalidYaml as error:
        problem = {"line": error.line, "field": "", "value": None, "message": error.problem, "mend": "mend the YAML"}
        return [{"file": str(file), "line": error.line, "name": None, "problems": [problem]}]
    return [_report(entry) for entry in entries if is_finetunejob(entry.content)]


def _report(entry: Entry) -> dict[str, Any]:
    problems: list[Problem] = []
    try:
        parse_finetunejob(entry.content)
    except InvalidFineTuneJob as error:
        problems = error.problems
    metadata = entry.content.get("metadata") if isinstance(entry.content, dict) else None
    return {
        "file": entry.file,
        "line": entry.find_line(""),
        "name": metadata.get("name") if isinstance(metadata, dict) else None,
        "problems": [
            {"line": entry.find_line(each.field), "field": each.field, "value": each.value, "message": each.message, "mend": each.mend}
            for each in problems
        ],
    }  # fmt: skip


def _print_problems(reports: list[dict[str, Any]]) -> None:
    """One line a problem, as compilers do: editors and CI systems find the place."""
    out = open_stdout()
    for report in reports:
        for each in report["problems"]:
            problem = Problem(each["field"], each["value"], each["message"], each["mend"])
            text = escape(str(problem)) if problem.field else escape(f"{problem.message}; {problem.mend}")
            out.print(f"[bold]{escape(report['file'])}:{each['line']}:[/bold] {text}")
