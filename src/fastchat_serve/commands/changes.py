"""``fastchat-serve models load|unload|reload|alias|unalias``: change what a server serves, and see it happen."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import msgspec

from fastchat_serve.commands.client import RequestFailed, ServerClient, operator_from
from fastchat_serve.commands.following import follow
from fastchat_serve.configfile.places import Place
from fastchat_serve.configfile.sources import Document, apply_override

__all__ = ["change"]


def change(args: argparse.Namespace) -> int:
    """Do what ``args.action`` says. Returns the exit code: 1 if it fails. Raises `StartupError`."""
    client = operator_from(args)
    table = _table(args) if args.action == "load" else {}
    ways: dict[str, Callable[[], Awaitable[int]]] = {
        "load": lambda: follow(client, f"/cluster/models/load{_beside(args)}", table),
        "unload": lambda: follow(client, "/cluster/models/unload", {"name": args.name}),
        "reload": lambda: follow(client, "/cluster/models/reload", {"name": args.name}),
        "alias": lambda: _alias(client, args.name, args.model),
        "unalias": lambda: _unalias(client, args.name),
    }
    work = ways[args.action]

    async def run() -> int:
        async with client:
            return await work()

    try:
        return anyio.run(run)
    except RequestFailed as error:
        print(f"fastchat-serve: {error}", file=sys.stderr)
        return 1


def _table(args: argparse.Namespace) -> dict[str, Any]:
    """The ``[[worker]]`` that the arguments stand for. Raises `ConfigError`."""
    table = {"backend": args.backend, "model": _model(args.model)}
    document = Document(Place("command line", directory=Path.cwd()), table)
    for override in args.overrides:
        apply_override(document, override)
    return document.tables


def _beside(args: argparse.Namespace) -> str:
    return "" if args.beside is None else f"?beside={quote(args.beside, safe='')}"


def _model(name: str) -> str:
    """A folder here is meant from here, wherever the server runs."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name


async def _alias(client: ServerClient, name: str, model: str) -> int:
    await client.ask("POST", "/cluster/aliases", msgspec.json.encode({"name": name, "model": model}))
    print(f"{model} is called {name} as well.")
    return 0


async def _unalias(client: ServerClient, name: str) -> int:
    await client.ask("DELETE", f"/cluster/aliases/{quote(name)}")
    print(f"Nothing is called {name} any more.")
    return 0
