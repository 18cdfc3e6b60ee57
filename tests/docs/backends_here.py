"""The backends of this repository, from their light modules: none needs to be installed for this."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

from fastchat_serve.hookspecs import GROUP
from fastchat_serve.plugins import Backend, Plugins

__all__ = ["REPOSITORY", "backends"]

REPOSITORY = Path(__file__).parents[2]


def backends() -> dict[str, Backend]:
    """All that the plugins offer, and ``echo``, by name."""
    points = {"echo": "fastchat_serve.engines.echo"}
    for folder in sorted((REPOSITORY / "plugins").glob("fastchat-backend-*")):
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        points |= project["entry-points"][GROUP]
        source = str(folder / "src")
        if source not in sys.path:
            sys.path.append(source)
    plugins = Plugins({name: (EntryPoint(name, module, GROUP),) for name, module in points.items()})
    plugins.load(points)
    return dict(sorted(plugins.backends.items()))
