"""``fastchat-serve drain``: let a worker, all of a model, or a whole process, finish what it has, and go."""

from __future__ import annotations

import argparse
import sys
from typing import Final
from urllib.parse import quote

import anyio
import msgspec

from fastchat_serve.commands.client import RequestFailed, ServerClient, operator_from
from fastchat_serve.commands.following import follow
from fastchat_serve.protocol.cluster import Draining

__all__ = ["run"]

LOOK_S: Final = 0.2
"""How often it is looked whether a process is gone."""

LEAVE_S: Final = 60.0
"""What a process may take for closing its engines, beside what its work may take."""


def run(args: argparse.Namespace) -> int:
    """Wait until it is gone; exit code 1 if it does not go. Raises `StartupError`."""
    client = operator_from(args)

    async def drain() -> int:
        async with client:
            if args.process:
                return await _drain_process(client)
            return await follow(client, f"/cluster/workers/{quote(args.name, safe='')}/drain")

    try:
        return anyio.run(drain)
    except RequestFailed as error:
        print(f"fastchat-serve: {error}", file=sys.stderr)
        return 1


async def _drain_process(client: ServerClient) -> int:
    reply = msgspec.json.decode(await client.ask("POST", "/cluster/drain"), type=Draining)
    print(f"Finishing accepted work, for at most {reply.drain_s:g} s.", file=sys.stderr)
    with anyio.move_on_after(reply.drain_s + LEAVE_S):
        while await _is_there(client):  # noqa: ASYNC110 - what is waited for is another process's end
            await anyio.sleep(LOOK_S)
        print(f"The process at {client.url} is gone.")
        return 0
    raise RequestFailed(f"The process at {client.url} is still there.")


async def _is_there(client: ServerClient) -> bool:
    try:
        await client.get("/health")
    except RequestFailed:
        return False
    return True
