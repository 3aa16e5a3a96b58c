"""What is trained: the part of the plan that ``methods.METHODS`` names for the method."""

from finetune_api import plan as p
from finetune_api.compatibility import RANK
from finetune_api.methods import METHODS
from finetune_api.spec import FineTuneJobSpec, Method, Quantization
from finetune_operator.plan.decisions import Decisions
from finetune_operator.plan.layout import Layout, resolve_source


def decide_method(spec: FineTuneJobSpec, notes: Decisions, dtype: p.Dtype, layout: Layout) -> p.MethodPlan:
    """``dtype``: of the base weights."""
    method = spec.method
    part = METHODS[method.type].part
    return p.MethodPlan(
        type=method.type,
        lora=_decide_lora(method, notes) if part == "lora" else None,
        quantization=_decide_quantization(method, notes, dtype),
        ia3=p.Ia3Plan(target_modules=tuple(method.target_modules) if method.target_modules else None) if part == "ia3" else None,
        prompt=_decide_prompt(method, notes) if part == "prompt" else None,
        bottleneck=_decide_bottleneck(method, notes) if part == "bottleneck" else None,
        trainable_layers=notes.choose("method.trainableLayers", method.trainable_layers, 2, "what lies closest to the output adapts most") if part == "trainable_layers" else None,
        resume_adapter=resolve_source(method.resume_adapter, "adapter", layout) if method.resume_adapter else None,
    )  # fmt: skip


def _decide_lora(method: Method, notes: Decisions) -> p.LoraPlan:
    rank = notes.choose("method.rank", method.rank, RANK, "enough for most tasks; raise it for much data")
    ratio = first = None
    if method.type == "lora-plus":
        ratio = notes.choose("method.learningRateRatio", method.learning_rate_ratio, 16.0, "as in the LoRA+ paper")
    if method.type == "adalora":
        first = notes.choose(
            "method.initialRank",
            method.initial_rank,
            max(rank + 1, rank * 3 // 2),
            "1.5 x rank, as in the AdaLoRA paper",
        )
    return p.LoraPlan(
        rank=rank,
        alpha=notes.choose("method.alpha", method.alpha, 2.0 * rank, "2 x rank: a scale of 2"),
        dropout=notes.choose("method.dropout", method.dropout, 0.05, "mild regularisation"),
        target_modules=tuple(notes.choose("method.targetModules", method.target_modules, ["all-linear"], "adapters on every linear come closest to full fine-tuning (QLoRA paper)")),
        learning_rate_ratio=ratio,
        initial_rank=first,
    )  # fmt: skip


def _decide_quantization(method: Method, notes: Decisions, dtype: p.Dtype) -> p.QuantizationPlan | None:
    if method.type == "loftq":
        return p.QuantizationPlan(bits=4, type="nf4", double_quant=False, compute_dtype=dtype)
    if method.type != "qlora":
        return None
    asked = method.quantization or Quantization()
    four = asked.bits == 4
    return p.QuantizationPlan(
        bits=asked.bits,
        type=notes.choose("method.quantization.type", asked.type, "nf4" if four else "int8", "fits normally distributed weights (QLoRA paper)" if four else "the type of 8 bits"),
        double_quant=notes.choose("method.quantization.doubleQuant", None if not four or method.quantization is None else asked.double_quant, four, "0.4 bit a parameter less (QLoRA paper)" if four else "8 bits have no constants worth it"),
        compute_dtype=notes.choose("method.quantization.computeDtype", asked.compute_dtype, dtype, "as model.dtype"),
    )  # fmt: skip


def _decide_prompt(method: Method, notes: Decisions) -> p.PromptPlan:
    return p.PromptPlan(
        virtual_tokens=notes.choose("method.virtualTokens", method.virtual_tokens, 20, "where the papers' curves flatten"),
        encoder_hidden_size=method.encoder_hidden_size,
    )  # fmt: skip


def _decide_bottleneck(method: Method, notes: Decisions) -> p.BottleneckPlan:
    return p.BottleneckPlan(
        size=notes.choose("method.bottleneckSize", method.bottleneck_size, 64, "as in the papers"),
        placement=notes.choose("method.placement", method.placement, "pfeiffer", "half the parameters, as good (Pfeiffer et al.)"),
        dropout=notes.choose("method.dropout", method.dropout, 0.0, "so small a network needs none"),
    )  # fmt: skip
