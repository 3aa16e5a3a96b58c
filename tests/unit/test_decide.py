"""What a FineTuneJob becomes: every cell of the table, defaults by method and objective, strategies, memory levels."""

from typing import Any

import pytest

from finetune_api.errors import InvalidFineTuneJob, Problem
from finetune_api.matrix import find_exclusion, list_cells
from finetune_api.methods import METHODS, SETTINGS
from finetune_api.objectives import OBJECTIVES
from finetune_api.objectives import SETTINGS as OBJECTIVE_SETTINGS
from finetune_api.plan import TrainingPlan
from finetune_api.spec import FineTuneJob, Method, Objective
from finetune_api.strategies import STRATEGIES
from finetune_operator.plan.decide import Decided, decide_plan
from finetune_operator.plan.layout import ContainerLayout
from finetune_operator.settings import Settings
from finetune_operator.spec.parse import parse_finetunejob


def parse(**spec: Any) -> FineTuneJob:
    spec = {"model": {"source": "hf://Qwen/Qwen3-8B"}, "dataset": {"source": "hf://org/rows"}, **spec}
    return parse_finetunejob(
        {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "job"}, "spec": spec}
    )


def decide(**spec: Any) -> Decided:
    return decide_plan(parse(**spec), Settings(), ContainerLayout())


def reasons(decided: Decided) -> dict[str, str]:
    return {decision.path: decision.reason for decision in decided.decisions}


def build_cell(method: str, objective: str, gpus: int, **parallelism: Any) -> dict[str, Any]:
    rewards = {"rewardFunctions": ["exact-match"]} if OBJECTIVES[objective].generates else {}  # type: ignore[index]
    return {
        "method": {"type": method},
        "objective": {"type": objective, **rewards},
        "resources": {"gpu": {"count": gpus}},
        "parallelism": parallelism,
    }


def problems(**spec: Any) -> list[Problem]:
    try:
        parse(**spec)
    except InvalidFineTuneJob as error:
        return error.problems
    return []


def list_parts(plan: TrainingPlan) -> set[str]:
    parts = {"lora", "ia3", "prompt", "bottleneck", "trainable_layers"}
    return {part for part in parts if getattr(plan.method, part) is not None}


def test_every_cell_is_planned_or_refused_with_its_reason() -> None:
    for cell in list_cells():
        spec = build_cell(cell.method, cell.objective, 1 if cell.strategy == "single" else 2, strategy=cell.strategy)
        if cell.exclusion is not None:
            told = [(problem.message, problem.mend) for problem in problems(**spec)]
            assert (cell.exclusion.reason, cell.exclusion.instead) in told, cell
            continue
        plan = decide(**spec).plan
        planned = (plan.method.type, plan.objective.type, plan.parallelism.strategy)
        assert planned == (cell.method, cell.objective, cell.strategy)
        assert list_parts(plan) == {METHODS[cell.method].part} - {"none"}
        engine = STRATEGIES[cell.strategy].engine
        assert (plan.parallelism.deepspeed is not None) == (engine == "deepspeed")
        assert (plan.parallelism.fsdp is not None) == (engine == "fsdp")
        assert (plan.objective.generation is not None) == OBJECTIVES[cell.objective].generates
        assert (plan.objective.ppo is not None) == (cell.objective == "ppo")


@pytest.mark.parametrize("gpus", [0, 1, 2, 8])
def test_a_strategy_that_is_left_out_is_a_supported_one(gpus: int) -> None:
    for method in METHODS:
        for objective in OBJECTIVES:
            spec = build_cell(method, objective, gpus)
            if not problems(**spec):
                plan = decide(**spec).plan
                assert find_exclusion(method, objective, plan.parallelism.strategy) is None
                assert (plan.parallelism.strategy == "single") == (gpus < 2)


def test_every_setting_of_the_registries_is_a_field() -> None:
    assert {field.alias for field in Method.model_fields.values()} == SETTINGS | {"type"}
    assert {field.alias for field in Objective.model_fields.values()} == OBJECTIVE_SETTINGS | {"type"}


@pytest.mark.parametrize(
    ("method", "objective", "rate"),
    [
        ("lora", "sft", 2e-4),
        ("full", "sft", 2e-5),
        ("prompt", "sft", 3e-2),
        ("lora", "dpo", 1e-5),
        ("full", "dpo", 1e-6),
    ],
)
def test_learning_rate_follows_method_and_objective(method: str, objective: str, rate: float) -> None:
    decided = decide(method={"type": method}, objective={"type": objective})
    assert decided.plan.training.learning_rate == rate
    assert method in reasons(decided)["training.learningRate"]
    assert (objective in reasons(decided)["training.learningRate"]) == (objective != "sft")


def test_answers_to_a_prompt_stay_in_one_step() -> None:
    objective = {"type": "grpo", "rewardFunctions": ["exact-match"], "generation": {"completions": 6}}
    for gpus in (1, 2, 3, 8):
        plan = decide(objective=objective, resources={"gpu": {"count": gpus}}).plan
        rows = plan.training.per_device_batch_size * plan.training.gradient_accumulation * gpus
        assert rows % 6 == 0 and rows >= 16


@pytest.mark.parametrize(
    ("spec", "strategy"),
    [
        ({"resources": {"gpu": {"count": 8}}}, "ddp"),
        ({"resources": {"gpu": {"count": 8, "memoryGiB": 80}}, "method": {"type": "full"}}, "zero1"),
        ({"resources": {"gpu": {"count": 8, "memoryGiB": 24}}, "model": {"source": "hf://Qwen/Qwen3-32B"}}, "fsdp"),
        ({"parallelism": {"offload": {"optimizer": "cpu"}}}, "zero2"),
        ({"parallelism": {"offload": {"optimizer": "nvme"}}}, "zero3"),
        ({"parallelism": {"offload": {"parameters": "cpu"}}, "resources": {"gpu": {"count": 2}}}, "zero3"),
        ({"parallelism": {"processes": 2}, "resources": {"gpu": {"count": 0}}}, "ddp"),
    ],
)
def test_strategy_is_chosen_by_memory_and_offload(spec: dict[str, Any], strategy: str) -> None:
    decided = decide(**spec)
    assert decided.plan.parallelism.strategy == strategy
    assert reasons(decided)["parallelism.strategy"]


def test_offloaded_states_are_in_deepspeeds_configuration() -> None:
    plan = decide(parallelism={"offload": {"optimizer": "nvme", "parameters": "cpu"}}).plan
    assert plan.parallelism.deepspeed is not None
    zero = plan.parallelism.deepspeed["zero_optimization"]
    assert (zero["stage"], zero["offload_optimizer"]["device"], zero["offload_param"]["device"]) == (3, "nvme", "cpu")
    assert zero["offload_optimizer"]["nvme_path"].startswith("/tmp/")
    assert plan.training.optimizer == "adamw_torch"


def test_a_level_changes_what_was_left_out_and_tells_it() -> None:
    plain, level = decide(), decide(memory={"optimization": 2})
    assert (plain.plan.training.max_length, level.plan.training.max_length) == (2048, 0)
    assert "memory level 2" in reasons(level)["training.maxLength"]
    kept = decide(memory={"optimization": 2}, training={"maxLength": 1024}).plan
    assert kept.training.max_length == 1024
    assert decide(memory={"optimization": 0}).plan == plain.plan


def test_without_a_level_only_what_does_not_fit_is_changed() -> None:
    roomy, tight = (decide(resources={"gpu": {"memoryGiB": size}}) for size in (80, 20))
    assert roomy.plan == decide().plan
    assert tight.plan.training.per_device_batch_size < roomy.plan.training.per_device_batch_size
    assert "GiB" in reasons(tight)["memory.optimization"]
    assert tight.plan.method.type == "lora"  # a method is never exchanged unasked


@pytest.mark.parametrize("level", [1, 2, 3, 4])
@pytest.mark.parametrize("gpus", [1, 4])
@pytest.mark.parametrize("memory", [{}, {"memoryGiB": 24}])
@pytest.mark.parametrize("method", ["full", "lora", "qlora", "prefix"])
def test_what_a_level_makes_is_a_job_that_would_be_accepted(
    level: int, gpus: int, memory: dict[str, int], method: str
) -> None:
    plan = decide(
        memory={"optimization": level}, method={"type": method}, resources={"gpu": {"count": gpus, **memory}}
    ).plan
    spec: dict[str, Any] = build_cell(plan.method.type, "sft", gpus, strategy=plan.parallelism.strategy)
    spec["training"] = {"optimizer": plan.training.optimizer}
    if plan.training.batch_search:
        spec["training"]["autoFindBatchSize"] = True
    assert problems(**spec) == []


def test_8_bits_are_int8() -> None:
    plan = decide(method={"type": "qlora", "quantization": {"bits": 8}}).plan
    assert plan.method.quantization is not None
    assert (plan.method.quantization.type, plan.method.quantization.double_quant) == ("int8", False)


def test_prefixes_are_not_recomputed() -> None:
    assert decide(method={"type": "prefix"}).plan.training.gradient_checkpointing is False
    assert decide(method={"type": "prompt"}).plan.training.gradient_checkpointing is True
