"""``fastchat-serve explain``: why a request went to the worker it went to."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import datetime
from urllib.parse import quote

from rich.table import Table
from rich.text import Text

from fastchat_serve.commands.client import reader_from, show_list
from fastchat_serve.protocol.decisions import CandidateCard, DecisionCard, DecisionList

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Print ``GET /cluster/decisions/{request_id}``; exit code 1 if there is no answer."""
    return show_list(
        reader_from(args), f"/cluster/decisions/{quote(args.request_id)}", DecisionList, _table, as_json=args.json
    )


def _table(found: DecisionList) -> Table:
    """A section for each decision, a row for each candidate."""
    words = dict.fromkeys(f"{each.policy}: {each.scores}" for each in found.decisions if each.scores)
    table = Table(caption="score of " + "; ".join(words) if words else None, caption_justify="left")
    table.add_column("decision", overflow="fold")
    table.add_column("worker", overflow="fold")
    table.add_column("")
    if any(decision.candidates for decision in found.decisions):
        for number in ("score", "queue", "tokens", "read", "speed"):
            table.add_column(number, justify="right")
    for decision in found.decisions:
        rows = list(_rows(decision))
        for row in rows[:-1]:
            table.add_row(*row)
        table.add_row(*rows[-1], end_section=True)
    return table


def _rows(decision: DecisionCard) -> Iterator[tuple[Text | str, ...]]:
    what = Text(_what(decision))
    if not decision.candidates:
        why = "what else there was is no longer known" if decision.policy else "no other worker had this model"
        yield (what, Text(decision.chosen), Text.assemble(("chosen", "green"), f": {why}"))
    for candidate in decision.candidates:
        yield (what, *_row(candidate, chosen=candidate.id == decision.chosen))
        what = Text()
    if decision.others:
        yield (Text(), f"and {decision.others:,} others")


def _what(decision: DecisionCard) -> str:
    at = datetime.fromtimestamp(decision.at).strftime("%H:%M:%S.%f")[:-3]
    why = f"moved: {decision.move}" if decision.move else ""
    return ", ".join(part for part in (at, decision.model, decision.policy, why) if part)


def _row(candidate: CandidateCard, *, chosen: bool) -> tuple[Text | str, ...]:
    standing = candidate.standing if candidate.within_bounds else f"{candidate.standing}, over its share"
    return (
        Text(candidate.id),
        Text("chosen", "green") if chosen else Text(standing),
        "" if candidate.score is None else f"{candidate.score:g}",
        f"{candidate.queue_length:,}",
        f"{candidate.work:,}",
        f"{candidate.known:,}",
        f"{candidate.speed:g}" if candidate.speed else "",
    )
