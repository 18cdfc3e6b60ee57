"""What a subject of the benchmark is given, and what it hands back.

A subject is a module of this package, named in `__main__.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

__all__ = ["Plan", "Report", "Row", "Subject", "Verdict"]

Row = dict[str, Any]
"""One line of a table: column to number or text."""


class Plan(Struct, frozen=True, kw_only=True):
    """How to measure."""

    rounds: int
    """How often everything is measured; medians are shown."""
    quick: bool
    """Short windows: to see that it works, not to believe the figures."""
    harness: Path
    """The folder of the gateway harness, which is not part of this repository."""
    progress: Callable[[str], None]
    """Told what is being measured."""


class Verdict(Struct, frozen=True, kw_only=True):
    """One figure against what was promised of it."""

    what: str
    measured: float
    bar: float | None = None
    """What must be reached; None: there is no promise."""
    stretch: float | None = None
    """What would be wonderful."""
    at_most: bool = False
    """Lower is better."""
    unit: str = "×"

    @property
    def met(self) -> bool:
        return self.bar is None or self._reaches(self.bar)

    @property
    def stretch_met(self) -> bool:
        return self.stretch is not None and self._reaches(self.stretch)

    def _reaches(self, goal: float) -> bool:
        return self.measured <= goal if self.at_most else self.measured >= goal


class Report(Struct, kw_only=True):
    """One subject's figures."""

    tables: dict[str, list[Row]]
    """By title; the rows of one table have the same columns."""
    verdicts: list[Verdict] = []
    notes: list[str] = []
    """What was left out and why, and how far to trust the rest."""
    raw: list[Row] = []
    """Every single measurement, for the JSON."""


class Subject(Protocol):
    """What a module must have to be measured."""

    def measure(self, plan: Plan) -> Report:
        """Takes as long as it needs, and says meanwhile what it is doing."""
        ...
