"""What NVIDIA's library NVML tells of this run's GPUs. It asks the driver, not CUDA: training isn't touched."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pynvml  # type: ignore[import-untyped]

from finetune_api import metrics

_READINGS: dict[metrics.Metric, Callable[[Any], float]] = {
    metrics.GPU_UTILIZATION: lambda handle: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
    metrics.GPU_POWER: lambda handle: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    metrics.GPU_DEVICE_MEMORY_USED: lambda handle: pynvml.nvmlDeviceGetMemoryInfo(handle).used,
    metrics.GPU_DEVICE_MEMORY_TOTAL: lambda handle: pynvml.nvmlDeviceGetMemoryInfo(handle).total,
}


class Devices:
    """The GPUs of this node's processes: the process of local rank n trains on the n-th that CUDA shows.

    Device numbers are taken as CUDA_DEVICE_ORDER=PCI_BUS_ID gives them: CUDA's default on a node of equal GPUs.

    :param processes: how many there are; 0 for a run on the CPU, which may see GPUs of others.
    """

    def __init__(self, processes: int) -> None:
        self.problem: str | None = None
        """Why not all of them can be read."""
        self._handles: dict[int, object] = {}
        if not processes:
            return
        try:
            pynvml.nvmlInit()
            found = _find_handles(os.environ.get("CUDA_VISIBLE_DEVICES"))
        except pynvml.NVMLError as error:
            self.problem = str(error)
            return
        for rank, handle in enumerate(found[:processes]):
            try:
                _READINGS[metrics.GPU_UTILIZATION](handle)
            except pynvml.NVMLError as error:  # a part of a GPU (MIG): what is told of it may be of the whole
                self.problem = f"{error} (GPU of rank {rank})"
            else:
                self._handles[rank] = handle

    def read(self) -> dict[metrics.Metric, dict[int, float]]:
        """Metric -> local rank -> its GPU's value now; without what isn't told."""
        return {metric: self._read(reading) for metric, reading in _READINGS.items()}

    def _read(self, reading: Callable[[Any], float]) -> dict[int, float]:
        values = {}
        for rank, handle in self._handles.items():
            try:
                values[rank] = reading(handle)
            except pynvml.NVMLError:  # not every GPU measures its power; a GPU may be lost
                continue
        return values


_MOST_USED = 0.1
"""Share of a GPU's memory that the driver itself may hold before anything runs."""


def find_driver_problems(promised: int) -> Iterator[str]:
    """What is wrong with the GPUs before anything uses them, for people; ``promised`` is how many there should be."""
    import torch

    try:
        pynvml.nvmlInit()
        handles = _find_handles(os.environ.get("CUDA_VISIBLE_DEVICES"))
        driver = pynvml.nvmlSystemGetCudaDriverVersion_v2() // 1000
    except pynvml.NVMLError as error:
        yield f"resources.gpu.count promises {promised} GPUs, and NVIDIA's driver doesn't answer: {error}"
        return
    if len(handles) < promised:
        yield f"resources.gpu.count promises {promised} GPUs, and NVIDIA's driver shows {len(handles)}"
    needed = int((torch.version.cuda or "0").partition(".")[0])
    if driver < needed:
        yield f"NVIDIA's driver serves CUDA {driver}, and the trainer image needs {needed}: update the node's driver"
    for number, handle in enumerate(handles):
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        except pynvml.NVMLError:  # a part of a GPU (MIG) isn't told of
            continue
        if memory.used > _MOST_USED * memory.total:
            used, total = memory.used / 2**30, memory.total / 2**30
            yield f"GPU {number} has {used:.1f} of {total:.1f} GiB in use before anything runs: by a process that was left behind"


def _find_handles(visible: str | None) -> list[object]:
    if visible is None:
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return [
        pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
        for name in names
    ]
