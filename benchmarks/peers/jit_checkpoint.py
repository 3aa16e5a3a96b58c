"""The plain TRL script of ``plain_trl`` with transformers' own just-in-time checkpoint: on SIGTERM it saves, and goes on when started again.

python -m benchmarks.peers.jit_checkpoint MODEL ROWS STEPS FOLDER
"""

import json
import sys
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from benchmarks.peers.plain_trl import build_trainer


class Announcer(TrainerCallback):  # type: ignore[misc]
    """Prints each step as it ends."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        print(json.dumps({"step": state.global_step}), flush=True)


def main(model: str, rows: str, steps: str, folder: str) -> None:
    own = {"per_device_train_batch_size": 2, "enable_jit_checkpoint": True}
    trainer = build_trainer(model, rows, steps, folder, Announcer(), **own)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
