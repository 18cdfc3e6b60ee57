"""How it went: one row per check, as a table in the terminal and as JSON."""

from __future__ import annotations

import io
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import msgspec
from msgspec import Struct
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["Check", "Outcome", "Report"]

Outcome = Literal["passed", "failed", "skipped"]

_LOOKS = MappingProxyType({"passed": "green", "failed": "bold red", "skipped": "dim"})
_NARROWEST = 100


class Check(Struct, kw_only=True):
    """One check of one run."""

    name: str
    """Stable: topic, a dot, and what is checked."""
    case: str = ""
    """What tells the runs of one check apart, for instance the form of the stream."""
    guarantee: str
    capabilities: tuple[str, ...] = ()
    """What the engine must declare for the check to run."""
    outcome: Outcome
    seconds: float
    detail: str = ""
    """Why it failed, or did not run."""
    measured: str = ""


class Report(Struct, kw_only=True):
    """One run of the kit."""

    backend: str
    origin: str
    """The backend's distribution and version."""
    model: str
    fastchat_serve: str
    python: str
    contract: int
    capabilities: tuple[str, ...] = ()
    context_length: int = 0
    dtype: str = ""
    device: str = ""
    load_seconds: float = 0.0
    exact: bool = True
    checks: list[Check] = []

    def count(self, outcome: Outcome) -> int:
        return sum(check.outcome == outcome for check in self.checks)

    def write(self, path: Path) -> None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2))

    def table(self, *, width: int | None, color: bool) -> str:
        """For a terminal of `width` columns; None: for a file, one line a row and nothing cut."""
        table = Table(title=self._title, title_justify="left", box=None if width is None else box.SIMPLE_HEAD)
        for heading in ("guarantee", "capability", "result", "measured, or why not"):
            table.add_column(heading, overflow="fold")
        for check in self.checks:
            name = f"{check.name}[{check.case}]" if check.case else check.name
            look = _LOOKS[check.outcome]
            why = "; ".join(part for part in (check.measured, check.detail) if part)
            first_line = why.strip().partition("\n")[0]
            result = f"[{look}]{check.outcome}[/]"
            table.add_row(escape(name), " ".join(check.capabilities), result, escape(first_line))
        text = io.StringIO()
        console = Console(
            file=text,
            width=10_000 if width is None else max(width, _NARROWEST),
            force_terminal=color,
            color_system="standard" if color else None,
            highlight=False,
        )
        console.print(table)
        return text.getvalue()

    @property
    def _title(self) -> str:
        counts = ", ".join(f"{self.count(outcome)} {outcome}" for outcome in ("passed", "failed", "skipped"))
        return f"Conformance of {self.backend} ({self.origin}), contract {self.contract}: {counts}"
