"""Each method trains, goes on from a checkpoint to the same bits, and exports what plain PEFT loads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from finetune_api.methods import METHODS, MethodType
from finetune_api.plan import TrainingPlan
from finetune_api.progress import Result
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.export.verify import ArtifactMismatchError
from tests.trainer.adapters import MIDDLE, PARTS, artifact, load_plain, logits, plan_method, weights_of
from tests.trainer.plans import file_source, write_conversations
from tests.trainer.running import losses, run

MERGED: list[MethodType] = [name for name in PARTS if METHODS[name].adapter and METHODS[name].mergeable]


class Trained(NamedTuple):
    """A run that nobody disturbed."""

    plan: TrainingPlan
    result: Result
    weights: bytes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("data") / "rows.jsonl", 12)


@pytest.fixture(scope="module")
def train(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[MethodType], Trained]:
    """``train(method)``: its run, made once for all tests."""
    made: dict[MethodType, Trained] = {}

    def train(method: MethodType) -> Trained:
        if method not in made:
            plan = plan_method(method, tmp_path_factory.mktemp(method), tiny_model, data)
            made[method] = Trained(plan, run(plan), weights_of(plan))
        return made[method]

    return train


@pytest.fixture
def planned(tiny_model: Path, data: Path, tmp_path: Path) -> Callable[..., TrainingPlan]:
    """``planned(method, **changes)``: another plan of it."""
    return lambda method, /, **changes: plan_method(method, tmp_path, tiny_model, data, **changes)


def _base(plan: TrainingPlan) -> Any:
    from finetune_trainer.model.load import load_base

    return load_base(plan, plan.model.source.location, "cpu")


@pytest.mark.parametrize("method", PARTS)
def test_a_method_trains_and_its_artifacts_are_what_it_trained(
    train: Callable[[MethodType], Trained], monkeypatch: pytest.MonkeyPatch, method: MethodType
) -> None:
    plan, result, _ = train(method)
    assert losses(plan)[-1] < losses(plan)[0]
    assert 0 < result.trainable_parameters < 0.5 * result.total_parameters
    assert [record.type for record in result.artifacts] == list(plan.output.artifacts)
    differences = [record.difference for record in result.artifacts]
    print(method, [round(loss, 4) for loss in losses(plan)], differences)
    assert all(difference is not None and difference < 1e-5 for difference in differences)
    if not METHODS[method].adapter:
        return
    # PEFT as it comes: without the encoders that this project teaches to go on.
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners import PrefixEncoder, PromptEncoder

    monkeypatch.setitem(PEFT_TYPE_TO_TUNER_MAPPING, "PREFIX_TUNING", PrefixEncoder)
    monkeypatch.setitem(PEFT_TYPE_TO_TUNER_MAPPING, "P_TUNING", PromptEncoder)
    model = load_plain(plan)
    trained = logits(model)
    with model.disable_adapter():
        assert (logits(model) - trained[:, -8:]).abs().max() > 1e-3
    if METHODS[method].mergeable:
        from transformers import AutoModelForCausalLM

        merged = AutoModelForCausalLM.from_pretrained(artifact(plan, "merged"))
        assert (logits(merged) - trained).abs().max() < 1e-4


@pytest.mark.parametrize("method", PARTS)
def test_a_method_goes_on_from_a_checkpoint_to_the_same_bits(
    train: Callable[[MethodType], Trained], method: MethodType
) -> None:
    plan, _, weights = train(method)
    shutil.rmtree(Path(plan.checkpoint.directory) / "checkpoint-6")
    shutil.rmtree(plan.output.directory)
    resumed = run(plan)
    assert resumed.resumes == 1 and (Path(plan.checkpoint.directory) / f"checkpoint-{MIDDLE}").exists()
    assert weights_of(plan) == weights


@pytest.mark.parametrize("method", MERGED)
def test_merging_is_undone_by_unmerging(train: Callable[[MethodType], Trained], method: MethodType) -> None:
    plan = train(method).plan
    if plan.method.quantization is not None:
        # The sum of quantised weights and an adapter is no quantised weight: it is merged into the dequantised ones.
        plan = plan.model_copy(update={"method": plan.method.model_copy(update={"quantization": None})})
    model = load_plain(plan)
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    before = logits(model)
    model.merge_adapter(safe_merge=True)
    assert (logits(model) - before).abs().max() < 1e-4
    merged = dict(model.named_parameters())
    assert any(not weights[name].equal(merged[name]) for name in weights)
    model.unmerge_adapter()
    after = dict(model.named_parameters())
    assert all((after[name] - weights[name]).abs().max() < 1e-6 for name in weights)
    assert (logits(model) - before).abs().max() < 1e-5


def test_a_broken_merge_is_not_published(planned: Callable[..., TrainingPlan], monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora import LoraModel

    merge = LoraModel.merge_and_unload

    def merge_all_but_one(self: Any, **options: Any) -> Any:
        layer = self.model.model.layers[1].mlp.down_proj
        layer.lora_B["default"].weight.data.zero_()
        return merge(self, **options)

    monkeypatch.setattr(LoraModel, "merge_and_unload", merge_all_but_one)
    plan = planned("rslora")
    with pytest.raises(ArtifactMismatchError, match="the merged artifact, reloaded, gives other logits"):
        run(plan)
    assert list(Path(plan.output.directory).iterdir()) == []


def test_adalora_spends_its_ranks_where_they_matter(train: Callable[[MethodType], Trained]) -> None:
    import torch

    plan = train("adalora").plan
    pattern = json.loads((artifact(plan) / "adapter_config.json").read_text())["rank_pattern"]
    ranks = [sum(kept) for kept in pattern.values()]
    # 14 linear layers that began with rank 6 each end with 4 on average, not all with the same.
    assert len(ranks) == 14 and {len(kept) for kept in pattern.values()} == {6}
    assert sum(ranks) == 14 * 4 and len(set(ranks)) > 1
    # The importance goes on from the checkpoint, not from nothing.
    kept = torch.load(Path(plan.checkpoint.directory) / f"checkpoint-{MIDDLE}" / "rank_budget.pt", weights_only=True)
    assert len(kept["exp_avg_ipt"]) == 14 * 3 and any(value.abs().sum() > 0 for value in kept["exp_avg_unc"].values())
    assert 14 * 4 < sum(sum(one) for one in kept["pattern"].values()) < 14 * 6


def test_lora_plus_has_two_learning_rates(train: Callable[[MethodType], Trained]) -> None:
    import torch

    plan = train("lora-plus").plan
    state = torch.load(Path(plan.checkpoint.directory) / f"checkpoint-{MIDDLE}" / "optimizer.pt", weights_only=True)
    rates = {group["lr"] for group in state["param_groups"] if group["params"]}
    assert rates == {1e-2, 4e-2}
    slow, fast = (group for group in state["param_groups"] if group["params"])
    assert len(slow["params"]) == len(fast["params"]) == 14
    assert slow["weight_decay"] == fast["weight_decay"] == 0.01


def test_freeze_leaves_the_other_weights_alone(
    train: Callable[[MethodType], Trained], planned: Callable[..., TrainingPlan]
) -> None:
    from safetensors.torch import load_file

    plan = train("freeze").plan
    before = load_file(Path(plan.model.source.location) / "model.safetensors")
    after = load_file(artifact(plan, "merged") / "model.safetensors")
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {name for name in before if name.startswith("model.layers.1.")} | {"model.norm.weight"}
    with pytest.raises(
        InvalidInputError, match=r"method.trainableLayers: 3, but the model has 2 decoder layers: set 2"
    ):
        run(planned("freeze", method={"trainable_layers": 3}))


def test_loftq_starts_from_what_the_quantisation_lost(planned: Callable[..., TrainingPlan]) -> None:
    from peft.tuners.lora import Linear4bit
    from peft.utils.integrations import dequantize_module_weight

    from finetune_trainer.model.adapter import prepare_method
    from finetune_trainer.model.load import load_model

    plan = planned("loftq")
    model, config = prepare_method(plan, load_model(plan, plan.model.source.location, 0))
    assert config is None
    unquantised = _base(planned("rslora"))
    layers = {n: layer for n, layer in model.get_base_model().named_modules() if isinstance(layer, Linear4bit)}
    assert len(layers) == 14
    for name, layer in layers.items():
        lost = unquantised.get_submodule(name).weight - dequantize_module_weight(layer.get_base_layer())
        assert (lost - layer.get_delta_weight("default")).norm() < 0.95 * lost.norm()


def test_a_bottleneck_begins_as_the_base_and_is_loaded_by_its_own_loader(
    train: Callable[[MethodType], Trained], planned: Callable[..., TrainingPlan]
) -> None:
    from peft import get_peft_model

    from finetune_trainer.model.adapter import prepare_method
    from finetune_trainer.model.bottleneck import BottleneckLayer, load_bottleneck

    places = {}
    for placement in ("houlsby", "pfeiffer"):
        plan = planned("bottleneck", method={"bottleneck": {"size": 8, "placement": placement}})
        model = get_peft_model(*prepare_method(plan, _base(plan)))
        assert logits(model).equal(logits(_base(plan)))
        places[placement] = [n for n, m in model.get_base_model().named_modules() if isinstance(m, BottleneckLayer)]
    layers = [f"model.layers.{number}" for number in range(2)]
    assert places["pfeiffer"] == [f"{layer}.mlp" for layer in layers]
    assert places["houlsby"] == [f"{layer}.{part}" for layer in layers for part in ("self_attn", "mlp")]

    plan = train("bottleneck").plan
    loaded = load_bottleneck(_base(plan), artifact(plan))
    assert logits(loaded).equal(logits(load_plain(plan)))
    with loaded.disable_adapter():
        assert logits(loaded).equal(logits(_base(plan)))


def test_adapters_are_switched_in_one_model(train: Callable[[MethodType], Trained]) -> None:
    from finetune_trainer.model.adapters import load_adapters

    folders = {name: artifact(train(name).plan) for name in ("dora", "pissa", "rslora")}  # type: ignore[arg-type]
    plan = train("dora").plan
    model = load_adapters(_base(plan), folders)
    alone = {name: logits(load_plain(train(name).plan)) for name in folders}  # type: ignore[arg-type]
    assert logits(model).equal(alone["dora"])
    for name in ("rslora", "pissa", "dora", "rslora"):
        model.set_adapter(name)
        assert logits(model).equal(alone[name])
    with model.disable_adapter():
        assert logits(model).equal(logits(_base(plan)))
    mixed = {"one": artifact(plan), "two": artifact(train("ia3").plan)}
    with pytest.raises(InvalidInputError, match="one is LORA, two is IA3; load them one at a time"):
        load_adapters(_base(plan), mixed)


@pytest.mark.parametrize("method", [name for name in PARTS if "resumeAdapter" in METHODS[name].settings])
def test_training_starts_from_an_adapter(
    train: Callable[[MethodType], Trained], planned: Callable[..., TrainingPlan], method: MethodType
) -> None:
    """With a learning rate of nothing it ends with the adapter that it started from."""
    plan = train(method).plan
    start = file_source(artifact(plan))
    again = planned(method, method={"resume_adapter": start}, training={"learning_rate": 0.0, "max_steps": 1})
    run(again)
    assert weights_of(again) == train(method).weights


@pytest.mark.parametrize(
    ("method", "other", "change", "message"),
    [
        ("rslora", "rslora", {"lora": {**PARTS["rslora"]["lora"], "rank": 8}}, "has 4 where method.rank is 8: set method.rank: 4"),
        ("rslora", "dora", {}, "is of another kind .use_dora True, this plan's is False.: take the method it was trained with"),
        ("ia3", "rslora", {}, "is of another kind .peft_type LORA"),
        ("rslora", "rslora", {"lora": {**PARTS["rslora"]["lora"], "target_modules": ("q_proj",)}}, "is for other modules than method.targetModules: set it to .*down_proj.*v_proj"),
        ("p-tuning-v2", "p-tuning-v2", {"prompt": {"virtual_tokens": 5}}, "has 4 where method.virtualTokens is 5"),
    ],
    ids=["rank", "variant", "kind", "targets", "tokens"],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_refused(
    train: Callable[[MethodType], Trained],
    planned: Callable[..., TrainingPlan],
    method: MethodType,
    other: MethodType,
    change: dict[str, Any],
    message: str,
) -> None:
    from finetune_trainer.model.adapter import prepare_method

    start = file_source(artifact(train(other).plan))
    plan = planned(method, method={"resume_adapter": start, **change})
    with pytest.raises(InvalidInputError, match=f"method.resumeAdapter {start.uri} {message}"):
        prepare_method(plan, _base(plan))


def test_a_folder_without_an_adapter_is_refused(planned: Callable[..., TrainingPlan], tmp_path: Path) -> None:
    from finetune_trainer.model.adapter import prepare_method

    plan = planned("rslora", method={"resume_adapter": file_source(tmp_path)})
    with pytest.raises(InvalidInputError, match=f"method.resumeAdapter file://{tmp_path}: no PEFT adapter is there"):
        prepare_method(plan, _base(plan))


@pytest.mark.parametrize("method", ["prefix", "p-tuning-v2"])
def test_prefixes_are_refused_under_gradient_checkpointing(
    planned: Callable[..., TrainingPlan], method: MethodType
) -> None:
    """It drops the cache, and with it what they train."""
    from finetune_trainer.model.adapter import prepare_method

    with pytest.raises(InvalidInputError, match=r"training.gradientCheckpointing: true drops .* set it to false, or"):
        prepare_method(planned(method, training={"gradient_checkpointing": True}), None)


def test_prompts_train_under_gradient_checkpointing(planned: Callable[..., TrainingPlan], tmp_path: Path) -> None:
    """The same losses as without."""
    plain, checkpointed = (
        planned(
            "p-tuning",
            checkpoint={"directory": str(tmp_path / f"checkpointing-{on}")},
            training={"gradient_checkpointing": on, "max_steps": 2},
        )
        for on in (False, True)
    )
    assert run(plain).loss == pytest.approx(run(checkpointed).loss, abs=1e-6)
