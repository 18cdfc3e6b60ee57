"""The last decisions of a dispatcher, kept as cheaply as can be, for who asks later why a request went where it went.

A decision keeps no picture of the workers. It keeps how many changes had been seen of them by then, and
`Registry.as_seen` takes back those that came since. What is made of it is in `explain.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from fastchat_serve.capabilities import Capability
from fastchat_serve.policy import Policy

__all__ = ["MOST_DECISIONS", "Decision", "Decisions", "Search"]

MOST_DECISIONS: Final = 4096
"""That are remembered; some 300 bytes each, which the collector of cyclic garbage does not walk through."""


class Search(Struct, gc=False):
    """What a worker is looked for, and by which policy."""

    policy: Policy
    needed: frozenset[Capability]
    fingerprint: str = ""
    """That it must have; empty: any."""
    tried: tuple[str, ...] = ()
    """Those that it is not to be. More as time goes on."""
    with_room: bool = False
    """It is not to be full."""
    why: str = ""
    """An answer moves, in a word; empty: it begins."""
    session: str = ""
    wanted: Sequence[int] = ()
    """Marks of the prompt, if the policy looks for who has read it."""
    turn: int = 0
    """`Draw.turn`, when it was chosen last."""
    known: Mapping[str, int] = {}
    """Characters of the prompt that workers had read then."""


class Decision(Struct, frozen=True, gc=False):
    """One choice of a worker."""

    at: float
    """Unix time in seconds."""
    request_id: str
    model: str
    chosen: str
    """The worker's id."""
    search: Search | None = None
    """None: the model had this worker only."""
    changes: int = 0
    """`Registry.changes` at that moment."""
    tried: tuple[str, ...] = ()
    """`Search.tried` at that moment."""


class Decisions:
    """See the module."""

    def __init__(self) -> None:
        self._last: deque[Decision] = deque(maxlen=MOST_DECISIONS)
        self.note: Callable[[Decision], None] = self._last.append

    def of(self, request_id: str) -> list[Decision]:
        """Those about a request, the oldest first.

        Requests bear the id of the HTTP request between what they are (``chatcmpl-``) and a number, if it makes several
        answers or if the client chose the id: all are found by it.
        """
        return [decision for decision in self._last if _is_of(decision.request_id, request_id)]


def _is_of(own: str, wanted: str) -> bool:
    before, found, after = own.partition(wanted) if wanted else (own, "", "")
    return bool(found) and before[-1:] in ("", "-") and after[:1] in ("", "-", ".")
