"""Names of the trainer's Prometheus metrics: the trainer exports them, dashboards and alert rules are generated from them."""

from typing import Literal, NamedTuple

PREFIX = "finetune_"
LABELS = ("namespace", "job", "pod", "rank")


class Metric(NamedTuple):
    """One exported series; ``name`` carries the prefix and the unit."""

    name: str
    kind: Literal["gauge", "counter"]
    description: str


LOSS = Metric("finetune_loss", "gauge", "Training loss, mean over the steps since the last log.")
EVAL_LOSS = Metric("finetune_eval_loss", "gauge", "Loss on the validation data at the last evaluation.")
LEARNING_RATE = Metric("finetune_learning_rate", "gauge", "Learning rate of the last step.")
GRAD_NORM = Metric("finetune_grad_norm", "gauge", "L2 norm of the gradient before clipping, last step logged.")
TOKENS_SEEN = Metric(
    "finetune_tokens_seen_total", "counter", "Non-padding input tokens trained on by all ranks, resumed part included."
)
TOKENS_PER_SECOND = Metric(
    "finetune_tokens_per_second",
    "gauge",
    "Non-padding input tokens per second over the steps since the last log, all ranks.",
)
STEP_SECONDS = Metric(
    "finetune_step_seconds", "gauge", "Mean wall time of one optimiser step since the last log, seconds."
)
STEP = Metric("finetune_step", "gauge", "Optimiser steps done.")
TOTAL_STEPS = Metric("finetune_total_steps", "gauge", "Optimiser steps of the whole run.")
EPOCH = Metric("finetune_epoch", "gauge", "Epochs done, fractional.")
PROGRESS = Metric("finetune_progress_ratio", "gauge", "Share of the steps done, 0 to 1.")
HOST_MEMORY = Metric("finetune_host_memory_bytes", "gauge", "Resident memory of the trainer process.")
HOST_MEMORY_PEAK = Metric("finetune_host_memory_peak_bytes", "gauge", "Peak resident memory of the trainer process.")
GPU_MEMORY = Metric("finetune_gpu_memory_bytes", "gauge", "Device memory allocated by this rank.")
GPU_MEMORY_PEAK = Metric("finetune_gpu_memory_peak_bytes", "gauge", "Peak device memory allocated by this rank.")
GPU_UTILIZATION = Metric(
    "finetune_gpu_utilization_ratio", "gauge", "Share of the last second in which a kernel ran on the GPU, by NVML."
)
GPU_POWER = Metric("finetune_gpu_power_watts", "gauge", "Power that the GPU draws, by NVML.")
GPU_DEVICE_MEMORY_USED = Metric(
    "finetune_gpu_device_memory_used_bytes", "gauge", "Memory of the GPU in use by all processes, by NVML."
)
GPU_DEVICE_MEMORY_TOTAL = Metric("finetune_gpu_device_memory_total_bytes", "gauge", "Memory of the GPU, by NVML.")
CHECKPOINT_STEP = Metric("finetune_checkpoint_step", "gauge", "Step of the newest complete checkpoint.")

OF_DEVICES = (GPU_UTILIZATION, GPU_POWER, GPU_DEVICE_MEMORY_USED, GPU_DEVICE_MEMORY_TOTAL)
"""One sample for each GPU of the pod; rank is that of the process that trains on it. Absent without NVML."""

ALL: tuple[Metric, ...] = (
    LOSS, EVAL_LOSS, LEARNING_RATE, GRAD_NORM, TOKENS_SEEN, TOKENS_PER_SECOND, STEP_SECONDS, STEP, TOTAL_STEPS, EPOCH,
    PROGRESS, HOST_MEMORY, HOST_MEMORY_PEAK, GPU_MEMORY, GPU_MEMORY_PEAK, CHECKPOINT_STEP, *OF_DEVICES,
)  # fmt: skip
