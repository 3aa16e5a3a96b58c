"""What NVIDIA's library NVML tells of this run's GPUs. It asks the driver, not CUDA: training isn't touched."""

import os
from collections.abc import Callable
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


def _find_handles(visible: str | None) -> list[object]:
    if visible is None:
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return [
        pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
        for name in names
    ]
