"""A document as YAML or the API server gives it -> FineTuneJob, or every reason why not."""

import json
import re
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from finetune_api.compatibility import RULES, SECRET_ENV_MARKS
from finetune_api.errors import InvalidFineTuneJob, Problem
from finetune_api.spec import FineTuneJob
from finetune_operator.spec import wording
from finetune_operator.spec.fields import build_example, find_shape, format_path

Location = tuple[str | int, ...]

HIDDEN = "(not shown)"
_SECRET_TEXT = re.compile(r"(hf_|sk-|ghp_|github_pat_|AKIA|eyJ)[A-Za-z0-9_-]{12}|^\w+=")


def parse_finetunejob(document: Any) -> FineTuneJob:
    """What a person wrote, defaulted and checked as strictly as the API server does, and by the rules between fields.

    Raises InvalidFineTuneJob with every problem.
    """
    if not isinstance(document, dict):
        raise InvalidFineTuneJob(
            [Problem("", type(document).__name__, "not an object", "write apiVersion, kind, metadata and spec")]
        )
    normal = _normalise(document)
    job, errors = _validate(normal)
    if normal != document:  # dropping nulls hides unknown fields with nothing behind them
        errors += [
            each for each in _validate(document)[1] if each["type"] == "extra_forbidden" and each["input"] is None
        ]
    if job is None or errors:
        raise InvalidFineTuneJob([_build_problem(each) for each in errors])
    problems = [
        Problem(f"spec.{path}", value, rule.message, rule.mend) for rule in RULES for path, value in rule.find(job.spec)
    ]
    if problems:
        raise InvalidFineTuneJob(problems)
    return job


def _normalise(value: Any) -> Any:
    """As the API server reads it: a null is an absent field, 3.0 and 1e3 are whole numbers."""
    if isinstance(value, dict):
        return {key: _normalise(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_normalise(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _validate(document: dict[str, Any]) -> tuple[FineTuneJob | None, list[ErrorDetails]]:
    # By way of JSON: there pydantic's strict mode is the API server's (no "3" for 3, keys are strings).
    try:
        return FineTuneJob.model_validate_json(json.dumps(document), strict=True, by_alias=True, by_name=False), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _build_problem(error: ErrorDetails) -> Problem:
    location: Location = error["loc"]
    value: Any = error["input"]
    if location and location[-1] == "[key]":
        message, mend = wording.explain_key(str(value), error["type"], error.get("ctx", {}))
        return Problem(format_path(location[:-1]), value, message, mend)
    kind = error["type"]
    if kind == "extra_forbidden":
        parent, _ = find_shape(FineTuneJob, location[:-1])
        message, mend = wording.explain_unknown(str(location[-1]), parent)
    else:
        shape, field = find_shape(FineTuneJob, location)
        example = build_example(shape, field)
        match kind:
            case "missing":
                value = None
                message, mend = wording.explain_missing(str(location[-1]), example)
            case "literal_error":
                message, mend = wording.explain_choice(value, shape.choices)
            case "string_pattern_mismatch":
                message, mend = wording.explain_pattern(value, error["ctx"]["pattern"])
            case _ if kind.startswith(("greater_than", "less_than", "too_", "string_too_", "finite_")):
                message, mend = wording.explain_bounds(value, shape, example)
            case _:
                message, mend = wording.explain_type(value, shape)
    path = format_path(location)
    if not _may_be_secret(location, value):
        return Problem(path, value, message, mend)
    told = wording.format_value(value)
    return Problem(path, HIDDEN, message.replace(told, HIDDEN), mend.replace(told, HIDDEN))


def _may_be_secret(location: Location, value: Any) -> bool:
    """A secret that was pasted where none belongs must not show up in a log or a status."""
    if value in (None, ""):
        return False
    name = next((step for step in reversed(location) if isinstance(step, str)), "")
    in_environment = location[:3] == ("spec", "podTemplate", "env") and name != "name" and "valueFrom" not in location
    marked = any(mark.replace("_", "") in name.upper().replace("_", "") for mark in SECRET_ENV_MARKS)
    return in_environment or marked or (isinstance(value, str) and _SECRET_TEXT.search(value) is not None)
