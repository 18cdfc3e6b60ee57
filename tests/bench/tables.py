"""How figures and verdicts are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from tests.bench.report import Report, Row, Verdict

__all__ = ["show_report", "show_summary"]


def show_report(console: Console, subject: str, report: Report) -> None:
    """A subject's tables, and what is to be said about them."""
    for title, rows in report.tables.items():
        console.print(_table(f"{subject}: {title}", rows))
    for note in report.notes:
        console.print(f"{subject}: {note}", style="yellow", markup=False)


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    for column, value in rows[0].items():
        table.add_column(column, justify="left" if isinstance(value, str) else "right", no_wrap=isinstance(value, str))
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    return table


def show_summary(console: Console, verdicts: Mapping[str, Sequence[Verdict]]) -> None:
    """All verdicts, by subject."""
    table = Table(title="measured against what was promised", title_justify="left")
    for column in ("subject", "figure", "measured", "bar", "stretch", ""):
        table.add_column(column, justify="right" if column in ("measured", "bar", "stretch") else "left")
    for subject, found in verdicts.items():
        for verdict in found:
            sign = "≤" if verdict.at_most else "≥"
            goals = ("—" if goal is None else f"{sign} {_cell(goal)}" for goal in (verdict.bar, verdict.stretch))
            table.add_row(subject, verdict.what, f"{_cell(verdict.measured)} {verdict.unit}", *goals, _mark(verdict))
        table.add_section()
    if table.rows:
        console.print(table)


def _mark(verdict: Verdict) -> str:
    if not verdict.met:
        return "[red]MISSED"
    if verdict.stretch_met:
        return "[green]stretch"
    return "" if verdict.bar is None else "[green]met"


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "—"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
