"""AdaLoRA's budget: which singular values are kept, decided anew at each step until the ranks are those asked for."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.errors import InvalidInputError

STATE_NAME = "rank_budget.pt"

_WARMUP, _SETTLED = 0.1, 0.3
"""Shares of the steps before the budget is cut, and after it has reached its end (the paper's range)."""
_ORTHOGONALITY = 0.5
"""Weight of the regularisation; PEFT's default."""


class RankBudget(TrainerCallback):  # type: ignore[misc]
    """Calls PEFT's allocator at each step, and keeps its state in the checkpoints (Zhang et al. 2023, arXiv:2303.10512).

    While it is training the adapter stays as large as it began, with singular values outside the budget at zero:
    checkpoints hold it so, and the optimizer's state fits.
    """

    def __init__(self) -> None:
        self._pattern: dict[str, list[bool]] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any, **kwargs: Any
    ) -> None:
        if state.max_steps < 2:
            raise InvalidInputError(
                f"method.type: adalora cuts its ranks over the steps, and there are {state.max_steps}: raise "
                "training.epochs or training.maxSteps, or use method.type: lora"
            )
        config = model.peft_config["default"]
        config.total_step = state.max_steps
        config.tinit = int(_WARMUP * state.max_steps)
        config.tfinal = max(1, int(_SETTLED * state.max_steps))
        config.deltaT = max(1, state.max_steps // 100)
        if state.global_step > 0:
            kept = torch.load(_state_file(args, state), map_location=args.device.type, weights_only=True)
            self._pattern = kept.pop("pattern")
            vars(model.base_model.rankallocator).update(kept)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any, **kwargs: Any
    ) -> None:
        _add_orthogonality(model)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any, **kwargs: Any
    ) -> None:
        # Where PEFT wants it: behind the step, before the gradients are gone.
        config = model.peft_config["default"]
        config.rank_pattern = self._pattern
        model.base_model.update_and_allocate(state.global_step)
        # With a pattern PEFT saves a smaller adapter, which the optimizer's state doesn't fit.
        self._pattern, config.rank_pattern = config.rank_pattern, None

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            allocator = model.base_model.rankallocator
            kept = {name: getattr(allocator, name) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}
            torch.save({"pattern": self._pattern, **kept}, _state_file(args, state))


def set_rank_pattern(model: Any) -> None:
    """Tell PEFT which singular values are left, so that it saves no others."""
    model.peft_config["default"].rank_pattern = {
        name: (parameter != 0).flatten().tolist()
        for name, parameter in model.get_base_model().named_parameters()
        if ".lora_E.default" in name
    }


def _add_orthogonality(model: Any) -> None:
    """Add to the gradients those of the mean over all matrices of ||A A' - I|| and ||B' B - I|| (the paper's equation 4):
    PEFT adds it to the model's own loss, and TRL computes another one."""
    trained = [
        (name, parameter, parameter.detach())
        for name, parameter in model.named_parameters()
        if ".lora_A.default" in name or ".lora_B.default" in name
    ]
    for name, parameter, values in trained:
        rows = values if ".lora_A." in name else values.T
        excess = rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
        slope = 2 * _ORTHOGONALITY / len(trained) / excess.norm() * (excess @ rows)
        parameter.grad += slope if ".lora_A." in name else slope.T


def _state_file(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE_NAME
