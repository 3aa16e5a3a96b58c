"""Mounted into a trainer's pod, where Python runs it at its start: writes down what each optimiser step is given.

One line of JSON a micro-batch, in $ROWS_FILE with the rank's number behind it: the step that it belongs to, and a hash of its token ids.
"""

import hashlib
import importlib.abc
import importlib.util
import json
import os
import sys


class _AfterImport(importlib.abc.MetaPathFinder):
    """Wraps the Trainer once transformers has loaded it."""

    def find_spec(self, name, path, target=None):
        if name != "transformers.trainer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            _wrap(module.Trainer)

        spec.loader.exec_module = exec_module
        return spec


def _wrap(trainer_class):
    training_step = trainer_class.training_step

    def recorded(self, model, inputs, *arguments, **options):
        digest = hashlib.sha256()
        for key in sorted(inputs):
            if key.endswith("ids"):
                digest.update(inputs[key].cpu().numpy().tobytes())
        line = json.dumps({"step": self.state.global_step, "rows": digest.hexdigest()[:16]})
        with open(f"{os.environ['ROWS_FILE']}-{os.environ.get('RANK', '0')}", "a") as file:
            file.write(line + "\n")
        return training_step(self, model, inputs, *arguments, **options)

    trainer_class.training_step = recorded


if "ROWS_FILE" in os.environ:
    sys.meta_path.insert(0, _AfterImport())
