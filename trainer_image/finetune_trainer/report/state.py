"""The one place that knows how far the run is. The training thread writes it, the HTTP threads read it."""

import resource
import sys
import threading
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]

from finetune_api.plan import JobIdentity
from finetune_api.progress import Progress, Stage


@dataclass(frozen=True)
class Throughput:
    """Numbers of the metrics that ``Progress`` doesn't carry."""

    tokens_seen: int = 0
    step_seconds: float | None = None


class RunState:
    """Current ``Progress`` and ``Throughput``; each read is a consistent snapshot."""

    def __init__(self, job: JobIdentity) -> None:
        self.job = job
        self._lock = threading.Lock()
        self._progress = Progress(run_id=job.run_id, stage="preparing")
        self._throughput = Throughput()

    @property
    def progress(self) -> Progress:
        with self._lock:
            return self._progress

    @property
    def throughput(self) -> Throughput:
        with self._lock:
            return self._throughput

    def set_stage(self, stage: Stage) -> None:
        """Enter a stage."""
        self.update(stage=stage)

    def update(self, **changes: Any) -> None:
        """Change fields of the progress."""
        with self._lock:
            self._progress = self._progress.model_copy(update=changes)

    def set_throughput(self, throughput: Throughput) -> None:
        """Replace the throughput."""
        with self._lock:
            self._throughput = throughput


def host_memory_bytes() -> int:
    """Resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def peak_host_memory_bytes() -> int:
    """Largest resident memory that this process had."""
    # macOS counts in bytes, Linux in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def gpu_memory_bytes() -> tuple[int, int]:
    """Device memory that this rank holds, now and at its peak; zeros without a GPU or before torch is loaded."""
    cuda = sys.modules.get("torch.cuda")
    # A scrape may come while another thread is still importing it.
    if cuda is None or not getattr(cuda, "is_initialized", bool)():
        return 0, 0
    return cuda.memory_allocated(), cuda.max_memory_allocated()
