"""Makes a checkpoint that the Trainer has written complete: brings it to where it is kept, and writes the marker last."""

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_api.plan import TrainingPlan
from finetune_trainer.checkpoint.marker import MARKER_NAME, FileRecord, Marker
from finetune_trainer.checkpoint.resume import name_checkpoint, read_marker, rotate_checkpoints
from finetune_trainer.distributed import Ranks
from finetune_trainer.files import list_files, sync_folder
from finetune_trainer.store import Store

_LEAST_PRIORITY = 19
"""Of a save in the background: where all cores are busy with the training, it waits for them."""


@dataclass(frozen=True)
class _Brought:
    """What one node's ranks wrote, or why it can't be kept."""

    files: tuple[FileRecord, ...] = ()
    problem: str | None = None


class Keeper:
    """One checkpoint after the other. Each node's first rank brings what the node's ranks wrote, rank 0 completes it.

    ``kept`` is told the step of a checkpoint once it is complete, on rank 0, from whatever thread that is.
    """

    def __init__(self, plan: TrainingPlan, ranks: Ranks, kept: Callable[[int], None]) -> None:
        self._plan = plan
        self._ranks = ranks
        self._kept = kept
        self._store = Store(plan.checkpoint.directory)
        self._thread: threading.Thread | None = None
        self.problem: str | None = None
        """Why a checkpoint couldn't be kept, on rank 0."""

    def folder(self, step: int) -> Path:
        """Where the Trainer writes the checkpoint of a step."""
        return Path(self._plan.checkpoint.folder) / name_checkpoint(step)

    def clear(self, step: int) -> None:
        """Remove what an earlier run left in the place of this checkpoint, on every node."""
        self.wait()
        if self._ranks.is_local_main:
            shutil.rmtree(self.folder(step), ignore_errors=True)
        if self._ranks.is_main and self._plan.checkpoint.staging is not None:
            self._store.remove(name_checkpoint(step))

    def keep(self, marker: Marker, best_step: int | None, at_once: bool) -> None:
        """Complete the checkpoint of ``marker.step``, whose ranks have all written their files.

        With ``checkpoint.async`` and not ``at_once`` that goes on while the training does. A failure is a ``problem``.
        """
        if not self._ranks.is_local_main:
            return
        in_background = self._plan.checkpoint.asynchronous and not at_once
        self._thread = threading.Thread(
            target=self._keep, args=(marker, best_step, in_background), name="checkpoint", daemon=True
        )
        self._thread.start()
        if not in_background:
            self.wait()

    def wait(self) -> None:
        """Until nothing is under way on this node."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def amend(self, marker: Marker, name: str, write: Callable[[str], None]) -> None:
        """Have ``write``, given a path, write one file of a complete checkpoint anew; on rank 0."""
        self.wait()
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / name
            write(str(file))
            new = self._store.upload(file, f"{name_checkpoint(marker.step)}/{name}")
        old = read_marker(self._store, marker.step).files
        files = tuple(new.model_copy(update={"path": name}) if record.path == name else record for record in old)
        self._complete(marker.model_copy(update={"files": files}))

    def _keep(self, marker: Marker, best_step: int | None, in_background: bool) -> None:
        if in_background and sys.platform == "linux":  # which has a priority for each thread
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST_PRIORITY)
        brought = self._ranks.gather_nodes(self._bring(marker.step))
        if not self._ranks.is_main:
            return
        problems = [node.problem for node in brought if node.problem is not None]
        try:
            if problems:
                raise OSError(problems[0])
            # A file that several nodes have is rank 0's.
            files = {record.path: record for node in reversed(brought) for record in node.files}
            self._complete(marker.model_copy(update={"files": tuple(files[path] for path in sorted(files))}))
            rotate_checkpoints(self._store, self._plan, marker.step, best_step)
        except OSError as error:
            self.problem = f"the checkpoint of step {marker.step} can't be kept in {self._store.uri}: {error}"
            return
        self._kept(marker.step)

    def _bring(self, step: int) -> _Brought:
        folder, name = self.folder(step), name_checkpoint(step)
        try:
            if self._plan.checkpoint.staging is None:
                sync_folder(folder)
                measure = self._store.inspect
                records = [measure(f"{name}/{path}") for path in _list(folder)] if self._ranks.is_main else []
            else:
                upload = self._store.upload
                records = self._store.do_each(lambda path: upload(folder / path, f"{name}/{path}"), _list(folder))
                for done in folder.parent.glob("checkpoint-*"):  # and the one that was resumed from
                    shutil.rmtree(done)
        except OSError as error:
            return _Brought(problem=str(error))
        return _Brought(tuple(r.model_copy(update={"path": r.path.removeprefix(f"{name}/")}) for r in records))

    def _complete(self, marker: Marker) -> None:
        self._store.write(f"{name_checkpoint(marker.step)}/{MARKER_NAME}", marker.to_json())


def _list(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in list_files(folder) if path.name != MARKER_NAME]
