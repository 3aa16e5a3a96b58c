"""What NVIDIA's management library (NVML) tells of this pod's GPUs. It asks the driver, not CUDA: training isn't touched."""

import os
from typing import NamedTuple

import pynvml  # type: ignore[import-untyped]


class DeviceSample(NamedTuple):
    """One GPU now."""

    utilization: float
    """0 to 1: share of the driver's last sample period in which a kernel ran."""
    memory_used: int
    """Bytes, of all processes."""
    memory_total: int
    """Bytes."""


class Devices:
    """The GPUs that CUDA shows to this process, in its order: the process of local rank n trains on the n-th.

    None where there is no driver. Device numbers are taken as CUDA_DEVICE_ORDER=PCI_BUS_ID gives them, which on a node
    of equal GPUs is CUDA's default.
    """

    def __init__(self) -> None:
        try:
            pynvml.nvmlInit()
            self._handles = _find_handles(os.environ.get("CUDA_VISIBLE_DEVICES"))
        except pynvml.NVMLError:
            self._handles = []

    def read(self) -> dict[int, DeviceSample]:
        """Local rank -> its GPU; without those that don't tell (parts of one by MIG)."""
        samples = {}
        for rank, handle in enumerate(self._handles):
            try:
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                percent = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
            except pynvml.NVMLError:
                continue
            samples[rank] = DeviceSample(percent / 100, memory.used, memory.total)
        return samples


def _find_handles(visible: str | None) -> list[object]:
    if visible is None:
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return [
        pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
        for name in names
    ]
