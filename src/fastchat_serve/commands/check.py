"""``fastchat-serve check``: say whether a config would start, without starting anything."""

from __future__ import annotations

import argparse
import json

from rich.table import Table
from rich.text import Text

from fastchat_serve.app import Application
from fastchat_serve.commands.configured import config_from
from fastchat_serve.commands.tables import print_table
from fastchat_serve.config import Config
from fastchat_serve.configfile.schema import config_json_schema
from fastchat_serve.errors import PluginError
from fastchat_serve.plugins import Plugins, installed
from fastchat_serve.quiet import is_quiet

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Read the config, load the plugins it names, type all options; open nothing."""
    if args.json_schema:
        print(json.dumps(config_json_schema(_options()), indent=2))
        return 0
    config = config_from(args)
    application = Application(config)
    print(f"{args.config or args.model}: good")
    print_table(_process(config, "none, it dials out" if is_quiet(application) else _address(config)))
    if config.worker:
        print_table(_workers(config))
    return 0


def _process(config: Config, address: str) -> Table:
    """What the process is, and whom it looks for."""
    roles = {"controller": config.controller, "api": config.api, "worker": config.worker}
    named = [
        *(config.api.controllers if config.api else ()),
        *(url for each in config.worker for url in each.controllers),
    ]
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_row("roles", ", ".join(role for role, present in roles.items() if present))
    table.add_row("address", Text(address))
    if named:
        table.add_row("controllers", Text(", ".join(dict.fromkeys(named))))
    return table


def _address(config: Config) -> str:
    server = config.server
    scheme = "http" if server.tls_certificate is None else "https"
    return f"{scheme}://{f'[{server.host}]' if ':' in server.host else server.host}:{server.port}"


def _workers(config: Config) -> Table:
    table = Table()
    for column in ("model", "names", "backend"):
        table.add_column(column, overflow="fold")
    for number in ("slots", "queue"):
        table.add_column(number, justify="right")
    for worker in config.worker:
        words = (worker.model, ", ".join(worker.names), worker.backend)
        table.add_row(*map(Text, words), f"{worker.concurrency:,}", f"{worker.queue:,}")
    return table


def _options() -> dict[str, type]:
    """The options of every backend that is installed and works."""
    plugins = Plugins()
    for name in installed():
        try:
            plugins.load([name])
        except PluginError:
            continue  # `fastchat-serve plugins` says what is wrong with it
    return {name: backend.options for name, backend in plugins.backends.items()}
