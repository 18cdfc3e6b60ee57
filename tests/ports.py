"""Ports to listen at later, or again and again: each is given out once, so that no two tests meet at one.

They lie below those that the kernel gives to whoever dials, and each process of pytest-xdist has its own.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from functools import cache
from itertools import islice

__all__ = ["free_port", "free_ports"]

FIRST = 10_000
PROCESSES, PORTS_EACH = 5, 4_000
"""So many processes share them, and so many are for each; of more processes, some share theirs."""


def free_port() -> int:
    """One that nobody listens at."""
    return next(_of_this_process())


def free_ports(count: int) -> list[int]:
    return list(islice(_of_this_process(), count))


@cache
def _of_this_process() -> Iterator[int]:
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % PROCESSES
    ports = range(FIRST + process * PORTS_EACH, FIRST + (process + 1) * PORTS_EACH)
    return filter(_is_free, random.sample(ports, PORTS_EACH))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
