"""Waiting for a cluster to get somewhere."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    probe: Callable[[], T | None], what: str, seconds: float = 30, describe: Callable[[], object] = str
) -> T:
    """Polls until `probe` returns something true, and returns it.

    Raises TimeoutError that says `what` did not happen, with what `describe` returns then.
    """
    deadline = time.monotonic() + seconds
    while not (result := probe()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what} {describe()}")
        time.sleep(0.05)
    return result
