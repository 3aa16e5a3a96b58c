"""The configurations of DeepSpeed and FSDP, as they stand in the plan and go to transformers unchanged. Pure."""

from typing import Any, Literal

Offload = Literal["none", "cpu", "nvme"]
ZeroStrategy = Literal["zero1", "zero2", "zero3"]
Sharding = Literal["full", "hybrid"]

_STAGES: dict[ZeroStrategy, int] = {"zero1": 1, "zero2": 2, "zero3": 3}


def build_deepspeed_config(
    strategy: ZeroStrategy,
    precision: Literal["bf16", "fp16", "fp32", "tf32"],
    offload_optimizer: Offload = "none",
    offload_parameters: Offload = "none",
    nvme_path: str | None = None,
) -> dict[str, Any]:
    """DeepSpeed's JSON of a ZeRO stage (https://www.deepspeed.ai/docs/config-json/).

    ``auto`` is filled in by transformers from the training's own settings, sizes by the model's width. The optimiser
    is always torch's, on the CPU too where its states are: DeepSpeed's own would be compiled in every new pod.

    ``nvme_path``: folder on a local disk, for what is offloaded to ``nvme``; only zero3 can.
    """
    zero: dict[str, Any] = {
        "stage": _STAGES[strategy],
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
    }
    if offload_optimizer != "none":
        zero["offload_optimizer"] = _build_offload(offload_optimizer, nvme_path)
    if strategy == "zero3":
        zero |= {
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            # Checkpoints and the export have the weights whole.
            "stage3_gather_16bit_weights_on_model_save": True,
        }
        if offload_parameters != "none":
            zero["offload_param"] = _build_offload(offload_parameters, nvme_path)
    config: dict[str, Any] = {
        "zero_optimization": zero,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if "nvme" in (offload_optimizer, offload_parameters):
        config["aio"] = {"block_size": 1048576, "queue_depth": 8, "single_submit": False, "overlap_events": True}
    return config


def _build_offload(target: Offload, nvme_path: str | None) -> dict[str, Any]:
    if target == "nvme":
        return {"device": "nvme", "nvme_path": nvme_path, "pin_memory": True}
    return {"device": "cpu", "pin_memory": True}


def build_fsdp_config(sharding: Sharding = "full", offload: bool = False, nodes: int = 1) -> dict[str, Any]:
    """transformers' ``fsdp_config`` of FSDP2; each decoder layer is a unit of its own, as the model's class names it.

    ``offload``: parameters, gradients and optimiser states wait in host memory. ``hybrid`` shards within each node
    and keeps a copy on each of ``nodes`` (HSDP): ``dp_replicate_size`` goes to accelerate's ParallelismConfig.
    """
    config: dict[str, Any] = {
        "version": 2,
        "reshard_after_forward": True,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "cpu_offload": offload,
        # Each rank writes and reads its own share.
        "state_dict_type": "SHARDED_STATE_DICT",
    }
    if sharding == "hybrid":
        config["dp_replicate_size"] = nodes
    return config
