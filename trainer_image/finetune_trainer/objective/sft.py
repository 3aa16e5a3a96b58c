"""Supervised fine-tuning and continued pretraining: TRL's SFTTrainer, set up from the plan."""

from typing import Any

import torch
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.objective.evaluation import NeutralEvaluation
from finetune_trainer.objective.parts import Parts

_TOLERANCE = 1e-3
"""Of the logits' range. Rows that see each other differ by much more, the arithmetic of bfloat16 by nothing: both
forward passes run the same kernels on the same shapes."""
_INT8_TOLERANCE = 5e-2
"""LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339) keeps columns in 16 bits that are large for any token of the batch."""


class NeutralSFTTrainer(NeutralEvaluation, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with evaluations that leave no trace, and proof before the first step that packed rows are apart."""

    prove_separation = False

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        if self.prove_separation:
            self.prove_separation = False
            self._require_separation(model)
        return super().training_step(model, *args, **kwargs)

    def _require_separation(self, model: Any) -> None:
        """Raises: InvalidInputError when a row's logits depend on the row before it in the sequence."""
        model.eval()
        with torch.no_grad():
            one, other = (self._second_row(model, first) for first in (range(1, 9), range(9, 17)))
        model.train()
        tolerance = _INT8_TOLERANCE if getattr(self.model, "is_loaded_in_8bit", False) else _TOLERANCE
        if (one - other).abs().max() > tolerance * one.abs().max():
            raise InvalidInputError(
                f"training.packing and training.paddingFree: the attention of {self.model.config.model_type} doesn't "
                "keep the rows of one sequence apart, a row's logits change with the row before it: use "
                "training.packing: none and training.paddingFree: false"
            )

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Rows without padding have no attention mask that could be counted; each has one token at position 1."""
        positions = inputs.get("position_ids")
        if positions is not None:
            inputs = {**inputs, "attention_mask": (positions > 0).int() + (positions == 1).int()}
        super()._track_num_input_tokens(inputs)

    def _second_row(self, model: Any, first: range) -> torch.Tensor:
        """Logits of a row that stands behind ``first`` in one sequence."""
        ids = [*first, *range(1, 9)]
        batch = self.data_collator([{"input_ids": ids, "labels": ids, "seq_lengths": [len(first), 8]}])
        del batch["labels"]
        with self.accelerator.autocast():
            return model(**self._prepare_inputs(batch), use_cache=False).logits[0, len(first) :].float()


class PackedRowsCollator(DataCollatorForLanguageModeling):  # type: ignore[misc]
    """TRL's collator for attention that takes a mask: packed rows stay rows of the batch.

    TRL puts the batch into one sequence, as flash attention wants it; a mask over that grows with the square of it.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        # Given a mask, transformers would not look at the position ids; padding, at position 0 each, is apart anyway.
        del batch["attention_mask"]
        batch["labels"][batch["position_ids"] == 0] = -100
        return batch


def build_config(plan: TrainingPlan, arguments: dict[str, Any]) -> SFTConfig:
    """SFTConfig of the plan. Rows are encoded, cut and packed already."""
    flat = plan.training.padding_free or (_packs(plan) and plan.model.attention == "flash_attention_2")
    return SFTConfig(**arguments, max_length=None, padding_free=flat, dataset_kwargs={"skip_prepare_dataset": True})


def build(config: SFTConfig, parts: Parts) -> NeutralSFTTrainer:
    """The trainer on prepared rows of kind ``language``."""
    collator = None
    if _packs(parts.plan) and not config.padding_free:
        collator = PackedRowsCollator(pad_token_id=parts.tokenizer.pad_token_id, return_position_ids=True)
    packed = {"train_dataset": pack_rows(parts.plan, parts.data.train)}
    trainer = NeutralSFTTrainer(args=config, data_collator=collator, **parts.arguments | packed)
    trainer.prove_separation = _packs(parts.plan) or config.padding_free
    return trainer


def pack_rows(plan: TrainingPlan, rows: Any) -> Any:
    """Rows of up to ``maxLength`` tokens, each of whole source rows, whose lengths are in ``seq_lengths``."""
    if not _packs(plan):
        return rows
    return pack_dataset(rows, plan.training.max_length or max(map(len, rows["input_ids"])), "bfd")


def _packs(plan: TrainingPlan) -> bool:
    return plan.training.packing == "bfd"
