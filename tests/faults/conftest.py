"""What the rows of the fault matrix share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.engine import FaultEngine, PushingFaultEngine

FAULTY = """
[controller]
[api]
[[worker]]
backend = "faulty"
concurrency = 2
queue = 8
"""


@pytest.fixture(params=[FaultEngine, PushingFaultEngine], ids=["pull", "push"])
def kind(request: pytest.FixtureRequest) -> Callable[[], FaultEngine]:
    """Either form of an engine."""
    return request.param  # type: ignore[no-any-return]
