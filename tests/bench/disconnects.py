"""How long a slot is held after its client has gone: streamed, plain and queued requests.

Server and client share one event loop, so the time runs from the client's ``close`` to the worker's
count, without a poll over the network in between.
"""

from __future__ import annotations

import json
import socket
import statistics
import struct
import tempfile
import time
from pathlib import Path

import anyio
import anyio.lowlevel

from fastchat_serve.app import Application
from fastchat_serve.configfile.load import load_config
from fastchat_serve.server import HttpServer, bind
from fastchat_serve.worker.local import LocalWorker
from tests.bench.report import Plan, Report, Row, Verdict

__all__ = ["measure"]

TRIES_PER_ROUND = 70
BAR_MS = 20.0
CONFIG = """
[server]
port = 0
[controller]
[api]
[[worker]]
backend = "echo"
names = ["echo"]
concurrency = 1
[worker.options]
loop = true
delay_ms = 5.0
"""


def measure(plan: Plan) -> Report:
    """One row per kind of request: milliseconds until the slot, or the place in the queue, is free."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.toml"
        path.write_text(CONFIG)
        config = load_config(path, environ={})
        application = Application(config)
        server = HttpServer(application, bind(config.server))
        return anyio.run(_measure, plan, application, server, backend_options={"use_uvloop": True})


async def _measure(plan: Plan, application: Application, server: HttpServer) -> Report:
    rows: list[Row] = []
    worker = application.workers[0]
    tries = 20 if plan.quick else TRIES_PER_ROUND * plan.rounds
    async with anyio.create_task_group() as tasks:
        await tasks.start(server.run)
        for kind, stream, before in (("streamed", True, 0), ("plain", False, 0), ("queued", True, 1)):
            plan.progress(f"{tries} {kind} requests")
            times_ms = []
            for attempt in range(tries):
                holder = await _request(server.url, stream=True) if before else None
                await _until(worker, before)
                client = await _request(server.url, stream=stream)
                await _until(worker, 1 + before)
                began = time.perf_counter()
                _leave(client, reset=attempt % 2 == 0)
                await _until(worker, before)
                times_ms.append((time.perf_counter() - began) * 1e3)
                if holder is not None:
                    _leave(holder, reset=True)
                    await _until(worker, 0)
            cuts = statistics.quantiles(times_ms, n=100)
            rows.append({"request": kind, "tries": tries, "p50 ms": cuts[49], "p99 ms": cuts[98]})
        server.stop()
    return Report(
        tables={"from a client's leaving to the free slot": rows},
        verdicts=[
            Verdict(what=f"{row['request']}, p99", measured=row["p99 ms"], bar=BAR_MS, at_most=True, unit="ms")
            for row in rows
        ],
    )


async def _request(url: str, *, stream: bool) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)))
    body = json.dumps(
        {"model": "echo", "stream": stream, "messages": [{"role": "user", "content": "on and on"}]}
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return client


def _leave(client: socket.socket, *, reset: bool) -> None:
    if reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


async def _until(worker: LocalWorker, count: int) -> None:
    """Wait for the worker to have `count` requests."""
    with anyio.fail_after(5):
        while worker.queue_length != count:
            await anyio.lowlevel.checkpoint()
