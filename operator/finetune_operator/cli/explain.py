"""Every field of a FineTuneJob: its value, where it came from, and why."""

from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from finetune_api import methods, objectives
from finetune_api.model_base import ApiModel
from finetune_api.spec import FineTuneJob
from finetune_operator.plan.decide import Decided
from finetune_operator.plan.decisions import Decision
from finetune_operator.settings import Settings


def explain_job(job: FineTuneJob, written: dict[str, Any], decided: Decided, settings: Settings) -> list[Decision]:
    """A row for each field of the spec, in its order. ``written`` is the spec as the person wrote it."""
    told = (*_list_untaken(job), *_list_platform(job, settings), *decided.decisions)
    decisions = {decision.path: decision for decision in told}
    return list(_explain(job.spec, written, "", decisions))


def _list_untaken(job: FineTuneJob) -> Iterator[Decision]:
    """What the method and the objective don't take."""
    for setting in methods.SETTINGS - methods.METHODS[job.spec.method.type].settings:
        yield Decision(f"method.{setting}", None, "default", f"for {', '.join(methods.list_taking(setting))}")
    for setting in objectives.SETTINGS - objectives.OBJECTIVES[job.spec.objective.type].settings:
        yield Decision(f"objective.{setting}", None, "default", f"for {', '.join(objectives.list_taking(setting))}")


def _list_platform(job: FineTuneJob, settings: Settings) -> Iterator[Decision]:
    """What the pod gets from the settings when the job doesn't say; the plan doesn't speak of it."""
    template, volume = job.spec.pod_template, job.spec.output.volume
    given = {
        "podTemplate.image": (template.image, settings.trainer_image),
        "podTemplate.imagePullSecrets": (template.image_pull_secrets, settings.image_pull_secrets or None),
        "output.volume.storageClass": (volume.storage_class if volume else None, settings.output.storage_class),
    }
    for path, (own, platform) in given.items():
        if own is None and platform is not None:
            yield Decision(path, platform, "platform", "the platform's setting")
    for name, field in type(settings.security_context).model_fields.items():
        own = getattr(template.security_context, name) if template.security_context else None
        platform = getattr(settings.security_context, name)
        if own is None and platform is not None:
            yield Decision(
                f"podTemplate.securityContext.{field.alias}", platform, "platform", "the platform's security context"
            )


def _explain(part: ApiModel, written: Any, above: str, decisions: dict[str, Decision]) -> Iterator[Decision]:
    for name, field in type(part).model_fields.items():
        path = f"{above}{field.alias}"
        mine = written.get(field.alias) if isinstance(written, dict) else None
        yield from _explain_field(getattr(part, name), mine, path, field, decisions)


def _explain_field(
    value: Any, written: Any, path: str, field: FieldInfo, decisions: dict[str, Decision]
) -> Iterator[Decision]:
    if path in decisions:
        yield decisions[path]
    elif isinstance(value, ApiModel):
        yield from _explain(value, written, f"{path}.", decisions)
    elif written is not None:
        yield Decision(path, value, "you", "set in the file")
    elif below := [decision for key, decision in decisions.items() if key.startswith(f"{path}.")]:
        yield from below
    else:
        yield Decision(path, value, "default", field.description or "")
