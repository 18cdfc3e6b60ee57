"""What a dispatch policy sees, and what it decides.

A policy is a pure function: it gets at least one candidate, all able and ready to take the request, and
returns the index of its choice. Chance and turn come in through `Draw`, so the same input always
gives the same choice. Ours are in `controller/policies.py`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from random import Random

from msgspec import Struct

__all__ = ["Candidate", "Candidates", "Draw", "Policy"]


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


class Candidates(Sequence[Candidate]):
    """All workers that could take the request, in the order in which they were listed.

    An item is made when it is looked at. A policy that looks at all of them is simple to write, and fast enough for
    some dozens of workers; what follows is known of all together, whatever their number, without a look at each. It
    holds for this request: do not keep it.
    """

    queue_lengths: int
    """Of all together."""

    @property
    @abstractmethod
    def speeds(self) -> float:
        """Of all together."""

    @abstractmethod
    def shortest_queue(self, random: Random) -> int:
        """The least `queue_length` for its `speed`; a tie is broken by chance."""

    @abstractmethod
    def least_work(self, random: Random) -> int:
        """The least `work` for its `speed`; a tie is broken by chance."""

    @abstractmethod
    def by_speed(self, random: Random) -> int:
        """One draw, weighted by `speed`; if all are 0, all have the same chance."""

    @abstractmethod
    def readers(self) -> Sequence[int]:
        """Some of those with a `known` that is not 0, who know most first. Empty for other policies than `prefix`."""

    @abstractmethod
    def claimants(self, session: str) -> Iterator[int]:
        """All, those first that have the strongest claim to a session. It is fair by `speed`, equal in every process,
        and when a worker comes or goes few sessions have another first claimant."""


class Draw(Struct, frozen=True):
    """What a policy may use beside the candidates."""

    random: Random
    turn: int
    """How many requests for this model were dispatched before."""
    session: str = ""
    """`GenerateRequest.session`."""


Policy = Callable[[Candidates, Draw], int]
"""A function of any ``Sequence[Candidate]`` is one, too."""
