"""What becomes of memory that runs out, what is tried before it does, and whether the memory model counts right."""

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.memory import count_trainable, estimate, parse_shape
from finetune_api.plan import MethodPlan, TrainingPlan
from finetune_trainer.__main__ import run_plan
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.memory.report import read_shape
from finetune_trainer.objective.arguments import build_arguments
from tests.trainer.conftest import adapter_bytes
from tests.trainer.running import Recorder, losses, run

SHORT = {"epochs": None, "max_steps": 2, "per_device_batch_size": 4, "gradient_accumulation": 1}


@contextmanager
def memory_for(rows: int) -> Iterator[list[int]]:
    """A model that runs out of memory, as torch tells it, when it gets more rows than that at once while it trains.
    Yields the batch sizes that it saw."""
    import torch
    from transformers import LlamaModel

    seen: list[int] = []
    whole = LlamaModel.forward

    def forward(self: Any, input_ids: Any = None, **kwargs: Any) -> Any:
        if self.training:
            seen.append(len(input_ids))
            if len(input_ids) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(self, input_ids=input_ids, **kwargs)

    LlamaModel.forward = forward
    try:
        yield seen
    finally:
        LlamaModel.forward = whole


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_batch_that_fits_leaves_no_trace_of_the_search(
    make: Callable[..., TrainingPlan], tmp_path: Path, objective: str
) -> None:
    """Dropout on: the same losses and the same bits as without the search."""
    rows = [{"prompt": f"{n} + {n}?", "chosen": f" It is {2 * n}.", "rejected": " No" * (n + 1)} for n in range(10)]
    preferences = tmp_path / "preferences.jsonl"
    preferences.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"data": preferences, "objective": {"type": "dpo", "beta": 0.1}} if objective == "dpo" else {}
    plain = make("plain", training=SHORT, **data)
    searched = make("searched", training={**SHORT, "batch_search": True}, **data)
    recorder = Recorder()
    run(plain)
    run(searched, recorder)
    assert recorder.messages("batch") == ["a batch of 4 fits the memory, accumulated 1 times"]
    assert losses(searched) == losses(plain)
    assert adapter_bytes(searched) == adapter_bytes(plain)


def test_a_batch_that_does_not_fit_is_halved_and_a_resumed_run_keeps_it(make: Callable[..., TrainingPlan]) -> None:
    """The optimiser steps see the same rows: without dropout the losses are those of the whole batch."""
    method = {"lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": ("all-linear",)}}
    whole = make("whole", training=SHORT, method=method)
    run(whole)
    plan = make("halved", training={**SHORT, "batch_search": True}, method=method, checkpoint={"every_steps": 1})
    recorder = Recorder()
    with memory_for(1) as seen:
        run(plan, recorder)
    assert recorder.messages("batch") == [
        "a batch of 4 does not fit the memory: trying 2, accumulated 2 times",
        "a batch of 2 does not fit the memory: trying 1, accumulated 4 times",
        "a batch of 1 fits the memory, accumulated 4 times",
    ]
    assert seen == [4, 2, 1] + [1] * 8
    assert losses(plan) == pytest.approx(losses(whole), abs=1e-6)
    shutil.rmtree(Path(plan.checkpoint.directory) / "checkpoint-2")
    shutil.rmtree(plan.output.directory)
    again = Recorder()
    with memory_for(1) as seen:
        assert run(plan, again).resumes == 1
    assert seen == [1] * 4 and again.messages("batch") == []
    assert losses(plan) == pytest.approx(losses(whole), abs=1e-6)


def test_a_run_that_nothing_fits_exits_11_with_three_mends(
    make: Callable[..., TrainingPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_TERMINATION_LOG", str(tmp_path / "termination"))
    # In a thread of its own: the trainer takes over the signals of the main one.
    with memory_for(0), ThreadPoolExecutor(1) as thread:
        code = thread.submit(run_plan, make(training={**SHORT, "batch_search": True})).result()
    assert code == ExitCode.OUT_OF_MEMORY
    last_words = json.loads((tmp_path / "termination").read_text())
    assert last_words["reason"] == "OutOfMemory"
    assert last_words["message"].count("; or ") == 2 and last_words["message"].count(", which saves about ") == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"fused_kernels": True}}, r"training\.fusedKernels true: .*GPUs only: use false"),
        ({"training": {"activation_offload": True}}, r"training\.activationOffload true: without a GPU"),
        (
            {"objective": {"type": "grpo"}, "training": {"batch_search": True}},
            r"training\.autoFindBatchSize true: objective\.type grpo makes its rows while it trains",
        ),
        (
            {"parallelism": {"strategy": "zero3"}, "training": {"batch_search": True}},
            r"training\.autoFindBatchSize true: parallelism\.strategy zero3 .*leave it out",
        ),
        (
            {
                "objective": {"type": "orpo"},
                "training": {"activation_offload": True},
                "parallelism": {"device": "cuda"},
            },
            r"training\.activationOffload true: TRL's trainer of objective\.type orpo can't",
        ),
        (
            {"training": {"fused_kernels": True}, "parallelism": {"device": "cuda"}},
            r"lacks the package liger-kernel: build the image with requirements/kernels\.txt",
        ),
    ],
)
def test_what_the_objective_or_the_machine_can_not_do_is_refused(
    make: Callable[..., TrainingPlan], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        build_arguments(make(**changes), False, False)


def test_settings_reach_transformers(make: Callable[..., TrainingPlan]) -> None:
    training = {"activation_offload": True, "neftune_alpha": 5.0, "data_loader_workers": 2, "optimizer": "adamw_8bit"}
    arguments = build_arguments(make(training=training, parallelism={"device": "cuda"}), False, False)
    assert arguments["activation_offloading"] is True and arguments["use_liger_kernel"] is False
    assert arguments["neftune_noise_alpha"] == 5.0 and arguments["dataloader_num_workers"] == 2
    assert arguments["optim"] == "adamw_8bit" and "activation_offloading" not in build_arguments(make(), False, False)


def test_workers_of_the_data_loader_change_no_bit(make: Callable[..., TrainingPlan]) -> None:
    alone, helped = make("alone", training=SHORT), make("helped", training={**SHORT, "data_loader_workers": 1})
    run(alone)
    run(helped)
    assert losses(alone) == losses(helped)


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adafactor"])
def test_small_and_paged_optimisers_train_and_resume_exactly(make: Callable[..., TrainingPlan], optimizer: str) -> None:
    changes: dict[str, Any] = {
        "method": {"type": "full", "lora": None},
        "training": {**SHORT, "optimizer": optimizer, "learning_rate": 1e-3, "max_steps": 4},
        "dataset": {"validation_fraction": None},
        "output": {"artifacts": ("merged",)},
    }
    plan = make(**changes)
    run(plan)
    whole = losses(plan)
    assert whole[-1] < whole[0]
    shutil.rmtree(Path(plan.checkpoint.directory) / "checkpoint-4")
    shutil.rmtree(plan.output.directory)
    assert run(plan).resumes == 1
    assert losses(plan) == whole


def test_neftune_adds_noise_to_the_training_only(make: Callable[..., TrainingPlan]) -> None:
    """Jain et al. 2023, arXiv:2310.05914: the first evaluation is the plain model's, the losses are not."""
    plain, noisy = make("plain", training=SHORT), make("noisy", training={**SHORT, "neftune_alpha": 5.0})
    before = run(plain).eval_loss_before
    assert run(noisy).eval_loss_before == before
    assert losses(noisy)[0] != losses(plain)[0]


def test_gradient_checkpointing_trains_the_same(make: Callable[..., TrainingPlan]) -> None:
    plain, checkpointed = make("plain", training=SHORT), make("c", training={**SHORT, "gradient_checkpointing": True})
    run(plain)
    run(checkpointed)
    assert losses(checkpointed) == pytest.approx(losses(plain), abs=1e-6)


METHODS: list[dict[str, Any]] = [
    {"type": "lora", "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": ("all-linear",)}},
    {"type": "lora", "lora": {"rank": 8, "alpha": 8.0, "dropout": 0.0, "target_modules": ("q_proj", "v_proj")}},
    {"type": "dora", "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": ("all-linear",)}},
    {"type": "ia3"},
    {"type": "prompt", "prompt": {"virtual_tokens": 5}},
    {"type": "p-tuning", "prompt": {"virtual_tokens": 5, "encoder_hidden_size": 32}},
    {"type": "prefix", "prompt": {"virtual_tokens": 5, "encoder_hidden_size": 32}},
    {"type": "p-tuning-v2", "prompt": {"virtual_tokens": 5}},
]


def _peft_config(method: MethodPlan) -> Any:
    """As a person would write it."""
    import peft

    match method.type:
        case "ia3":
            return peft.IA3Config(task_type="CAUSAL_LM")
        case "prompt":
            return peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
        case "p-tuning":
            return peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=32)
        case "prefix":
            return peft.PrefixTuningConfig(
                task_type="CAUSAL_LM", num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=32
            )
        case "p-tuning-v2":
            return peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    assert method.lora is not None
    targets = method.lora.target_modules
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=method.lora.rank,
        target_modules="all-linear" if targets == ("all-linear",) else list(targets),
        use_dora=method.type == "dora",
    )


def test_the_memory_model_counts_parameters_as_torch_does(tiny_model: Path) -> None:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(tiny_model)

    base = load()
    shape = parse_shape(base.config.to_dict())
    assert shape is not None and shape.parameters == base.num_parameters()
    for fields in METHODS:
        method = MethodPlan(**fields)
        model = get_peft_model(load(), _peft_config(method))
        counted = sum(each.numel() for each in model.parameters() if each.requires_grad)
        print(f"{method.type}: {counted} trained parameters")
        assert count_trainable(shape, method) == counted, method.type


def test_the_memory_model_holds_for_what_torch_keeps(make: Callable[..., TrainingPlan], tiny_model: Path) -> None:
    """Activations of one full step without checkpointing, as autograd saves them: within a quarter of the estimate."""
    import torch
    from transformers import AutoModelForCausalLM

    plan = make(
        method={"type": "full", "lora": None},
        training={"per_device_batch_size": 2, "max_length": 128},
        output={"artifacts": ("merged",)},
    )
    shape = read_shape(plan)
    assert shape is not None
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.train()
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    alive = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (alive.append(tensor), keep(tensor))[1], lambda t: t):
        model.model(input_ids=torch.randint(1, 500, (2, 128)), use_cache=False)
    measured, told = sum(kept.values()), estimate(shape, plan).activations
    print(f"activations: {measured} bytes kept by autograd, {told} by the model: ratio {told / measured:.2f}")
    assert 0.75 < told / measured < 1.25
