"""Brings the output from the node's disk to ``output.destination`` in S3, and back where a later step needs it."""

import shutil
from collections.abc import Callable
from pathlib import Path

from finetune_api.plan import TrainingPlan
from finetune_api.progress import ArtifactRecord, Result
from finetune_trainer.environment import tensorboard_folder
from finetune_trainer.errors import TrainerError
from finetune_trainer.files import list_files
from finetune_trainer.report.result import is_intact, read_finished
from finetune_trainer.s3 import blame
from finetune_trainer.store import Store

_PROBE = ".finetune-probe"
_LOG_PATIENCE = 10.0
"""Seconds that logs are worth: the process may be within its grace period."""


class DeliveryError(TrainerError):
    """The artifacts are exported and couldn't be brought to their destination; the next run exports them again."""


def find_result(plan: TrainingPlan, is_main: bool) -> Result | None:
    """The result of this very run when it is finished, else None: then ``is_main`` tries whether the destination takes
    what will be brought to it.

    Raises: InvalidInputError when its server refuses that, hours before it would be missed.
    """
    destination = plan.output.destination
    if destination is None:
        return read_finished(plan)
    with blame("output.destination", destination):
        result = read_finished(plan)
        if result is None and is_main:
            store = Store(destination)
            store.write(f"{_PROBE}/{plan.job.run_id}", b"")
            store.remove(_PROBE)
    return result


def deliver_artifacts(destination: str, artifacts: tuple[ArtifactRecord, ...]) -> None:
    """Put them there in place of those of another run. Raises: DeliveryError."""
    try:
        store = Store(destination)
        for artifact in artifacts:
            store.remove(artifact.type)
            _upload(store, Path(artifact.path), artifact.type)
    except OSError as error:
        raise DeliveryError(
            f"output.destination {destination}: the artifacts can't be brought there: {error}; the next run goes on from the "
            "last checkpoint and exports them again"
        ) from error


def fetch_artifacts(plan: TrainingPlan, result: Result) -> None:
    """Have the artifacts in the output folder, as they were exported. Raises: DeliveryError."""
    destination = plan.output.destination
    if destination is None:
        return
    store, output = Store(destination), Path(plan.output.directory)
    for artifact in result.artifacts:
        if is_intact(artifact):
            continue
        shutil.rmtree(artifact.path, ignore_errors=True)
        try:
            store.do_each(lambda path: store.download(path, output / path), store.find_files(artifact.type))
        except OSError as error:
            raise DeliveryError(f"{destination}/{artifact.type} can't be read: {error}") from error
        if not is_intact(artifact):
            raise DeliveryError(f"{destination}/{artifact.type} is no longer what was brought there")


def deliver_logs(plan: TrainingPlan, warn: Callable[[str], None]) -> None:
    """Bring what trackers have written into the output folder; each process has files of its own."""
    folder = tensorboard_folder(plan)
    if plan.output.destination is None or not folder.is_dir():
        return
    try:
        _upload(Store(plan.output.destination, _LOG_PATIENCE), folder, folder.name)
    except OSError as error:
        warn(f"the logs of TensorBoard can't be brought to {plan.output.destination}: {error}")


def _upload(store: Store, folder: Path, name: str) -> None:
    store.do_each(lambda file: store.upload(file, f"{name}/{file.relative_to(folder).as_posix()}"), list_files(folder))
