"""The client of S3 and of what speaks its protocol, set up by the environment's AWS_* variables."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from finetune_trainer.errors import InvalidInputError

T = TypeVar("T")

_VARIABLES = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL"

_REFUSALS = (
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "NO_SUCH_BUCKET",
    "NO_SUCH_KEY",
    "HTTP status 301",
)
"""Errors of AWS's client that another try doesn't mend; 301 is a bucket in another region than AWS_REGION."""
PATIENCE = 300.0
"""Seconds for which a server may be away."""


def connect_s3() -> Any:
    """pyarrow's file system over AWS's client, which reads the credentials itself."""
    from pyarrow.fs import S3FileSystem  # type: ignore[import-untyped]

    environment = os.environ
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    options: dict[str, Any] = {"region": region} if region else {}
    if endpoint:
        parts = urlsplit(endpoint)
        options.update(endpoint_override=parts.netloc, scheme=parts.scheme)
    # Small files go in one piece, large ones in parts.
    return S3FileSystem(**options, allow_delayed_open=True)


def is_refused(error: OSError) -> bool:
    """Whether the server said no, or has no such thing: another try gets the same answer."""
    return isinstance(error, FileNotFoundError) or any(refusal in str(error) for refusal in _REFUSALS)


@contextmanager
def blame(field: str, uri: str) -> Iterator[None]:
    """What the server refuses within is an error of the field. Raises: InvalidInputError."""
    try:
        yield
    except OSError as error:
        if not is_refused(error):
            raise
        raise InvalidInputError(
            f"{field} {uri}: {str(error).splitlines()[0]}; it is looked for with the AWS_* variables of the environment "
            f"({_VARIABLES})"
        ) from error


def insist(action: Callable[[], T], patience: float = PATIENCE) -> T:
    """``action``, tried again while the server is away. Raises: OSError when it is refused, or away for too long."""
    began, pause = time.monotonic(), 0.5
    while True:
        try:
            return action()
        except OSError as error:
            if is_refused(error) or time.monotonic() - began + pause > patience:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 20)
