"""Candidates as policies see them, made of plain ones: through a real registry."""

from __future__ import annotations

from collections.abc import Sequence

from fastchat_serve.controller.pools import Standing
from fastchat_serve.controller.registry import Registry
from fastchat_serve.policy import Candidate
from tests.straw import StrawWorker

__all__ = ["standing"]


def standing(candidates: Sequence[Candidate]) -> Standing:
    """Their ids must differ."""
    registry = Registry()
    for candidate in candidates:
        worker = StrawWorker(candidate.id, speed=candidate.speed)
        worker.queue_length = candidate.queue_length
        registry.add(worker)
    served = registry.look("m")
    assert served is not None
    for member, candidate in zip(served.members, candidates, strict=True):
        member.charge(candidate.work)
    registry.look("m")
    found = served.pool(frozenset()).open
    found.known = {each.id: each.known for each in sorted(candidates, key=lambda each: -each.known) if each.known}
    return found
