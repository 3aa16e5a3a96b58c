"""Ports for servers of the tests."""

import random
import socket

_RANDOM = random.SystemRandom()
"""Not the process's: each training in it seeds that anew, and tests that run side by side would be given the same ports."""


def free_port() -> int:
    """A port that nobody listens on, below those that the kernel hands out by itself: nobody is given it in between."""
    while True:
        port = _RANDOM.randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
