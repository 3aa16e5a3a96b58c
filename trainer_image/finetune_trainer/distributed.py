"""The ranks of one run: who this process is, and the few things they decide together."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from finetune_api.plan import ParallelismPlan
from finetune_trainer.errors import InvalidInputError

T = TypeVar("T")

_WAIT = timedelta(hours=24)
"""How long a rank waits for another one that downloads, tokenises or hashes. NCCL's own timeout of minutes would end
the run, so these waits go over a gloo group of their own."""


@dataclass(frozen=True)
class Ranks:
    """This process among the run's processes."""

    rank: int
    local_rank: int
    world_size: int
    control: Any = None
    """gloo process group; None when alone."""
    between_nodes: Any = None
    """gloo process group of each node's first rank, for what goes on beside the training; None on one node."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_local_main(self) -> bool:
        return self.local_rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.any(False)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` holds on some rank; every rank gets the same answer."""
        return self.vote(flag)[0]

    def vote(self, *flags: bool) -> tuple[bool, ...]:
        """Which of the flags hold on some rank, in one collective."""
        if self.control is None:
            return flags
        import torch
        import torch.distributed as dist

        votes = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.control)
        return tuple(map(bool, votes.tolist()))

    def share(self, value: T) -> T:
        """Rank 0's ``value``, on every rank."""
        if self.control is None:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Each rank's ``value``, in their order, on every rank."""
        if self.control is None:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def gather_nodes(self, value: T) -> list[T]:
        """The ``value`` of each node's first rank, in their order; only these may call it, and only rank 0 gets them."""
        if self.between_nodes is None:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * dist.get_world_size(self.between_nodes)
        dist.gather_object(value, values if self.is_main else None, dst=0, group=self.between_nodes)
        return values


def join_ranks(parallelism: ParallelismPlan) -> Ranks:
    """Join the process group that the environment names, and hold the world size against the plan.

    Raises: InvalidInputError when the number of processes isn't the plan's, or it wants a GPU and there is none.
    """
    import torch
    from accelerate import PartialState

    if parallelism.device == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError(
            "the plan wants device cuda, and this machine has no usable NVIDIA GPU: run it on a node with one, or set "
            "resources.gpu.count: 0 to train on the CPU"
        )
    if parallelism.strategy == "fsdp" and parallelism.device == "cuda":
        # What FSDP offloads is reduced where it lies, on the host.
        torch.distributed.init_process_group("cuda:nccl,cpu:gloo")
    state = PartialState(cpu=parallelism.device == "cpu")
    world_size = state.num_processes
    _require_size(parallelism, world_size)
    if parallelism.deepspeed is not None:
        import deepspeed

        # On the CPU it would compile an all-reduce of its own at every first start; gloo's serves.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # Before the model: ZeRO-3 shares the weights out while they are loaded.
        deepspeed.init_distributed("nccl" if parallelism.device == "cuda" else "gloo")
    if world_size == 1:
        return Ranks(rank=0, local_rank=0, world_size=1)
    control = torch.distributed.new_group(backend="gloo", timeout=_WAIT)
    local_ranks: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(local_ranks, state.local_process_index, group=control)
    firsts = [rank for rank, local_rank in enumerate(local_ranks) if local_rank == 0]
    between_nodes = None
    if len(firsts) > 1:
        between_nodes = torch.distributed.new_group(firsts, backend="gloo", timeout=_WAIT)
    return Ranks(state.process_index, state.local_process_index, world_size, control, between_nodes)


def _require_size(parallelism: ParallelismPlan, world_size: int) -> None:
    nodes, processes = parallelism.nodes, parallelism.processes_per_node
    fewest = nodes if parallelism.elastic is None else parallelism.elastic.min_nodes
    if world_size in range(fewest * processes, nodes * processes + 1, processes):
        return
    expected = f"{nodes}" if fewest == nodes else f"{fewest} to {nodes}"
    raise InvalidInputError(
        f"{world_size} processes were started, the plan's world size is {parallelism.world_size} "
        f"({expected} nodes x {processes}): start one process per GPU with torchrun"
    )


def enable_fsdp(parallelism: ParallelismPlan) -> None:
    """Have accelerate use FSDP on the CPU too, which it takes for plain DDP there. Between the training's arguments,
    which start its state anew, and the trainer, which reads it."""
    if parallelism.strategy == "fsdp" and parallelism.device == "cpu":
        from accelerate import PartialState
        from accelerate.utils import DistributedType

        PartialState().distributed_type = DistributedType.MULTI_GPU
