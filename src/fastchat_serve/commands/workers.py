"""``fastchat-serve workers``: the workers of a server, and how busy they are."""

from __future__ import annotations

import argparse
from types import MappingProxyType

from rich.table import Table
from rich.text import Text

from fastchat_serve.commands.client import reader_from, show_list
from fastchat_serve.protocol.cluster import WorkerCard, WorkerList

__all__ = ["run"]

_STYLES = MappingProxyType({"ready": "green", "failed": "red", "unloaded": "dim"})
"""Of states; all others are on their way from one to another."""


def run(args: argparse.Namespace) -> int:
    """Print ``GET /cluster/workers``; exit code 1 if there is no answer."""
    return show_list(reader_from(args), "/cluster/workers", WorkerList, _table, as_json=args.json)


def _table(workers: WorkerList) -> Table:
    table = Table()
    table.add_column("worker", overflow="fold")
    table.add_column("models", overflow="fold")
    table.add_column("state")
    for number in ("running", "waiting", "KV used", "context"):
        table.add_column(number, justify="right")
    table.add_column("on")
    are_elsewhere = any(card.node for card in workers.workers)
    if are_elsewhere:
        table.add_column("node", overflow="fold")
    table.add_column("remarks", overflow="fold")
    for card in workers.workers:
        *facts, remarks = _row(card)
        table.add_row(*facts, *([_node(card)] if are_elsewhere else []), remarks)
    return table


def _row(card: WorkerCard) -> tuple[Text | str, ...]:
    return (
        Text(card.id),
        Text(", ".join(card.models)),
        Text(_state(card), style=_STYLES.get(card.state, "yellow")),
        f"{card.running} of {card.slots}",
        f"{card.waiting} of {card.queue_limit}",
        f"{card.kv_used_fraction:.0%}",
        "" if card.context_length is None else f"{card.context_length:,}",
        Text(" ".join(part for part in (card.device, card.dtype) if part)),
        Text(" ".join(part for part in (card.reason, card.stage, *card.notes) if part)),
    )


def _node(card: WorkerCard) -> Text:
    """As logs call it; empty for workers of the process that was asked."""
    return Text(f"{card.node[:8]} at {card.address}" if card.node else "")


def _state(card: WorkerCard) -> str:
    return card.state if card.fraction is None else f"{card.state} {card.fraction:.0%}"
