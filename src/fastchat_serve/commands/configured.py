"""What commands that run engines share: the config from the arguments, progress on the terminal, failures to load."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from fastchat_serve import hookspecs
from fastchat_serve.config import Config
from fastchat_serve.configfile.load import config_for_model, load_config
from fastchat_serve.errors import ConfigError, StartupError
from fastchat_serve.progress import LogProgress

__all__ = ["config_from", "first_failure", "loading_progress"]


def config_from(args: argparse.Namespace) -> Config:
    """The config that ``--config`` or ``--model`` stands for. Raises `ConfigError`."""
    if args.config is not None and args.model is not None:
        raise ConfigError("give either --config or --model, not both.")
    if args.model is not None:
        return config_for_model(args.model, backend=args.backend, overrides=args.overrides, environ=os.environ)
    if args.config is not None:
        return load_config(args.config, overrides=args.overrides, environ=os.environ)
    raise ConfigError("say what to serve: --config FILE, or --model ID. fastchat-serve --help has more.")


@contextmanager
def loading_progress() -> Iterator[hookspecs.Progress]:
    """A progress bar per stage where somebody watches, log lines where nobody does."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield LogProgress()
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    bars: dict[str, TaskID] = {}
    progress = Progress(*columns, console=console, transient=True)

    def report(stage: str, fraction: float | None = None) -> None:
        if stage not in bars:
            if not bars:
                progress.start()
            for earlier in bars.values():
                progress.update(earlier, total=1.0, completed=1.0)
            bars[stage] = progress.add_task(stage, total=1.0)
        progress.update(bars[stage], completed=fraction, total=None if fraction is None else 1.0)
        if all(task.finished for task in progress.tasks):
            progress.stop()

    try:
        yield report
    finally:
        progress.stop()


def first_failure(group: BaseExceptionGroup[StartupError]) -> StartupError:
    """The first of the failures of engines that were loading side by side; the others become its notes."""
    leaves: list[StartupError] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop()
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        elif isinstance(error, StartupError):
            leaves.append(error)
    for other in leaves[1:]:
        leaves[0].add_note(str(other))
    return leaves[0]
