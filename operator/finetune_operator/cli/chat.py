"""``finetune chat``"""

import importlib.util
import subprocess
import sys

from finetune_operator.cli.errors import CommandError

_NEEDED = ("finetune_trainer", "torch", "transformers", "peft")


def hold_chat(model: str, adapters: list[str], max_tokens: int) -> int:
    """The exit status of the process that holds the model; it has this terminal."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise CommandError(
            f"the trainer is not installed here ({', '.join(missing)} missing): install finetune-operator[trainer]"
        )
    options = [option for adapter in adapters for option in ("--adapter", adapter)]
    command = [sys.executable, "-m", "finetune_trainer.chat", "--model", model, "--max-tokens", str(max_tokens)]
    try:
        return subprocess.run([*command, *options], check=False).returncode
    except KeyboardInterrupt:
        return 130
