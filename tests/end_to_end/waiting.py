"""Waiting for what a server does, without guessing how long it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastchat_serve.server import HttpServer

PROMPTLY_S = 1.0
"""A generous bound for what should take milliseconds: the machine may be busy."""


async def until(condition: Callable[[], bool], within_s: float = PROMPTLY_S) -> float:
    """Let the loop turn until `condition` holds; returns the seconds it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - the loop must turn, and what is waited for sets no event
            await asyncio.sleep(0)
    return loop.time() - began


def queue_lengths(server: HttpServer) -> tuple[int, int]:
    """Requests that run and that wait, over all workers."""
    loads = [worker.load() for worker in server.application.workers]
    return sum(load.running for load in loads), sum(load.waiting for load in loads)
