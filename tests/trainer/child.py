"""What runs in a trainer process of the tests: the trainer's own main, with a fault at a chosen place."""

import errno
import os
import signal
import sys
from pathlib import Path
from typing import Any

PRELOADED = [
    "tests.trainer.child",
    "finetune_trainer.run",
    "deepspeed",
    *(f"finetune_trainer.objective.{name}" for name in ("sft", "dpo", "orpo", "kto", "reward", "grpo", "rloo", "ppo")),
]
"""What the fork server of trainer processes imports, once: each is forked from it."""


def run_child(
    plan_file: Path,
    log: Path,
    environment: dict[str, str],
    kill_after_step: int | None = None,
    sigterm_at_event: str | None = None,
    sigterm_after_step: int | None = None,
    kill_before_marker: int | None = None,
    kill_before_publish: bool = False,
    full_from_step: int | None = None,
) -> None:
    """Run the plan and exit with the trainer's code.

    The faults are SIGKILL to itself: behind a step's end before it is logged or saved, between a checkpoint's files
    and its marker, or between an artifact's files and its rename. Or SIGTERM, where it says an event or ends a step: from
    outside, the run could be somewhere else by the time it comes. Or the store has no space for checkpoints from a step on.
    """
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)

    import torch

    from finetune_trainer.__main__ import main
    from finetune_trainer.checkpoint.keeper import Keeper
    from finetune_trainer.export import artifacts
    from finetune_trainer.report.callback import ReportCallback
    from finetune_trainer.report.terminal import JsonTerminal

    torch.set_num_threads(1)
    on_step_end, complete, publish = ReportCallback.on_step_end, Keeper._complete, artifacts._publish
    say = JsonTerminal.event

    def be_told_at_event(self: Any, name: str, message: str, **fields: Any) -> None:
        say(self, name, message, **fields)
        if name == sigterm_at_event:
            os.kill(os.getpid(), signal.SIGTERM)

    def end_after_step(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == kill_after_step:
            os.kill(os.getpid(), signal.SIGKILL)
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == sigterm_after_step:
            os.kill(os.getpid(), signal.SIGTERM)

    def die_before_marker(self: Any, marker: Any) -> None:
        if full_from_step is not None and marker.step >= full_from_step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if marker.step == kill_before_marker:
            os.kill(os.getpid(), signal.SIGKILL)
        complete(self, marker)

    def die_before_publish(*arguments: Any) -> Any:
        if kill_before_publish:
            os.kill(os.getpid(), signal.SIGKILL)
        return publish(*arguments)

    ReportCallback.on_step_end = end_after_step  # type: ignore[method-assign]
    Keeper._complete = die_before_marker  # type: ignore[method-assign]
    artifacts._publish = die_before_publish
    JsonTerminal.event = be_told_at_event  # type: ignore[method-assign]
    sys.exit(main(["--plan", str(plan_file)]))
