"""The manual's table of checks, made from the checks themselves.

``python -m tests.testing.checks_table`` writes it anew into the page.
"""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType

import fastchat_serve.testing
from fastchat_serve.testing.marks import NEEDS
from fastchat_serve.testing.plugin import TOPICS
from tests.testing.runs import REPOSITORY

__all__ = ["PAGE", "checks", "table", "with_table"]

PAGE = REPOSITORY / "src/fastchat_serve/docs/conformance.md"
HEADING = "## What every check proves\n"


def modules() -> dict[str, ModuleType]:
    return {topic: importlib.import_module(f"{fastchat_serve.testing.__name__}.test_{topic}") for topic in TOPICS}


def checks(module: ModuleType) -> dict[str, tuple[str, list[str]]]:
    """Guarantee and capabilities of each check of a module, by its name."""
    found = {}
    common = getattr(module, "pytestmark", [])
    for name, function in vars(module).items():
        if not name.startswith("test_") or not inspect.isfunction(function):
            continue
        marks = [*(common if isinstance(common, list) else [common]), *getattr(function, "pytestmark", [])]
        needed = [capability.name for mark in marks if mark.name == NEEDS for capability in mark.args]
        guarantee = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
        found[name.removeprefix("test_")] = (guarantee, [name for name in dict.fromkeys(needed) if name != "GENERATE"])
    return found


def table() -> str:
    """A section per topic: what it is about, and a row per check."""
    lines = []
    for topic, module in modules().items():
        about = (inspect.getdoc(module) or "").partition("\n\n")[0].replace("\n", " ")
        lines += ["", f"### {topic}", "", about, "", "| check | proves | needs |", "| --- | --- | --- |"]
        for name, (guarantee, needed) in checks(module).items():
            needs = f"{', '.join(f'`{capability}`' for capability in needed)} " if needed else ""
            lines.append(f"| `{topic}.{name}` | {guarantee} | {needs}|")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """`page`, with the table of today under its heading, which is the last."""
    return page.partition(HEADING)[0] + HEADING + table()


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
