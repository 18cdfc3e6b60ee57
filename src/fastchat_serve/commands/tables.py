"""Tables on stdout: framed and fitted for a terminal, plain and one row a line for other programs."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

__all__ = ["print_table"]

UNLIMITED = 10_000
"""Columns. Nothing of ours is as wide."""


def print_table(table: Table) -> None:
    """Print `table`. Where nobody looks, no cell is wrapped or cut, so that ``grep`` and ``awk`` find whole rows."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=UNLIMITED)
        table.box, table.padding = None, (0, 3, 0, 0)
    console.print(table)
