"""Recommended settings and the choice of a strategy."""

import pytest

from finetune_api.memory import find_shape
from finetune_api.plan import LoraPlan, MethodPlan
from finetune_api.presets import TASKS, USABLE_SHARE, Task, choose_rank, choose_strategy, recommend

FULL = MethodPlan(type="full")
LORA = MethodPlan(type="lora", lora=LoraPlan(rank=16, alpha=32, dropout=0.05, target_modules=("all-linear",)))


@pytest.mark.parametrize(
    ("model", "memory", "method"),
    [
        ("hf://meta-llama/Llama-3.1-8B", 12, "qlora"),
        ("hf://meta-llama/Llama-3.1-8B", 24, "lora"),
        ("hf://meta-llama/Llama-2-13b-hf", 24, "qlora"),
        ("hf://meta-llama/Llama-2-13b-hf", 48, "lora"),
        ("hf://meta-llama/Llama-3.1-70B", 80, "qlora"),
        ("hf://Qwen/Qwen3-0.6B", 12, "lora"),
    ],
)
def test_the_base_is_quantised_only_where_it_has_to_be(model: str, memory: int, method: str) -> None:
    found = recommend(model, memory)
    assert found is not None and found.fits
    assert found.estimate.gib <= USABLE_SHARE * memory
    assert {each.field: each.value for each in found.settings}["method.type"] == method


def test_rank_grows_with_size_and_task_and_shrinks_with_memory() -> None:
    small, large = find_shape("Llama-3.1-8B"), find_shape("Llama-3.1-70B")
    assert small is not None and large is not None
    assert [choose_rank(small, 80, task) for task in TASKS] == [16, 24, 8, 32]
    assert [choose_rank(large, 80, task) for task in TASKS] == [64, 96, 32, 128]
    assert [choose_rank(large, memory, "reasoning") for memory in (16, 40, 48)] == [8, 32, 128]


@pytest.mark.parametrize("task", TASKS)
def test_every_setting_has_a_reason(task: Task) -> None:
    found = recommend("hf://Qwen/Qwen3-8B", 24, task=task)
    assert found is not None
    assert all(each.reason for each in found.settings)
    values = {each.field: each.value for each in found.settings}
    assert values["method.alpha"] == 2 * values["method.rank"]
    assert values["training.perDeviceBatchSize"] * values["training.gradientAccumulation"] == 16


def test_several_gpus_share_out_what_one_can_not_hold() -> None:
    one, eight = recommend("hf://meta-llama/Llama-3.1-70B", 24), recommend("hf://meta-llama/Llama-3.1-70B", 24, gpus=8)
    assert one is not None and not one.fits
    assert eight is not None and eight.fits
    assert {each.field: each.value for each in eight.settings}["parallelism.strategy"] in ("fsdp", "zero3")
    assert recommend("hf://acme/support-bot", 24) is None


def test_a_strategy_shares_out_no_more_than_it_has_to() -> None:
    shape = find_shape("Llama-2-7b")
    assert choose_strategy(shape, FULL, 1, 24)[0] == "single"
    assert choose_strategy(shape, LORA, 8, 80)[0] == "ddp"
    strategy, reason = choose_strategy(shape, FULL, 8, 80)
    assert strategy == "zero1" and reason.startswith("ddp needs 1") and "zero1 needs" in reason
    assert choose_strategy(shape, FULL, 8, 40)[0] == "zero2"
    assert choose_strategy(shape, FULL, 8, 24)[0] == "fsdp"
    assert choose_strategy(find_shape("Llama-3.1-70B"), FULL, 2, 24)[1].startswith("nothing fits 24 GiB a GPU")
    assert choose_strategy(None, LORA, 8, 80) == ("ddp", "the model's size is unknown; an adapter's states are small")
    assert choose_strategy(shape, FULL, 8, None)[0] == "zero2"
