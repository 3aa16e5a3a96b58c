"""What doesn't learn beside the trained model: references and reward models."""

from typing import Any

from accelerate import PartialState

from finetune_api.plan import ResolvedSource, TrainingPlan
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.model.load import load_model, load_tokenizer
from finetune_trainer.model.source import locate_model
from finetune_trainer.objective.parts import Parts


def reference_options(plan: TrainingPlan) -> dict[str, Any]:
    """How a TRL trainer loads the plan's model once more, for a reference where the model's own weights are trained."""
    return {
        "model_init_kwargs": {"revision": plan.model.revision},
        "trust_remote_code": plan.model.trust_remote_code,
    }


def build_beside_reference(trainer_class: Any, config: Any, parts: Parts) -> Any:
    """A TRL trainer that compares the trained model with a reference. Raises: as ``load_reference``."""
    trainer = trainer_class(args=config, ref_model=load_reference(parts), **parts.arguments)
    if config.precompute_ref_log_probs:
        # It has said all that it is asked for.
        trainer.ref_model = None
    return trainer


def load_reference(parts: Parts) -> Any | None:
    """``objective.reference_model``; None where TRL gets the model before training itself: by leaving the adapter out,
    from a copy of the adapter that it starts from, or by loading the model once more.

    Raises: InvalidInputError when it can't be loaded or doesn't fit the tokenizer.
    """
    plan = parts.plan
    source = plan.objective.reference_model
    if source is None:
        return None
    try:
        reference = _load(_beside(plan, source))
    except InvalidInputError as error:
        raise _about("objective.referenceModel", error) from error
    rows = reference.get_input_embeddings().num_embeddings
    if parts.data.largest_id >= rows:
        raise InvalidInputError(
            f"objective.referenceModel {source.uri}: its embedding has {rows} rows, and the tokenizer of the trained "
            f"model makes token id {parts.data.largest_id} of the dataset: take a reference with the same tokenizer"
        )
    return reference


def load_reward_model(plan: TrainingPlan) -> tuple[Any, Any]:
    """``objective.reward_model`` and its tokenizer.

    Raises: InvalidInputError when it can't be loaded or isn't a sequence classifier of one label.
    """
    from transformers import AutoConfig

    source = plan.objective.reward_model
    assert source is not None
    beside = _beside(plan, source).model_copy(
        update={
            "objective": plan.objective.model_copy(update={"type": "reward"}),
            "method": plan.method.model_copy(update={"quantization": None}),
        }
    )
    try:
        location = locate_model(beside)
        tokenizer = load_tokenizer(beside, location)
        config = AutoConfig.from_pretrained(location, trust_remote_code=plan.model.trust_remote_code)
        kind = (config.architectures or ["model of unknown kind"])[0]
        if not kind.endswith("ForSequenceClassification") or config.num_labels != 1:
            raise InvalidInputError(
                f"model.source {source.uri}: a reward is the score of a sequence classifier of one label, this is a "
                f"{kind} with {config.num_labels} labels: train one with objective.type reward"
            )
        return _load(beside), tokenizer
    except InvalidInputError as error:
        raise _about("objective.rewardModel", error) from error


def _beside(plan: TrainingPlan, source: ResolvedSource) -> TrainingPlan:
    """The plan with another model; ``revision`` and ``chat_template`` are the trained model's."""
    model = plan.model.model_copy(update={"source": source, "revision": None, "chat_template": None})
    return plan.model_copy(update={"model": model})


def _load(plan: TrainingPlan) -> Any:
    return load_model(plan, locate_model(plan), PartialState().local_process_index).requires_grad_(False)


def _about(field: str, error: InvalidInputError) -> InvalidInputError:
    return InvalidInputError(str(error).replace("model.source", field, 1))
