"""``fastchat-serve models``: the models of a server, and ``models load``, ``unload``, …: what is changed about them."""

from __future__ import annotations

import argparse
from datetime import datetime

from msgspec import UnsetType
from rich.table import Table
from rich.text import Text

from fastchat_serve.commands.changes import change
from fastchat_serve.commands.client import client_from, show_list
from fastchat_serve.protocol.openai import ModelList

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Print ``GET /v1/models``, or do what the action says; exit code 1 if there is no answer, or it fails."""
    if args.action is not None:
        return change(args)
    return show_list(client_from(args, args.url), "/v1/models", ModelList, _table, as_json=args.json)


def _table(models: ModelList) -> Table:
    table = Table()
    table.add_column("model", overflow="fold")
    table.add_column("context", justify="right")
    table.add_column("owner")
    table.add_column("listed since")
    for card in models.data:
        context = "" if isinstance(card.max_model_len, UnsetType) else f"{card.max_model_len:,}"
        table.add_row(Text(card.id), context, Text(card.owned_by), _when(card.created))
    return table


def _when(unix_seconds: int) -> str:
    """In local time; empty for what no calendar holds."""
    try:
        return f"{datetime.fromtimestamp(unix_seconds).astimezone():%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):
        return ""
