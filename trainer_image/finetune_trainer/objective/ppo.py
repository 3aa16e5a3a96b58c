"""Proximal policy optimisation: the project's own trainer, as TRL has none any more.

Schulman et al. 2017 (arXiv:1707.06347) as used for language models by Ziegler et al. 2019 (arXiv:1909.08593) and Ouyang
et al. 2022 (arXiv:2203.02155). The equations are in ``ppo_loss``.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model, set_seed
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler
from transformers import GenerationConfig, Trainer, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import disable_dropout_in_model, identity, selective_log_softmax_and_entropy

from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.objective.evaluation import NeutralEvaluation
from finetune_trainer.objective.parts import Parts
from finetune_trainer.objective.ppo_loss import (
    compute_gae,
    estimate_kl,
    is_clipped,
    masked_mean,
    masked_whiten,
    place_rewards,
    policy_loss,
    value_loss,
)
from finetune_trainer.objective.rewards import RewardFunction, load_rewards, require_references

Batch = dict[str, Tensor]
"""Tensors whose rows are answers."""

_VALUE_HEAD = "value-head.safetensors"


class ValueHead(torch.nn.Linear):  # type: ignore[misc]
    """The value V(s_t) of each state: linear in what the model's output layer is given, 0 everywhere at first.

    Only while the model is trained does it hang on it, as ``value_head``: then its weights are averaged, shared out and
    saved as the model's are, and no artifact has them.
    """

    values: Tensor | None = None
    """(rows, positions) of the model's last forward pass."""

    def __init__(self, size: int, device: torch.device) -> None:
        super().__init__(size, 1, device=device, dtype=torch.float32)
        torch.nn.init.zeros_(self.weight)
        torch.nn.init.zeros_(self.bias)

    @contextmanager
    def on(self, model: Any) -> Iterator[None]:
        """Have it look on at the forward passes of ``model``."""
        model.value_head = self
        hook = model.get_output_embeddings().register_forward_pre_hook(self._look)
        try:
            yield
        finally:
            hook.remove()
            del model.value_head

    def _look(self, layer: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # In bfloat16 neighbouring values would be the same.
        with torch.autocast(inputs[0].device.type, enabled=False):
            self.values = self(inputs[0].to(self.weight.dtype)).squeeze(-1)


class AnswerSampler(Sampler[int]):  # type: ignore[misc]
    """The rows of one epoch after the other: the prompts shuffled and cut into batches, each prompt as often in its
    batch as it is answered, each batch as often as it is passed over. The epoch's last batch is filled up with its first
    prompts."""

    def __init__(
        self, rows: int, prompts: int, completions: int, passes: int, seed: int, epoch: Callable[[], int]
    ) -> None:
        self._rows = rows
        self._prompts = prompts
        self._completions = completions
        self._passes = passes
        self._seed = seed
        self._epoch = epoch

    def __len__(self) -> int:
        batches = -(-self._rows // self._prompts)
        return batches * self._prompts * self._completions * self._passes

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self._rows, generator=torch.Generator().manual_seed(self._seed + self._epoch())).tolist()
        order += islice(cycle(order), -len(order) % self._prompts)
        for start in range(0, len(order), self._prompts):
            batch = [row for row in order[start : start + self._prompts] for _ in range(self._completions)]
            yield from batch * self._passes


class PpoTrainer(NeutralEvaluation, Trainer):  # type: ignore[misc]
    """PPO in the Trainer's own loop.

    A batch is ``per_device_batch_size x gradient_accumulation x world size`` answers, ``generation.completions`` of them
    to each prompt. It is sampled, rewarded and then passed over ``ppo.epochs`` times; each pass is one optimiser step on
    the whole batch. So ``state.global_step``, and with it ``training.max_steps``, counts optimiser steps, ``ppo.epochs``
    of them a batch; an epoch has answered every prompt, and ``state.epoch`` times the number of prompts is what the
    checkpoint's marker has as samples consumed.

    An answer ends with its first end token, which is trained too; tokens behind it are masked. One that reaches
    ``generation.max_tokens`` without an end token has ended there: its score stands at its last token, and nothing is
    expected behind it. The policy is the distribution at ``generation.temperature``, before ``top_p`` cuts its tail.

    The reference is the model as it was before the first step. Only what is trained is kept of it: where that is an
    adapter, the reference costs no second model. Dropout is off, so that the first pass's ratios are 1.

    An evaluation answers the validation prompts once; its loss is minus the mean of score - beta KL, what PPO maximises.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, plan: TrainingPlan, reward_functions: list[RewardFunction], **arguments: Any) -> None:
        super().__init__(data_collator=identity, **arguments)
        objective = plan.objective
        assert objective.generation is not None and objective.ppo is not None and objective.beta is not None
        self._generation, self._ppo, self._beta = objective.generation, objective.ppo, objective.beta
        self._reward_functions = reward_functions
        self._answers_a_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        if self._answers_a_step % self._generation.completions:
            raise InvalidInputError(
                f"objective.generation.completions {self._generation.completions} does not divide the "
                f"{self._answers_a_step} answers of a step (training.perDeviceBatchSize {self.args.train_batch_size} x "
                f"gradientAccumulation {self.args.gradient_accumulation_steps} x {self.args.world_size} processes): "
                "change one of them"
            )
        self._end_ids = self._list_end_ids()
        self._sampling = GenerationConfig(
            do_sample=True,
            max_new_tokens=self._generation.max_tokens,
            temperature=self._generation.temperature,
            top_p=self._generation.top_p,
            top_k=0,
            repetition_penalty=1.0,
            eos_token_id=self._end_ids,
            pad_token_id=self.processing_class.pad_token_id,
            # NaN weights have to be seen by their loss; drawing from them is an assertion that breaks the GPU's context.
            remove_invalid_values=True,
            disable_compile=True,
        )
        self.value_head = ValueHead(self.model.config.get_text_config().hidden_size, self.args.device)
        self._start: dict[str, Tensor] = {}
        self._rows: list[dict[str, Any]] = []
        self._batch: Batch = {}
        self._resumed_from: str | None = None
        self._figures, self._eval_figures = _Figures(), _Figures()
        # Ranks that answer the same prompt have to draw different answers.
        set_seed(self.args.seed, device_specific=True)

    def _list_end_ids(self) -> list[int]:
        """Every token that the model or the tokenizer says ends an answer."""
        declared = self.model.generation_config.eos_token_id
        declared = declared if isinstance(declared, list) else [declared]
        return sorted({token for token in [*declared, self.processing_class.eos_token_id] if token is not None})

    def _get_train_sampler(self, train_dataset: Any = None) -> AnswerSampler:
        prompts = self._answers_a_step // self._generation.completions
        return AnswerSampler(
            len(self.train_dataset),
            prompts,
            self._generation.completions,
            self._ppo.epochs,
            self.args.seed,
            # Read when an epoch begins, so that a resumed run shuffles the prompts as the one before it.
            lambda: int(self.state.epoch or 0),
        )

    def train(self, resume_from_checkpoint: str | None = None, **arguments: Any) -> Any:
        self._resumed_from = resume_from_checkpoint
        if self.is_deepspeed_enabled:
            # It loads its checkpoints itself.
            self._keep_start()
        with self.value_head.on(self.model):
            return super().train(resume_from_checkpoint, **arguments)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], None]:
        """Empty parts for ``training_step`` to fill: only then a resumed run has its random state to answer with."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._rows = [row for batch in batches for row in batch]
        self._parts: list[Batch] = [{} for _ in batches]
        return self._parts, None

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        if not inputs:
            self._begin_step(model)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not loss.isfinite():
            # Before the next batch is answered by what the step makes of the weights.
            self.control.should_log = True
        return loss

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        log_probs, entropy = self._read_policy(model, inputs)
        mask, advantages, count = inputs["mask"], inputs["advantages"], inputs["token_count"][0]
        change = log_probs, inputs["log_probs"], advantages, self._ppo.clip_range
        policy = masked_mean(policy_loss(*change), mask, count)
        value = masked_mean(
            value_loss(self._read_values(inputs), inputs["values"], inputs["returns"], self._ppo.value_clip_range),
            mask,
            count,
        )
        self._figures.add(
            policy_loss=policy,
            value_loss=value,
            clip_fraction=masked_mean(is_clipped(*change), mask, count),
            entropy=masked_mean(entropy, mask, count),
        )
        return policy + self._ppo.value_coefficient * value

    def _begin_step(self, model: Any) -> None:
        """Fill the step's parts: with a new batch, or with that of the step before."""
        if self.state.global_step % self._ppo.epochs == 0:
            self._batch = self._answer(model, self._rows)
        elif not self._batch:
            file = Path(self._resumed_from or "") / self._batch_file()
            self._batch = torch.load(file, map_location=self.args.device, weights_only=True)
        for part, share in zip(self._parts, self._split(self._batch), strict=True):
            part.update(share)
        batch = self._batch
        self._figures.add(
            reward=batch["scores"].mean(),
            kl=batch["divergence"].mean(),
            answer_length=batch["mask"].sum(dim=1).mean(),
        )
        self._figures.steps += 1

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _answer(self, model: Any, rows: list[dict[str, Any]]) -> Batch:
        """Answers to ``rows`` with all that their training needs."""
        batch = self._sample(model, rows)
        seen: dict[str, list[Tensor]] = defaultdict(list)
        for part in self._split(batch):
            seen["log_probs"].append(self._read_policy(model, part)[0])
            seen["values"].append(self._read_values(part))
        with self._as_at_start():
            for part in self._split(batch):
                seen["reference"].append(self._read_policy(model, part)[0])
        batch |= {name: torch.cat(tensors) for name, tensors in seen.items()}
        mask = batch["mask"]
        kl = estimate_kl(batch["log_probs"], batch.pop("reference")) * mask
        rewards = place_rewards(batch["scores"], kl, mask, self._beta)
        advantages, returns = compute_gae(rewards, batch["values"], mask, self._ppo.gamma, self._ppo.gae_lambda)
        if self._ppo.whiten_advantages:
            advantages = masked_whiten(advantages, mask, self._total)
        # The Trainer averages the ranks' gradients.
        count = self._total(mask.sum()) / self.args.world_size
        return batch | {
            "advantages": advantages,
            "returns": returns,
            "divergence": kl.sum(dim=1),
            "token_count": count.expand(len(mask)),
        }

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _sample(self, model: Any, rows: list[dict[str, Any]]) -> Batch:
        """One answer to each row, and its score. A row of tokens is prompt, answer and padding; ``positions`` are those
        whose logits say the answer's tokens."""
        prompts = [row["prompt_ids"] for row in rows]
        device = self.args.device
        padded = self.processing_class.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(device)
        model.eval()
        with (
            unwrap_model_for_generation(
                model, self.accelerator, gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs
            ) as generator,
            _unsharded(generator),
            self.accelerator.autocast(),
        ):
            output = generator.generate(**padded, generation_config=self._sampling)
        tokens = output[:, padded["input_ids"].shape[1] :]
        ends = torch.isin(tokens, torch.tensor(self._end_ids, device=device))
        lengths = torch.where(ends.any(dim=1), ends.int().argmax(dim=1) + 1, tokens.shape[1])
        answers = [answer[:length] for answer, length in zip(tokens, lengths, strict=True)]
        whole = [torch.cat([answer.new_tensor(p), answer]) for p, answer in zip(prompts, answers, strict=True)]
        input_ids = pad_sequence(whole, batch_first=True, padding_value=self.processing_class.pad_token_id)
        columns = torch.arange(tokens.shape[1], device=device)
        prompt_lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        return {
            "input_ids": input_ids,
            "attention_mask": pad_sequence([torch.ones_like(ids) for ids in whole], batch_first=True),
            "positions": (prompt_lengths[:, None] - 1 + columns).clamp(max=input_ids.shape[1] - 1),
            "tokens": tokens,
            "mask": (columns < lengths[:, None]).float(),
            "scores": self._score(rows, [answer.tolist() for answer in answers]),
        }

    def _score(self, rows: list[dict[str, Any]], answers: list[list[int]]) -> Tensor:
        """The sum of the rewards of each answer, (answers,)."""
        columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
        texts = self.processing_class.batch_decode(answers, skip_special_tokens=True)
        total = torch.zeros(len(rows))
        for function in self._reward_functions:
            rewards = function(
                prompts=[row["prompt"] for row in rows], completions=texts, completion_ids=answers, **columns
            )
            # None, in TRL's functions, is a reward that doesn't apply to the answer.
            total += torch.tensor([0.0 if reward is None else reward for reward in rewards])
        return total.to(self.args.device)

    def _read_policy(self, model: Any, part: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the answers' tokens, and the entropy of the policy there, (answers, tokens) each."""
        output = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"], use_cache=False)
        logits = _at(output.logits, part).float()
        return selective_log_softmax_and_entropy(
            logits, part["tokens"], entropy_requires_grad=False, temperature=self._generation.temperature
        )

    def _read_values(self, part: Batch) -> Tensor:
        """What the value head has seen in the forward pass before, (answers, tokens)."""
        values, self.value_head.values = self.value_head.values, None
        return _at(values, part)

    @contextmanager
    def _as_at_start(self) -> Iterator[None]:
        """The model is the reference."""
        self._swap_weights()
        try:
            yield
        finally:
            self._swap_weights()

    def _keep_start(self) -> None:
        """Copy what will be trained, to be called before it is trained or loaded."""
        if not self._start:
            trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
            with _gathered(list(trained.values())):
                self._start = {name: weight.detach().clone() for name, weight in trained.items()}

    def _swap_weights(self) -> None:
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                # What a forward pass leaves gathered for the backward one.
                module.reshard()
        self._keep_start()
        trained = {name: weight for name, weight in self.model.named_parameters() if name in self._start}
        with _gathered(list(trained.values())):
            for name, weight in trained.items():
                held = weight.detach().clone()
                weight.detach().copy_(self._start[name])
                self._start[name].copy_(held)

    def _split(self, batch: Batch) -> list[Batch]:
        """The micro-batches of a batch."""
        size = self.args.train_batch_size
        return [
            {name: tensor[start : start + size] for name, tensor in batch.items()}
            for start in range(0, len(batch["mask"]), size)
        ]

    def _total(self, part: Tensor) -> Tensor:
        return self.accelerator.reduce(part, reduction="sum")

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        # Each evaluation draws the same random numbers, so that only the model makes a difference.
        torch.manual_seed(self.args.seed + self.args.process_index)
        return super().evaluation_loop(*arguments, **options)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def prediction_step(
        self, model: Any, inputs: list[dict[str, Any]], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        batch = self._sample(model, inputs)
        log_probs, _ = self._read_policy(model, batch)
        with self._as_at_start():
            reference, _ = self._read_policy(model, batch)
        divergence = (estimate_kl(log_probs, reference) * batch["mask"]).sum(dim=1)
        self._eval_figures.add(reward=batch["scores"].sum(), kl=divergence.sum())
        self._eval_figures.steps += len(inputs)
        return (self._beta * divergence - batch["scores"]).mean(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._figures.drain(self._total)
        elif "eval_loss" in logs:
            logs |= {f"eval_{name}": value for name, value in self._eval_figures.drain(self._total).items()}
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.state.global_step % self._ppo.epochs:
            torch.save(self._batch, folder / self._batch_file())
        if not self.is_deepspeed_enabled:
            weights = {name: _whole(weight.detach()) for name, weight in self.value_head.named_parameters()}
            if self.args.should_save:
                save_file(weights, folder / _VALUE_HEAD)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._keep_start()
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        saved = load_file(Path(resume_from_checkpoint) / _VALUE_HEAD)
        for name, weight in self.value_head.named_parameters():
            weight.copy_(_like(weight, saved[name]))

    def _batch_file(self) -> str:
        """Where a rank keeps the answers that it has still to pass over."""
        return f"answers-{self.args.process_index}.pt"


class _Figures:
    """Figures of the steps since the last log, added up."""

    def __init__(self) -> None:
        self.steps = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, **figures: Tensor) -> None:
        for name, figure in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + figure.detach()

    def drain(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Their means, over all ranks."""
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name].float() for name in names])
        steps = total(sums.new_tensor(self.steps))
        means = dict(zip(names, (total(sums) / steps).tolist(), strict=True))
        self.__init__()  # type: ignore[misc]
        return means


def _at(states: Tensor, part: Batch) -> Tensor:
    """``states`` (rows, positions, ...) where the answers' tokens are said, (answers, tokens, ...)."""
    rows = torch.arange(len(states), device=states.device)[:, None]
    # Prompt methods put their virtual tokens in front.
    virtual = states.shape[1] - part["input_ids"].shape[1]
    return states[rows, part["positions"] + virtual]


@contextmanager
def _gathered(weights: list[Any]) -> Iterator[None]:
    """The weights are whole where ZeRO-3 has shared them out, and shared out anew afterwards."""
    if is_deepspeed_zero3_enabled():
        import deepspeed

        with deepspeed.zero.GatheredParameters(weights, modifier_rank=0):
            yield
    else:
        yield


@contextmanager
def _unsharded(model: Any) -> Iterator[None]:
    """FSDP gathers each layer in its own forward pass, the rest in the outermost one, which generation doesn't call."""
    if isinstance(model, FSDPModule):
        model.unshard()
        yield
        model.reshard()
    else:
        yield


def _whole(weight: Tensor) -> Tensor:
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def _like(weight: Tensor, whole: Tensor) -> Tensor:
    """``whole`` shared out as ``weight`` is."""
    if isinstance(weight, DTensor):
        return distribute_tensor(whole, weight.device_mesh, weight.placements)
    return whole


def build_config(plan: TrainingPlan, arguments: dict[str, Any]) -> TrainingArguments:
    """TrainingArguments of the plan."""
    return TrainingArguments(**arguments, remove_unused_columns=False)


def build(config: TrainingArguments, parts: Parts) -> PpoTrainer:
    """The trainer on prepared rows of kind ``prompts``."""
    require_references(parts.plan, parts.data.train)
    # As in TRL: the adapter's first weights follow the seed.
    set_seed(config.seed)
    model = parts.model if parts.peft_config is None else get_peft_model(parts.model, parts.peft_config)
    disable_dropout_in_model(model)
    if config.gradient_checkpointing and is_peft_model(model):
        model.enable_input_require_grads()
    return PpoTrainer(
        parts.plan,
        load_rewards(parts.plan),
        model=model,
        args=config,
        train_dataset=parts.data.train,
        eval_dataset=parts.data.validation,
        processing_class=parts.tokenizer,
        callbacks=parts.callbacks,
    )
