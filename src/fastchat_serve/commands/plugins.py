"""``fastchat-serve plugins``: what is installed, and whether it works."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from fastchat_serve.commands.tables import print_table
from fastchat_serve.plugins import PluginReport, inspect

__all__ = ["run"]


def run(_: argparse.Namespace) -> int:
    """Print a table, and what is wrong with those that are broken: then the exit code is 1."""
    reports = inspect()
    table = Table(pad_edge=False, show_edge=False)  # so that 80 columns hold the longest names of ours
    for name in ("name", "distribution", "version"):
        table.add_column(name, no_wrap=True)
    table.add_column("offers")
    table.add_column("state")
    for report in reports:
        state = Text(report.state, "green" if report.state == "ok" else "red")
        what = (report.name, report.distribution, report.version, ", ".join(_offers(report)))
        table.add_row(*map(Text, what), state)
    print_table(table)
    broken = [report for report in reports if report.state == "broken"]
    for report in broken:
        print(f"{report.name} is broken: {report.problem}")
    return int(bool(broken))


def _offers(report: PluginReport) -> Iterator[str]:
    for name in report.engines:
        yield f"engine {name} (contract {report.contract})"
    for name in report.models:
        yield f"model {name}"
