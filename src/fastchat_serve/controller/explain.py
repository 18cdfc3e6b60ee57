"""What led to a decision, put together when somebody asks: candidates, scores, choice.

The workers are seen as they were then, and what the policy goes by is worked out anew from that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from fastchat_serve.controller.decisions import Decision, Search
from fastchat_serve.controller.members import Member, Seen
from fastchat_serve.controller.policies import (
    bounds,
    least_work,
    lottery,
    power_of_two,
    prefix,
    round_robin,
    session,
    shortest_queue,
)
from fastchat_serve.controller.pools import Pool, Standing
from fastchat_serve.controller.registry import Registry
from fastchat_serve.policy import Candidate, Policy
from fastchat_serve.protocol.decisions import CandidateCard, DecisionCard

__all__ = ["MOST_SHOWN", "explain"]

MOST_SHOWN: Final = 50
"""Candidates. Nobody reads more."""


def explain(decision: Decision, registry: Registry) -> DecisionCard:
    """`decision`, with the candidates as far as they can still be known."""
    search = decision.search
    then = registry.as_seen(decision.model, decision.changes) if search is not None else None
    if search is None or then is None:
        return _card(decision, search, (), 0)
    standings = {id_: _standing(id_, seen, search, decision.tried) for id_, seen in then}
    competed = standings.get(decision.chosen)
    cards = _competitors([(id_, seen) for id_, seen in then if standings[id_] == competed], search, competed or "")
    cards += [_candidate(id_, seen, standings[id_]) for id_, seen in then if standings[id_] != competed]
    cards.sort(key=lambda card: card.id != decision.chosen)
    return _card(decision, search, tuple(cards[:MOST_SHOWN]), max(0, len(cards) - MOST_SHOWN))


def _standing(id_: str, seen: Seen, search: Search, tried: tuple[str, ...]) -> str:
    if seen.kind is None:
        return "not ready"
    if not seen.kind.fits(search.needed, search.fingerprint):
        return "unable"
    if id_ in tried:
        return "tried"
    return "full" if seen.full else "open"


def _competitors(seen: list[tuple[str, Seen]], search: Search, standing: str) -> list[CandidateCard]:
    """Those among whom the policy chose, the best first."""
    candidates = _as_they_were(seen)
    candidates.known = search.known
    scores = _scores_of(search)
    if scores is None:
        return [_candidate(id_, each, standing) for id_, each in seen]
    within = bounds(candidates) if scores.bounded else _always
    cards = [
        _candidate(id_, each, standing, score=score, known=candidate.known, within_bounds=within(candidate))
        for (id_, each), candidate, score in zip(seen, candidates, scores.of(candidates, search), strict=True)
    ]
    sign = -1 if scores.most else 1
    return sorted(cards, key=lambda card: (not card.within_bounds, sign * (card.score or 0), card.queue_length))


def _as_they_were(seen: Iterable[tuple[str, Seen]]) -> Standing:
    """What the policy had before it."""
    pool = Pool((), (_Was(id_, position, each) for position, (id_, each) in enumerate(seen)))
    return pool.open if len(pool.open) else pool.full


class _Was(Member):
    """A member of the past, without its worker, who may be gone."""

    __slots__ = ()

    def __init__(self, id_: str, position: int, seen: Seen) -> None:
        self.id, self.position, self.seen = id_, position, seen


def _candidate(id_: str, seen: Seen, standing: str, **more: object) -> CandidateCard:
    return CandidateCard(
        id=id_,
        standing=standing,
        speed=seen.speed,
        queue_length=seen.queue_length,
        work=seen.work,
        **more,  # type: ignore[arg-type]
    )


def _card(
    decision: Decision, search: Search | None, candidates: tuple[CandidateCard, ...], others: int
) -> DecisionCard:
    scores = None if search is None else _scores_of(search)
    return DecisionCard(
        request_id=decision.request_id,
        at=decision.at,
        model=decision.model,
        move="" if search is None else search.why,
        policy="" if search is None else getattr(search.policy, "__name__", type(search.policy).__name__),
        scores="" if scores is None else scores.words,
        chosen=decision.chosen,
        candidates=candidates,
        others=others,
    )


# -------------------------------------------------------------------------------- what policies go by


class _Scores(Struct, frozen=True):
    """What a policy goes by, for each candidate."""

    words: str
    of: Callable[[Standing, Search], list[float]]
    most: bool = False
    """Wins; else the least does."""
    bounded: bool = False
    """It holds on to a worker only while that has not much more than its share."""


def _scores_of(search: Search) -> _Scores | None:
    """None: it is the policy of a plugin."""
    if search.policy is session and not search.session:
        return _SCORES[shortest_queue]
    return _SCORES.get(search.policy)


def _per_speed(amount: Callable[[Candidate], float]) -> Callable[[Standing, Search], list[float]]:
    return lambda candidates, _: [amount(each) / each.speed if each.speed > 0 else float("inf") for each in candidates]


def _turns(candidates: Standing, search: Search) -> list[float]:
    return [(index - search.turn) % len(candidates) for index in range(len(candidates))]


def _chances(candidates: Standing, _: Search) -> list[float]:
    speeds = candidates.speeds
    return [each.speed / speeds if speeds else 1 / len(candidates) for each in candidates]


def _ranks(candidates: Standing, search: Search) -> list[float]:
    ranks = {index: rank for rank, index in enumerate(candidates.claimants(search.session), 1)}
    return [ranks[index] for index in range(len(candidates))]


def _always(_: Candidate) -> bool:
    return True


_queues = _per_speed(lambda candidate: candidate.queue_length)
_SCORES: Mapping[Policy, _Scores] = MappingProxyType(
    {
        shortest_queue: _Scores("queue for its speed, the least wins", _queues),
        power_of_two: _Scores("queue for its speed, the less of two drawn at random wins", _queues),
        least_work: _Scores("tokens for its speed, the least wins", _per_speed(lambda candidate: candidate.work)),
        round_robin: _Scores("how long until its turn", _turns),
        lottery: _Scores("its chance in the draw", _chances, most=True),
        prefix: _Scores(
            "characters of the prompt that it had read, the most within bounds wins",
            lambda candidates, _: [each.known for each in candidates],
            most=True,
            bounded=True,
        ),
        session: _Scores("rank of its claim to the session, the first within bounds wins", _ranks, bounded=True),
    }
)
