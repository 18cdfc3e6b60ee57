"""``fastchat-serve docs``: the manual that comes with the package."""

from __future__ import annotations

import argparse
from importlib.resources import files
from importlib.resources.abc import Traversable

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from fastchat_serve.commands.tables import print_table
from fastchat_serve.configfile.decode import nearest
from fastchat_serve.errors import StartupError

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Print one page, or the list of pages: rendered in a terminal, raw elsewhere.

    Raises:
        StartupError: There is no such page.
    """
    pages = _pages()
    console = Console()
    if args.topic is None:
        print_table(_contents(pages))
        if console.is_terminal:
            console.print("\nfastchat-serve docs TOPIC shows a page.", style="dim")
        return 0
    topic = args.topic.lower().removesuffix(".md")
    if topic not in pages:
        raise StartupError(f'There is no page "{args.topic}".{nearest(topic, pages)} Pages: {", ".join(pages)}.')
    text = pages[topic].read_text(encoding="utf-8")
    if console.is_terminal:
        console.print(Markdown(text, hyperlinks=False))
    else:
        print(text, end="")
    return 0


def _pages() -> dict[str, Traversable]:
    """The files by topic, the index first."""
    found = (page for page in files("fastchat_serve").joinpath("docs").iterdir() if page.name.endswith(".md"))
    by_topic = {page.name.removesuffix(".md"): page for page in found}
    return dict(sorted(by_topic.items(), key=lambda item: (item[0] != "index", item[0])))


def _contents(pages: dict[str, Traversable]) -> Table:
    table = Table.grid(padding=(0, 3))
    for topic, page in pages.items():
        table.add_row(Text(topic, style="bold"), Text(_title(page)))
    return table


def _title(page: Traversable) -> str:
    """The first heading; empty if there is none."""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            return line.removeprefix("# ").strip()
    return ""
