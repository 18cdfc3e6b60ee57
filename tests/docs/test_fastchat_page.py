"""The page about FastChat's processes has all routes that are served for them."""

from __future__ import annotations

import re

from litestar.routes import HTTPRoute

from fastchat_serve.app import Application
from fastchat_serve.commands.fastchat_flags import tables
from fastchat_serve.configfile.load import config_from_tables
from tests.docs.backends_here import REPOSITORY

PAGE = (REPOSITORY / "src/fastchat_serve/docs/fastchat.md").read_text(encoding="utf-8")
PLAIN = {"controller": {}, "api": {}, "worker": [{"backend": "echo"}]}


def routes(config: dict[str, object]) -> set[str]:
    """Methods and paths."""
    application = Application(config_from_tables(dict(config), environ={}))
    found = set()
    for route in application.asgi.routes:
        reads = isinstance(route, HTTPRoute) and "POST" not in route.methods
        found.add(f"{'GET' if reads else 'POST'} {route.path_format}")
    return found


def test_every_route_for_them_is_on_the_page() -> None:
    documented = {
        route
        for line in PAGE.splitlines()
        if line.startswith(("| `GET", "| `POST"))
        for route in re.findall(r"`((?:GET|POST) \S+)`", line.partition(" | ")[0])
    }

    assert documented == routes(PLAIN | {"fastchat": {"enabled": True}}) - routes(PLAIN)


def test_every_variable_that_is_read_is_on_the_page() -> None:
    source = (REPOSITORY / "src/fastchat_serve/commands/fastchat_flags/tables.py").read_text()
    read = set(re.findall(r'"((?:FASTCHAT|SSL)_\w+)"', source)) - set(tables.UNUSED_VARIABLES)

    assert read == set(re.findall(r"`((?:FASTCHAT|SSL)_\w+)`", PAGE))
