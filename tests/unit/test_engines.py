"""The engines' configurations, value by value: they go to DeepSpeed and FSDP as they are."""

import pytest

from finetune_operator.plan.engines import build_deepspeed_config, build_fsdp_config

_BATCHES = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}


def test_zero2() -> None:
    assert build_deepspeed_config("zero2", "bf16") == {
        "zero_optimization": {
            "stage": 2,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": "auto",
        },
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
        **_BATCHES,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def test_zero3_offloads_to_nvme() -> None:
    config = build_deepspeed_config("zero3", "fp16", "cpu", "nvme", "/scratch/offload")
    assert config["zero_optimization"] == {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": True,
        "offload_param": {"device": "nvme", "nvme_path": "/scratch/offload", "pin_memory": True},
    }
    assert config["fp16"] == {"enabled": True}
    assert config["bf16"] == {"enabled": False}
    assert config["aio"]["queue_depth"] == 8


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_zero1_without_half_precision(precision: str) -> None:
    config = build_deepspeed_config("zero1", precision)  # type: ignore[arg-type]
    assert config["zero_optimization"]["stage"] == 1
    assert config["bf16"] == config["fp16"] == {"enabled": False}
    assert "offload_optimizer" not in config["zero_optimization"]
    assert "aio" not in config


def test_fsdp() -> None:
    full = {
        "version": 2,
        "reshard_after_forward": True,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "cpu_offload": False,
        "state_dict_type": "SHARDED_STATE_DICT",
    }
    assert build_fsdp_config() == full
    assert build_fsdp_config(offload=True) == full | {"cpu_offload": True}
    assert build_fsdp_config("hybrid", nodes=2) == full | {"dp_replicate_size": 2}
