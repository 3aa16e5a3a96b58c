"""Several ranks of one plan, started as torchrun would."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from finetune_api.plan import TrainingPlan
from finetune_api.strategies import StrategyType
from finetune_operator.plan.engines import build_deepspeed_config, build_fsdp_config
from tests.ports import free_port
from tests.trainer.conftest import Start, TrainerProcess


def share_out(strategy: StrategyType, processes: int = 2, **engine: Any) -> dict[str, Any]:
    """The plan's section ``parallelism``; ``engine`` goes to the builder of the engine's configuration."""
    section: dict[str, Any] = {"strategy": strategy, "processes_per_node": processes}
    if strategy in ("zero1", "zero2", "zero3"):
        section["deepspeed"] = build_deepspeed_config(strategy, "fp32", **engine)
    elif strategy == "fsdp":
        section["fsdp"] = build_fsdp_config(**engine)
    return section


def begin_launcher(plan: TrainingPlan, folder: Path, **node: str) -> "subprocess.Popen[bytes]":
    """The trainer's own command, as a pod runs it; ``folder`` gets ``stderr`` and ``termination``."""
    folder.mkdir(parents=True, exist_ok=True)
    plan_file = folder / "plan.json"
    plan_file.write_text(plan.to_json())
    environment = {**os.environ, **node, "FINETUNE_TERMINATION_LOG": str(folder / "termination")}
    with (folder / "stderr").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "finetune_trainer", "--plan", str(plan_file)], env=environment, stderr=log
        )


def place_ranks(plan: TrainingPlan) -> list[dict[str, str]]:
    """The environment of each rank of the plan; nothing for one that is alone."""
    world = plan.parallelism.world_size
    if world == 1:
        return [{}]
    shared = {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def start_ranks(start: Start, plan: TrainingPlan, **last: Any) -> list[TrainerProcess]:
    """A process for each rank of the plan; the faults are the last one's."""
    *places, place = place_ranks(plan)
    return [*(start(plan, environment=other) for other in places), start(plan, environment=place, **last)]


def run_ranks(start: Start, plan: TrainingPlan) -> list[TrainerProcess]:
    """The plan's ranks, which have all done it."""
    ranks = start_ranks(start, plan)
    codes = [rank.wait() for rank in ranks]
    assert not any(codes), "\n".join(rank.log.read_text()[-3000:] for rank in ranks)
    return ranks
