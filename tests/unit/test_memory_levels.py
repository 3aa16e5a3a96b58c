"""The four memory levels: what each changes, what it leaves alone, and how far auto goes."""

from typing import Any

import pytest

from finetune_api.memory import estimate, find_shape
from finetune_api.plan import LoraPlan, MethodPlan, TrainingPlan
from finetune_api.presets import USABLE_SHARE, draft_plan
from finetune_operator.plan.memory_levels import apply_levels

LORA = MethodPlan(type="lora", lora=LoraPlan(rank=16, alpha=32, dropout=0.05, target_modules=("all-linear",)))
SHAPE = find_shape("Llama-3.1-8B")


@pytest.fixture
def wasteful() -> TrainingPlan:
    plan = draft_plan(LORA, 4, "ddp", 4, 2048)
    training = plan.training.model_copy(update={"gradient_checkpointing": False, "precision": "fp32"})
    model = plan.model.model_copy(update={"attention": "eager"})
    return plan.model_copy(update={"training": training, "model": model})


def fields(steps: Any, level: int) -> dict[str, Any]:
    return {change.field: change.after for step in steps if step.level == level for change in step.changes}


def test_each_level_changes_its_own_and_keeps_those_below(wasteful: TrainingPlan) -> None:
    one = apply_levels(wasteful, 1, frozenset(), None, None, kernels=True)
    assert fields(one.steps, 1) == {
        "model.attention": "sdpa",
        "training.fusedKernels": True,
        "training.precision": "bf16",
        "training.dataLoaderWorkers": 2,
    }
    two = apply_levels(wasteful, 2, frozenset(), None, None)
    assert "training.fusedKernels" not in fields(two.steps, 1)
    assert fields(two.steps, 2) == {
        "training.gradientCheckpointing": True,
        "training.autoFindBatchSize": True,
        "training.maxLength": 0,
    }
    three = apply_levels(wasteful, 3, frozenset(), SHAPE, None)
    assert three.plan.method.type == "qlora" and three.plan.method.quantization is not None
    assert three.plan.method.lora is not None
    assert (three.plan.method.lora.rank, three.plan.method.lora.alpha) == (8, 16)
    assert three.plan.method.lora.target_modules == ("q_proj", "v_proj")
    assert three.plan.training.optimizer == "paged_adamw_8bit" and three.plan.training.activation_offload
    assert three.plan.parallelism.strategy == "ddp" and three.plan.model.attention == "sdpa"
    unnamed = apply_levels(wasteful, 3, frozenset(), find_shape("acme-8B"), None).plan.method.lora
    assert unnamed is not None and unnamed.rank == 8 and unnamed.target_modules == ("all-linear",)
    four = apply_levels(wasteful, 4, frozenset(), None, None)
    assert four.plan.parallelism.strategy == "zero3"
    assert all(str(step).startswith(f"level {step.level}: ") and step.reason for step in four.steps)


def test_what_the_person_wrote_is_never_changed(wasteful: TrainingPlan) -> None:
    given = {"model.attention", "method.type", "method.rank", "training.gradientCheckpointing", "training.maxLength"}
    given |= {"parallelism.strategy", "training.optimizer", "method.targetModules"}
    leveled = apply_levels(wasteful, 4, frozenset(given), None, None)
    assert not given & {change.field for step in leveled.steps for change in step.changes}
    assert leveled.plan.method == wasteful.method and leveled.plan.parallelism == wasteful.parallelism


def test_auto_goes_as_far_as_it_has_to(wasteful: TrainingPlan) -> None:
    assert SHAPE is not None
    before: set[str] = set()
    for memory, highest in ((2000.0, 0), (80.0, 1), (24.0, 2), (9.0, 3), (6.0, 4)):
        leveled = apply_levels(wasteful, "auto", frozenset(), SHAPE, memory)
        assert estimate(SHAPE, leveled.plan).gib <= USABLE_SHARE * memory
        assert max((step.level for step in leveled.steps), default=0) == highest, leveled.steps
        assert before <= {change.field for step in leveled.steps for change in step.changes}
        before = {change.field for step in leveled.steps for change in step.changes}
    assert "training.dataLoaderWorkers" not in before


def test_auto_keeps_the_rows_of_an_optimiser_step(wasteful: TrainingPlan) -> None:
    training = apply_levels(wasteful, "auto", frozenset(), SHAPE, 20).plan.training
    rows = wasteful.training.per_device_batch_size * wasteful.training.gradient_accumulation
    assert training.per_device_batch_size < 4
    assert training.per_device_batch_size * training.gradient_accumulation == rows


def test_auto_says_when_nothing_is_enough_or_known(wasteful: TrainingPlan) -> None:
    assert apply_levels(wasteful, "auto", frozenset(), SHAPE, 2).reason.startswith("does not fit: ")
    assert apply_levels(wasteful, "auto", frozenset(), None, 24).reason.startswith("the model's size is unknown")
    assert apply_levels(wasteful, "auto", frozenset(), SHAPE, None).reason.startswith("the GPU's memory is unknown")
    assert apply_levels(wasteful, "none", frozenset(), SHAPE, 2).plan is wasteful


def test_a_cpu_gets_nothing_that_needs_a_gpu(wasteful: TrainingPlan) -> None:
    parallelism = wasteful.parallelism.model_copy(
        update={"device": "cpu", "strategy": "single", "processes_per_node": 1}
    )
    training = wasteful.training.model_copy(update={"optimizer": "adamw_torch"})
    plan = wasteful.model_copy(update={"parallelism": parallelism, "training": training})
    leveled = apply_levels(plan, 4, frozenset(), None, None, kernels=True)
    assert leveled.plan.training.precision == "fp32" and leveled.plan.training.optimizer == "adamw_8bit"
    assert not leveled.plan.training.fused_kernels and not leveled.plan.training.activation_offload
    assert leveled.plan.parallelism == parallelism
