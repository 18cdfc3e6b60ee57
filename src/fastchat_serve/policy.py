"""What a dispatch policy sees, and what it decides.

A policy is a pure function: it gets at least one candidate, all able and ready to take the request, and
returns the index of its choice. Chance and turn come in through `Draw`, so the same input always
gives the same choice. Ours are in `controller/policies.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from msgspec import Struct

__all__ = ["Candidate", "Draw", "Policy"]


class Candidate(Struct, frozen=True):
    """One worker that could take the request."""

    id: str
    speed: float
    """Relative; 0 means "send nothing here while others can"."""
    queue_length: int
    """Requests it has accepted and not finished."""
    work: int = 0
    """About how many tokens those are, read and written, as far as they came from here."""
    known: int = 0
    """Characters from the beginning of the prompt that it has read of late. Looked up for the policy `prefix` only."""


class Draw(Struct, frozen=True):
    """What a policy may use beside the candidates."""

    random: Random
    turn: int
    """How many requests for this model were dispatched before."""
    session: str = ""
    """`GenerateRequest.session`."""


Policy = Callable[[Sequence[Candidate], Draw], int]
