"""The manual's table of capabilities, made from what backends register.

``python -m tests.docs.capability_table`` writes the page anew.
"""

from __future__ import annotations

from fastchat_serve import Capability
from tests.docs.backends_here import REPOSITORY, backends

__all__ = ["PAGE", "page"]

PAGE = REPOSITORY / "src/fastchat_serve/docs/capabilities.md"

HEAD = """\
# Capabilities

The most that each backend's engines can do, whatever the model; what one engine declares, `GET /cluster/workers` tells.
A request that needs more is refused with a 400 that names what is missing. What each word means is on the page
[backends](backends.md).

This page is made from the code: `python -m tests.docs.capability_table` writes it.
"""


def page() -> str:
    """The whole page."""
    columns = backends()
    lines = [f"| capability | {' | '.join(f'`{name}`' for name in columns)} |", "| --- |" + " --- |" * len(columns)]
    for capability in Capability:
        marks = ("✓" if capability in backend.capabilities else "" for backend in columns.values())
        lines.append(f"| `{capability.name}` | {' | '.join(marks)} |")
    return HEAD + "\n" + "\n".join(line.replace("|  |", "| |").replace("|  |", "| |") for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
