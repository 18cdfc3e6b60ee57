"""Wire types of ``/cluster/decisions/…``: why a request went where it went."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["CandidateCard", "DecisionCard", "DecisionList"]


class CandidateCard(Struct, frozen=True, kw_only=True):
    """One worker of the model, as it was known when the decision was made."""

    id: str
    standing: str
    """``open``, ``full``, ``tried`` by this request before, ``unable`` to do what it needs, or ``not ready``."""
    score: float | None = None
    """As the policy has it, see `DecisionCard.scores`; None if it has none for this worker."""
    speed: float = 0.0
    queue_length: int = 0
    work: int = 0
    known: int = 0
    within_bounds: bool = True
    """For policies that hold on to a worker: it has not much more than its share."""


class DecisionCard(Struct, frozen=True, kw_only=True):
    """One choice of a worker."""

    request_id: str
    at: float
    """Unix time in seconds."""
    model: str
    move: str = ""
    """What had become of the worker before: an error's code. Empty: this is where the request went first."""
    policy: str = ""
    """Empty: there was nothing to choose."""
    scores: str = ""
    """What the scores are, in words."""
    chosen: str
    candidates: tuple[CandidateCard, ...] = ()
    """The best first, and the chosen one in any case. Empty if the decision is too old for that."""
    others: int = 0
    """Candidates that are left out of the list."""


class DecisionList(Struct, frozen=True):
    decisions: tuple[DecisionCard, ...]
    """The oldest first. An answer that moved has one for each worker, as have the answers of one request."""
