"""What a person or a log collector sees on stderr: a progress bar, or one JSON object a line."""

import json
import os
import sys
from datetime import UTC, datetime
from typing import Any, Protocol

from finetune_api import names
from finetune_api.progress import Progress


class Terminal(Protocol):
    """Where events go."""

    def event(self, name: str, message: str, **fields: Any) -> None:
        """Something happened once."""

    def progress(self, progress: Progress) -> None:
        """The run went on."""

    def close(self) -> None:
        """No more will come."""


class JsonTerminal:
    """One JSON object a line, for pods and pipes."""

    def event(self, name: str, message: str, **fields: Any) -> None:
        self._write({"event": name, "message": message, **fields})

    def progress(self, progress: Progress) -> None:
        known = {key: value for key, value in progress.model_dump(by_alias=True).items() if value is not None}
        self._write({"event": "progress", **known})

    def close(self) -> None:
        """Nothing is held back."""

    def _write(self, record: dict[str, Any]) -> None:
        print(json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **record}), file=sys.stderr)
        sys.stderr.flush()


class RichTerminal:
    """A progress bar with loss, validation loss, learning rate, tokens/s and time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
        )
        self._task = self._bar.add_task("preparing", total=None, numbers="")
        self._bar.start()

    def event(self, name: str, message: str, **fields: Any) -> None:
        from rich.markup import escape

        style = {"warning": "yellow", "failed": "bold red"}.get(name, "dim")
        self._console.print(f"[{style}]{escape(message)}[/]", highlight=False)

    def progress(self, progress: Progress) -> None:
        numbers = [
            f"loss {progress.loss:.4f}" if progress.loss is not None else "",
            f"eval {progress.eval_loss:.4f}" if progress.eval_loss is not None else "",
            f"lr {progress.learning_rate:.2e}" if progress.learning_rate is not None else "",
            f"{progress.tokens_per_second:,.0f} tok/s" if progress.tokens_per_second is not None else "",
            f"{_duration(progress.eta_seconds)} left" if progress.eta_seconds is not None else "",
        ]
        self._bar.update(
            self._task,
            description=progress.stage,
            completed=progress.step,
            total=progress.total_steps or None,
            numbers="  ".join(number for number in numbers if number),
        )

    def close(self) -> None:
        self._bar.stop()


class SilentTerminal:
    """For ranks that aren't rank 0: they only speak through their termination message."""

    def event(self, name: str, message: str, **fields: Any) -> None:
        """Rank 0 says it."""

    def progress(self, progress: Progress) -> None:
        """Rank 0 shows it."""

    def close(self) -> None:
        """Nothing is open."""


def open_terminal(is_main: bool) -> Terminal:
    """The terminal that fits this process's stderr."""
    if not is_main:
        return SilentTerminal()
    if sys.stderr.isatty() and os.environ.get(names.ENV_LOG_FORMAT) != "json":
        return RichTerminal()
    return JsonTerminal()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
