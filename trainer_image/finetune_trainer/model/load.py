"""Loads the tokenizer and the model as the plan says: dtype, attention, quantisation."""

from typing import Any

from finetune_api.objectives import OBJECTIVES
from finetune_api.plan import QuantizationPlan, TrainingPlan
from finetune_trainer.errors import InvalidInputError


def load_tokenizer(plan: TrainingPlan, location: str) -> Any:
    """The model's tokenizer, with the plan's chat template and a padding token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            location, revision=plan.model.revision, trust_remote_code=plan.model.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise _refusal(plan, "the tokenizer", error) from error
    if plan.model.chat_template is not None:
        tokenizer.chat_template = plan.model.chat_template
    if tokenizer.pad_token_id is None:
        # Padding is masked in attention and labels, so no new token and no resized embedding is needed.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(plan: TrainingPlan, location: str, local_rank: int) -> Any:
    """The base model, ready to be trained or to take an adapter.

    Raises: InvalidInputError when the source holds no language model that can be loaded so.
    """
    device = f"cuda:{local_rank}" if plan.parallelism.device == "cuda" else "cpu"
    try:
        # Where the ranks share the weights out, the engine places them.
        model = load_base(plan, location, None if plan.parallelism.strategy in ("zero3", "fsdp") else device)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _refusal(plan, "the model", error) from error
    if plan.method.quantization is not None:
        from peft import prepare_model_for_kbit_training

        # The Trainer turns gradient checkpointing on itself.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return model


def load_base(plan: TrainingPlan, location: str, device: str | None) -> Any:
    """The base model by plain transformers: in the plan's dtype, quantised for qlora. ``device`` None: wherever
    transformers loads it to."""
    import torch
    from transformers import set_seed

    quantization = plan.method.quantization
    head: dict[str, Any] = {}
    if OBJECTIVES[plan.objective.type].classifies:
        # A row's score is read off its last token that isn't padding.
        head = {"num_labels": 1, "pad_token_id": load_tokenizer(plan, location).pad_token_id}
        # The head is drawn at random.
        set_seed(plan.training.seed)
    model = model_class(plan).from_pretrained(
        location,
        revision=plan.model.revision,
        dtype=getattr(torch, plan.model.dtype),
        attn_implementation=plan.model.attention,
        trust_remote_code=plan.model.trust_remote_code,
        quantization_config=None if quantization is None else quantization_config(plan, quantization),
        device_map=None if device is None else {"": device},
        **head,
    )
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes repacks a 4-bit layer at the first forward without gradients, and
        # rounds its scales to bfloat16: an evaluation would change the weights that the training goes on with.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def model_class(plan: TrainingPlan) -> Any:
    """transformers' class that loads models with the head of the plan's objective."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    classifies = OBJECTIVES[plan.objective.type].classifies
    return AutoModelForSequenceClassification if classifies else AutoModelForCausalLM


def quantization_config(plan: TrainingPlan, quantization: QuantizationPlan) -> Any:
    """bitsandbytes' configuration of the plan's quantisation."""
    import torch
    from transformers import BitsAndBytesConfig

    if quantization.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.type,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, quantization.compute_dtype),
        # FSDP cuts up what is stored as floating point only.
        bnb_4bit_quant_storage=getattr(torch, plan.model.dtype) if plan.parallelism.strategy == "fsdp" else torch.uint8,
    )


def require_fitting_vocabulary(plan: TrainingPlan, largest_id: int, model: Any) -> None:
    """Raises: InvalidInputError when the data holds token ids that the embedding has no row for."""
    rows = model.get_input_embeddings().num_embeddings
    if largest_id >= rows:
        raise InvalidInputError(
            f"model.source {plan.model.source.uri}: the tokenizer makes token id {largest_id}, the model's embedding has "
            f"{rows} rows: tokenizer and model don't belong together"
        )


def _refusal(plan: TrainingPlan, what: str, error: Exception) -> Exception:
    """InvalidInputError, or the error itself where the network may do better next time."""
    if plan.model.source.kind == "hf":
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

        causes = [error, error.__cause__, error.__context__]
        lasting = (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError)
        if isinstance(error, OSError) and not any(isinstance(cause, lasting) for cause in causes):
            return error
    first_line = (str(error).strip() or repr(error)).splitlines()[0]
    return InvalidInputError(f"model.source {plan.model.source.uri}: {what} can't be loaded: {first_line}")
