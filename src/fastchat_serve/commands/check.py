"""``fastchat-serve check``: say whether a config would start, without starting anything."""

from __future__ import annotations

import argparse
import json

from rich.console import Console
from rich.table import Table

from fastchat_serve.app import Application
from fastchat_serve.commands.configured import config_from
from fastchat_serve.configfile.schema import config_json_schema
from fastchat_serve.errors import PluginError
from fastchat_serve.plugins import Plugins, installed

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Read the config, load the plugins it names, type all options; open nothing."""
    if args.json_schema:
        print(json.dumps(config_json_schema(_options()), indent=2))
        return 0
    config = config_from(args)
    Application(config)
    table = Table(title=f"{args.config or args.model}: good")
    for column in ("model", "names", "backend", "slots", "queue"):
        table.add_column(column)
    for worker in config.worker:
        table.add_row(worker.model, ", ".join(worker.names), worker.backend, str(worker.concurrency), str(worker.queue))
    Console().print(table)
    return 0


def _options() -> dict[str, type]:
    """The options of every backend that is installed and works."""
    plugins = Plugins()
    for name in installed():
        try:
            plugins.load([name])
        except PluginError:
            continue  # `fastchat-serve plugins` says what is wrong with it
    return {name: backend.options for name, backend in plugins.backends.items()}
