"""Upload of the artifacts to a model hub, by huggingface_hub's own client; ``HF_ENDPOINT`` names another than the default."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api import names
from finetune_api.plan import HubPlan, TrainingPlan
from finetune_api.progress import Result
from finetune_trainer.errors import InvalidInputError, TrainerError
from finetune_trainer.report.result import write_result

_PAUSES = (1.0, 5.0, 25.0)
"""Seconds before another try."""


class UploadError(TrainerError):
    """The artifacts are exported and couldn't be uploaded; the next run of the same plan only uploads them."""


def require_token(plan: TrainingPlan) -> None:
    """Raises: InvalidInputError when the plan uploads and there is no token: hours before it would be missed."""
    if plan.output.hub is not None and not os.environ.get(names.ENV_HF_TOKEN):
        raise InvalidInputError(
            f"output.pushToHub {plan.output.hub.repo}: there is no token to upload with: set "
            f"output.pushToHub.tokenSecretRef, or {names.ENV_HF_TOKEN} in the environment"
        )


def push_artifacts(plan: TrainingPlan, result: Result, tell: Callable[[str], None]) -> Result:
    """Upload the result's artifacts and write down where to. A single one becomes the repository itself, several a
    folder each. What is there already is not sent again, so a second try, or a second run, is cheap.

    Raises: UploadError.
    """
    import httpx2

    hub = plan.output.hub
    assert hub is not None
    for pause in (*_PAUSES, None):
        try:
            address = _upload(plan, hub, result)
            break
        except (OSError, httpx2.HTTPError) as error:
            if pause is None or _is_final(error):
                raise UploadError(
                    f"output.pushToHub {hub.repo}: the upload failed: {_describe(error)}; the artifacts are kept in "
                    f"{plan.output.destination or plan.output.directory}, running again only uploads them"
                ) from error
            tell(f"the upload to {hub.repo} failed, next try in {pause:g} s: {_describe(error)}")
            time.sleep(pause)
    result = result.model_copy(update={"pushed_to": address})
    write_result(plan, result)
    return result


def _upload(plan: TrainingPlan, hub: HubPlan, result: Result) -> str:
    from huggingface_hub import HfApi

    # PEFT's card names the base model's folder, and a hub refuses a card whose base model isn't one of its own.
    ignored = None if plan.model.source.kind == "hf" else "README.md"
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ[names.ENV_HF_TOKEN])
    address = api.create_repo(hub.repo, private=hub.private, exist_ok=True)
    for artifact in result.artifacts:
        api.upload_folder(
            repo_id=hub.repo,
            folder_path=artifact.path,
            path_in_repo="." if len(result.artifacts) == 1 else Path(artifact.path).name,
            commit_message=f"{artifact.type} of {result.job}",
            ignore_patterns=ignored,
        )
    return str(address)


def _is_final(error: Exception) -> bool:
    """Whether the hub understood the request and refused it: a wrong token, a name that isn't allowed."""
    response: Any = getattr(error, "response", None)
    return response is not None and 400 <= response.status_code < 500 and response.status_code not in (408, 429)


def _describe(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
