"""``fastchat-serve plugins``: what is installed, and whether it works."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from fastchat_serve.engine import CONTRACT
from fastchat_serve.plugins import inspect

__all__ = ["run"]


def run(_: argparse.Namespace) -> int:
    """Print a table; exit code 1 if any plugin is broken."""
    reports = inspect()
    table = Table(title=f"Plugins (this server speaks contract {CONTRACT})")
    for column in ("name", "distribution", "version", "contract", "offers", "state"):
        table.add_column(column, overflow="fold")
    for report in reports:
        offers = [f"engine {name}" for name in report.engines] + [f"model {name}" for name in report.models]
        state = "[green]ok" if report.state == "ok" else f"[red]{report.problem}"
        contract = "" if report.contract is None else str(report.contract)
        table.add_row(report.name, report.distribution, report.version, contract, ", ".join(offers), state)
    Console().print(table)
    return int(any(report.state == "broken" for report in reports))
