"""Random FineTuneJobs for property tests: every field of the models, each within its own bounds.

The rules between fields are left to chance; names and paths come from small pools, so that they meet often.
"""

from typing import Any

from hypothesis import strategies as st
from pydantic import BaseModel

from finetune_api import kubernetes as k8s
from finetune_api import spec
from finetune_operator.spec.fields import Shape, parse_shape, read_bounds

_NAMES = ("data", "more", "shm", "reward")
_POOLS: dict[str, tuple[str, ...]] = {
    k8s.DNS_LABEL_PATTERN: _NAMES,
    k8s.DNS_SUBDOMAIN_PATTERN: (*_NAMES, "a.b-c"),
    k8s.LABEL_KEY_PATTERN: ("team", "example.com/team", "nvidia.com/gpu.product"),
    k8s.LABEL_VALUE_PATTERN: ("", "a100", "7"),
    k8s.ENV_NAME_PATTERN: ("MODE", "LOG_LEVEL", "FINETUNE_X", "HF_TOKEN", "my.password"),
    k8s.SECRET_KEY_PATTERN: ("token", "train.jsonl"),
    k8s.ABSOLUTE_PATH_PATTERN: ("/", "/data", "/data/", "/data/in", "/mnt", "/mnt/finetune", "/etc/finetune/x", "/tmp"),
    k8s.RESOURCE_NAME_PATTERN: ("nvidia.com/gpu", "amd.com/gpu"),
    k8s.FIELD_PATH_PATTERN: ("spec.nodeName", "metadata.labels['app']"),
    k8s.DURATION_PATTERN: ("90s", "1h30m"),
    spec.IMAGE_PATTERN: ("trainer:1",),
    spec.MODEL_SOURCE_PATTERN: (
        "hf://org/model",
        "pvc://data/model",
        "s3://bucket/model",
        "file:///data/model.gguf",
        "package://dist/model",
    ),
    spec.DATASET_SOURCE_PATTERN: ("hf://org/rows", "pvc://data", "configMap://data/train.jsonl"),
    spec.DESTINATION_PATTERN: (
        "pvc://data/out",
        "s3://bucket/out",
        "file:///data/out",
        "file:///data",
        "file:///elsewhere",
    ),
    spec.STORAGE_PATTERN: ("pvc://data/checkpoints", "s3://bucket/prefix"),
    spec.RESUME_PATTERN: ("auto", "never", "pvc://data/runs/checkpoint-10", "s3://bucket/runs/checkpoint-10"),
    spec.NCCL_PATTERN: ("NCCL_DEBUG", "FI_PROVIDER"),
    spec.NETWORK_PATTERN: ("rdma-net", "infra/rdma-net"),
    spec.HARNESS_TASK_PATTERN: ("hellaswag", "file:///tasks/own.yaml"),
    spec.HUB_REPO_PATTERN: ("org/name",),
    spec.FIGURE_PATTERN: ("loss", "eval_loss", "harness/hellaswag/acc"),
    spec.REWARD_FUNCTION_PATTERN: ("exact-match", "my_rewards:score"),
}
_MODULES = ("all-linear", "q_proj", "v_proj")


def jobs(specs: st.SearchStrategy[dict[str, Any]] | None = None) -> st.SearchStrategy[dict[str, Any]]:
    """Documents whose every field has the right shape."""
    return (specs or objects(spec.FineTuneJobSpec)).map(
        lambda drawn: {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "random"},
            "spec": drawn,
        }
    )


def objects(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects of one model; an optional field is there half of the time."""
    required: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for name, field in model.model_fields.items():
        part = required if field.is_required() else optional
        part[field.alias or name] = _values(parse_shape(field.annotation, field.metadata))
    return st.fixed_dictionaries(required, optional=optional)


def _values(shape: Shape) -> st.SearchStrategy[Any]:
    bounds = read_bounds(shape.metadata)
    match shape.kind:
        case "object":
            assert shape.model is not None
            return st.deferred(lambda: objects(shape.model))  # type: ignore[arg-type]
        case "list":
            item = parse_shape(shape.item)
            pooled = (
                st.sampled_from(_MODULES)
                if item.kind == "string" and not read_bounds(item.metadata).get("pattern")
                else _values(item)
            )
            return st.lists(pooled, min_size=bounds.get("min_length", 0), max_size=min(3, bounds.get("max_length", 3)))
        case "map":
            return st.dictionaries(
                _text(read_bounds(parse_shape(shape.key).metadata)), _values(parse_shape(shape.item)), max_size=3
            )
        case "enum":
            return st.sampled_from(shape.choices)
        case "boolean":
            return st.booleans()
        case "quantity":
            return st.sampled_from((1, 64, "500m", "2.5", "16Gi", "1G", "0.5Gi", "128Mi"))
        case "integer":
            low, high = bounds["ge"], bounds["le"]
            return st.just(low) | st.integers(low, min(high, low + 8)) | st.integers(low, high)
        case "number":
            return st.floats(
                bounds.get("ge", bounds.get("gt")),
                bounds.get("le", bounds.get("lt")),
                exclude_min="gt" in bounds,
                exclude_max="lt" in bounds,
                width=64,
                allow_subnormal=False,
            )
        case _:
            return _text(bounds)


def _text(bounds: dict[str, Any]) -> st.SearchStrategy[str]:
    if "pattern" in bounds:
        return st.sampled_from(_POOLS[bounds["pattern"]])
    # No surrogates: JSON sent to the API server can't hold them.
    letters = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
    return st.text(letters, min_size=bounds.get("min_length", 0), max_size=min(12, bounds.get("max_length", 12)))
