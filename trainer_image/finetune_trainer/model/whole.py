"""Whole models beside those whose weights the ranks share out: for the answers before training, and for the export."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from finetune_api.plan import TrainingPlan
from finetune_api.strategies import STRATEGIES
from finetune_trainer.model.load import load_base


def shards_parameters(plan: TrainingPlan) -> bool:
    """Whether no rank holds the whole model."""
    return "parameters" in STRATEGIES[plan.parallelism.strategy].shards


@contextmanager
def whole_base(plan: TrainingPlan, model: Any, location: str) -> Iterator[Any]:
    """The base model as one rank alone can run it: ``model``, or a copy in host memory where ZeRO-3 has shared it out."""
    if plan.parallelism.strategy != "zero3":
        yield model
        return
    from transformers.integrations import deepspeed

    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield load_base(plan, location, "cpu")
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def drop_fetched(trainer: Any) -> None:
    """Let go of the weights that an engine has fetched for a step that doesn't come: ZeRO-3 lets nobody else gather them,
    FSDP would hand them out in the forward pass's precision."""
    from torch.distributed.fsdp import FSDPModule

    if trainer.is_deepspeed_enabled and trainer.deepspeed is not None:
        trainer.deepspeed.empty_partition_cache()
    for module in trainer.model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def sketch_model(model: Any) -> Any:
    """A copy of ``model`` whose parameters have a shape and no values; to be made before an engine takes it apart."""
    memo = {id(parameter): _sketch_parameter(parameter) for parameter in model.parameters()}
    sketch = copy.deepcopy(model, memo)
    for module in sketch.modules():
        # TRL puts a loss before the model's forward, in a closure that a copy would share with the model.
        module.__dict__.pop("forward", None)
    return sketch


def _sketch_parameter(parameter: Any) -> torch.nn.Parameter:
    # ZeRO-3 leaves a parameter empty and keeps its shape beside it.
    return _like(
        parameter, torch.empty(getattr(parameter, "ds_shape", parameter.shape), dtype=parameter.dtype, device="meta")
    )


def _like(parameter: Any, values: torch.Tensor) -> Any:
    """``values`` as a parameter of the kind of ``parameter``."""
    made = torch.Tensor._make_subclass(type(parameter), values, parameter.requires_grad)
    if type(parameter) is not torch.nn.Parameter:
        # bitsandbytes keeps a weight's scales beside it.
        made.__dict__.update(parameter.__dict__)
    return made


def gather_model(model: Any, sketch: Any | None) -> Any:
    """``sketch`` filled with the weights of ``model``, in host memory. Every rank has to call it; those without a
    sketch only give their share, and get None. A rank holds one whole parameter at a time beside its share.

    Nothing is shared out any more then: what transformers loads or generates afterwards is one rank's own business.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    sketched = {} if sketch is None else dict(sketch.named_parameters())
    whole: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        with _gathered(parameter) as values:
            if sketch is not None:
                whole[id(sketched[name])] = _like(sketched[name], values.detach().cpu().clone())
    if sketch is None:
        return None
    for module in sketch.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = whole[id(parameter)]
    return sketch.to("cpu")


@contextmanager
def _gathered(parameter: Any) -> Iterator[torch.Tensor]:
    from torch.distributed.tensor import DTensor

    if isinstance(parameter, DTensor):
        yield parameter.full_tensor()
    elif hasattr(parameter, "ds_id"):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            yield parameter.data
    else:
        yield parameter.data
