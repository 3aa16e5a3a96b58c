"""Whether the machines are what the job was promised, before model and data are loaded onto them."""

import glob
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from finetune_api import names
from finetune_api.exit_codes import ExitCode
from finetune_api.plan import PreflightPlan, TrainingPlan
from finetune_trainer.distributed import Ranks
from finetune_trainer.errors import PeerLostError, TrainerError
from finetune_trainer.report.devices import find_driver_problems
from finetune_trainer.report.terminal import Terminal

RDMA_DEVICES = "/dev/infiniband/uverbs*"
MOST_SKEW_SECONDS = 10.0
"""Between two nodes' clocks; tokens, certificates and S3's signatures are good for minutes."""
_ROUNDS = 5
_REDUCED_BYTES = {"cuda": 256 * 2**20, "cpu": 16 * 2**20}
"""Of one all-reduce: long enough that the latency doesn't count."""


class PreflightError(TrainerError):
    """A machine or the network between them isn't what was promised; the message names each thing."""

    code = ExitCode.PREFLIGHT_FAILED


def check_machine(plan: TrainingPlan) -> None:
    """This node by itself, before its processes are started. Raises: PreflightError."""
    if plan.preflight is not None:
        _require([*_find_missing(plan.preflight, "/dev/shm"), *_find_full_disks(plan, plan.preflight)])


def check_network(plan: TrainingPlan, ranks: Ranks, terminal: Terminal) -> None:
    """The nodes together: their clocks, and how fast all ranks reduce. Every rank has to call it, and all fail together.

    Raises: PreflightError on the first node; PeerLostError on the others, so that one failure is counted as one.
    """
    if plan.preflight is None or ranks.control is None:
        return
    problems = [*_find_skew(ranks)]
    bandwidth = measure_bus_bandwidth(ranks, plan.parallelism.device)
    terminal.event(
        "preflight", f"all-reduce at {bandwidth / 1e9:.2f} GB/s (bus bandwidth)", busBandwidth=round(bandwidth)
    )
    least = plan.preflight.bus_bandwidth
    if least is not None and bandwidth < least:
        problems.append(
            f"{ranks.world_size} ranks reduce at {bandwidth / 1e9:.2f} GB/s, preflight.minBusBandwidth wants "
            f"{least / 1e9:.2f}: look at the fabric (network.fabric, network.rdma), or lower it"
        )
    if problems and ranks.rank >= plan.parallelism.processes_per_node:
        raise PeerLostError("; ".join(problems))
    _require(problems)


def measure_bus_bandwidth(ranks: Ranks, device: str) -> float:
    """Bytes a second over each rank's link in an all-reduce, the best of a few; the same figure on every rank.

    Bus bandwidth as NCCL's tests define it (nccl-tests, doc/PERFORMANCE.md): 2 (n - 1) / n x bytes / seconds, which doesn't
    depend on the number n of ranks.
    """
    import torch
    import torch.distributed as dist

    size = _REDUCED_BYTES[device]
    data = torch.zeros(size // 4, device=f"cuda:{ranks.local_rank}" if device == "cuda" else "cpu")
    best = float("inf")
    for round_ in range(_ROUNDS + 1):
        ranks.barrier()
        began = time.perf_counter()
        dist.all_reduce(data)
        if device == "cuda":
            torch.cuda.synchronize()
        if round_:  # connections are made in the first
            best = min(best, time.perf_counter() - began)
    seconds = max(ranks.gather(best))
    return 2 * (ranks.world_size - 1) / ranks.world_size * size / seconds


def _find_missing(promised: PreflightPlan, shared_memory: str) -> Iterator[str]:
    if promised.gpus:
        yield from find_driver_problems(promised.gpus)
    place = os.statvfs(shared_memory)
    if place.f_blocks * place.f_frsize < promised.shared_memory_bytes:
        yield (
            f"{shared_memory} has {_gib(place.f_blocks * place.f_frsize)}, resources.sharedMemory promises "
            f"{_gib(promised.shared_memory_bytes)}: the node has too little memory, or resources.memory is less"
        )
    if promised.rdma and not glob.glob(RDMA_DEVICES):
        yield f"network.rdma asks for a device, and there is no {RDMA_DEVICES}: look at the node's RDMA device plugin"


def _find_full_disks(plan: TrainingPlan, promised: PreflightPlan) -> Iterator[str]:
    if promised.free_disk_bytes is None:
        return
    for folder in dict.fromkeys((plan.output.directory, plan.checkpoint.folder)):
        there = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
        place = os.statvfs(there)
        free = place.f_bavail * place.f_frsize
        if free < promised.free_disk_bytes:
            wanted = _gib(promised.free_disk_bytes)
            yield f"{folder} has {_gib(free)} free, preflight.minFreeDisk wants {wanted}: make room, or lower it"


def _find_skew(ranks: Ranks) -> Iterator[str]:
    ranks.barrier()
    clocks = ranks.gather((time.time(), _name_node()))
    (first, early), (last, late) = min(clocks), max(clocks)
    if last - first > MOST_SKEW_SECONDS:
        yield f"the clock of {late} is {last - first:.0f} s before that of {early}: look at their time synchronisation"


def _require(problems: list[str]) -> None:
    if problems:
        raise PreflightError(f"preflight on node {_name_node()}: " + "; ".join(problems))


def _name_node() -> str:
    return os.environ.get(names.ENV_NODE_NAME) or socket.gethostname()


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
