"""Follow an operation on a server: with bars where somebody watches, with a line per change where nobody does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from fastchat_serve.commands.client import RequestFailed, ServerClient, error_message
from fastchat_serve.protocol.cluster import OperationReport, WorkerReport

__all__ = ["follow"]

_decode = msgspec.json.Decoder(OperationReport).decode


async def follow(client: ServerClient, path: str, body: Any = None) -> int:
    """Begin it by ``POST path``, and show how far it is until it is over.

    Returns:
        The exit code: 0 once it is done.

    Raises:
        RequestFailed: It was refused, or failed, or nothing is heard of it any more. It may go on nevertheless.
    """
    with _shown() as show:
        async for data in client.events(path, b"" if body is None else msgspec.json.encode(body)):
            report = _read(data)
            for worker in report.workers:
                show(worker)
            if report.done:
                break
        else:
            raise RequestFailed("The server broke off; whether it is done is to be seen by: fastchat-serve workers")
    for worker in report.workers:
        print(f"{worker.id} ({', '.join(worker.models)}) is {worker.state}.")
    return 0


def _read(data: str) -> OperationReport:
    if (problem := error_message(data)) is not None:
        raise RequestFailed(problem)
    try:
        return _decode(data)
    except msgspec.DecodeError as error:
        raise RequestFailed(f"The server's reply is not what this command expects: {error}") from None


@contextmanager
def _shown() -> Iterator[Callable[[WorkerReport], None]]:
    console = Console(stderr=True)
    if not console.is_terminal:
        said: dict[str, str] = {}

        def say(worker: WorkerReport) -> None:
            if said.get(worker.id) != (line := f"{worker.id}: {_what(worker)}"):
                said[worker.id] = line
                print(line, file=sys.stderr)

        yield say
        return
    bars: dict[str, TaskID] = {}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:

        def show(worker: WorkerReport) -> None:
            if worker.id not in bars:
                bars[worker.id] = progress.add_task(worker.id, total=None)
            done = worker.state in ("ready", "gone", "unloaded")
            progress.update(
                bars[worker.id],
                description=f"{worker.id}: {_what(worker)}",
                total=1.0 if done or worker.fraction is not None else None,
                completed=1.0 if done else worker.fraction or 0.0,
            )

        yield show


def _what(worker: WorkerReport) -> str:
    parts = [worker.state, worker.stage]
    if worker.fraction is not None:
        parts.append(f"{worker.fraction:.0%}")
    if worker.state == "draining" and (left := worker.running + worker.waiting):
        parts.append(f"({left} to finish)")
    return " ".join(filter(None, parts))
