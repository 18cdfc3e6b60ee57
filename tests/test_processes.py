"""Several API processes behind one port, as users start them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.cluster import api, controller, worker
from tests.conftest import Serving
from tests.end_to_end.process import ServerProcess, started

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="processes are forked, which Windows cannot"),
]

PROCESSES = 3
PATIENCE_S = 30.0


def children(server: ServerProcess) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(server.process.pid).children()
    return found


@asynccontextmanager
async def many(serving: Serving, folder: Path, *, more: str = "") -> AsyncIterator[tuple[ServerProcess, str]]:
    """The parent of all, and where they serve; each has the worker of another process."""
    config = folder / "api.toml"
    async with serving(controller()) as there, serving(worker(there.url, more=more)):
        config.write_text(api(there.url, more=f"[server]\nport = 0\nprocesses = {PROCESSES}\n"))
        async with started("--config", config) as server:
            url = await server.url()
            async with asyncio.timeout(PATIENCE_S):
                while server.log.count("Serving ") < PROCESSES:
                    await server.says(rf"(?s)(Serving .*){{{server.log.count('Serving ') + 1}}}")
            await all_serve(url)
            yield server, url


async def all_serve(url: str) -> None:
    """Wait until twenty connections in a row are served: whoever takes them knows the worker."""
    async with asyncio.timeout(PATIENCE_S):
        while not all([await served(url) for _ in range(20)]):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)


async def served(url: str) -> bool:
    """By whichever process takes the connection."""
    async with httpx.AsyncClient(base_url=url, timeout=10) as client:
        reply = await client.post("/v1/completions", json={"model": "echo", "prompt": "x"})
        return reply.status_code == 200


async def test_metrics_are_those_of_all_whoever_is_asked(serving, tmp_path):
    async with many(serving, tmp_path) as (_, url), httpx.AsyncClient(base_url=url) as client:
        name = 'gen_ai_server_request_duration_seconds_count{error_type="",'
        lines = (await client.get("/metrics")).text.splitlines()
        (before,) = (line for line in lines if line.startswith(name))
        for _ in range(10):
            assert await served(url)
        for _ in range(5):
            async with httpx.AsyncClient(base_url=url) as another:
                lines = (await another.get("/metrics")).text.splitlines()
            (after,) = (line for line in lines if line.startswith(name))
            assert float(after.split()[-1]) == float(before.split()[-1]) + 10


async def test_lines_of_the_log_say_of_which_they_are(serving, tmp_path):
    async with many(serving, tmp_path) as (server, _):
        told = {line[:4] for line in server.log.splitlines() if "Serving as API at http" in line}
        assert told == {f"[{number}] " for number in range(PROCESSES)}


async def test_one_that_dies_is_started_anew_and_all_end_together(serving, tmp_path):
    async with many(serving, tmp_path) as (server, url):
        assert len(children(server)) == PROCESSES
        os.kill(children(server)[0].pid, signal.SIGKILL)
        await server.says("started anew")
        await all_serve(url)
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() == 0


async def test_a_worker_that_dials_out_reaches_each_of_them(serving, tmp_path):
    async with many(serving, tmp_path, more='reach = "out"') as (_, url):
        assert all([await served(url) for _ in range(20)])


async def test_if_the_parent_is_killed_its_children_end(serving, tmp_path):
    async with many(serving, tmp_path) as (server, _):
        orphans = children(server)
        server.process.kill()
        await server.process.wait()
        gone, alive = await asyncio.to_thread(psutil.wait_procs, orphans, PATIENCE_S)
        assert (len(gone), alive) == (PROCESSES, [])
