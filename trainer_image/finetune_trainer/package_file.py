"""Files that lie in an installed Python package."""

import importlib.metadata
from pathlib import Path

from finetune_api.plan import ResolvedSource
from finetune_trainer.errors import InvalidInputError


def find_package_file(source: ResolvedSource) -> Path:
    """The file that ``source.location`` (``distribution/file``) names: its path in the package, or the end of it.

    Raises: InvalidInputError when the package isn't installed or has no or several such files.
    """
    distribution, _, wanted = source.location.partition("/")
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        raise InvalidInputError(
            f"{source.uri}: the Python package {distribution} is not installed here: install it, or use another source"
        ) from None
    found = [file for file in files if str(file) == wanted] or [
        file for file in files if str(file).endswith(f"/{wanted}")
    ]
    if len(found) != 1:
        raise InvalidInputError(
            f"{source.uri}: the package {distribution} has {len(found)} files named {wanted}, one is needed"
        )
    return Path(str(found[0].locate()))
