"""F19: the log cannot be written: the disk is full, a limit is reached, or nobody empties the pipe. Serving goes on,
and what was lost is counted."""

from __future__ import annotations

import asyncio
import re

import anyio
import pytest

from tests.end_to_end.process import started
from tests.end_to_end.raw import connected, get, post
from tests.ports import free_port

pytestmark = pytest.mark.anyio

CONFIG = '[server]\nport = 0\naccess_log = true\n[controller]\n[api]\n[[worker]]\nbackend = "echo"\n'
SAID = post("/v1/completions", {"model": "echo", "prompt": "to be or not", "max_tokens": 9})


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


async def lost_lines(connection) -> int:
    text = (await connection.request(get("/metrics"))).body.decode()
    found = re.search(r"^fastchat_log_lines_lost_total (\d+)\.0$", text, re.MULTILINE)
    assert found is not None
    return int(found[1])


async def answering(port: int) -> str:
    """The URL of a server that does not say when it is ready."""
    url = f"http://127.0.0.1:{port}"
    with anyio.fail_after(30):
        while True:
            try:
                async with connected(url) as connection:
                    if (await connection.request(get("/ready"))).status == 200:
                        return url
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "shell",
    [
        'exec "$@" 2>/dev/full',
        'ulimit -f 1; exec "$@" 2>"$LOG"',
        'exec "$@" 2>&-',
    ],
    ids=["full disk", "limit on files", "closed"],
)
async def test_f19_serving_goes_on_without_a_log(config, tmp_path, monkeypatch, shell):
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    port = free_port()
    async with (
        started("--config", config, "--set", f"server.port={port}", shell=shell) as server,
        connected(await answering(port)) as connection,
    ):
        for _ in range(100):
            assert (await connection.request(SAID)).status == 200
        if "&-" not in shell:  # nobody would have read it
            with anyio.fail_after(10):
                while not await lost_lines(connection):
                    assert (await connection.request(SAID)).status == 200
        server.process.terminate()
        assert await server.ended() == 0


async def test_f19_serving_goes_on_though_nobody_empties_the_pipe(config):
    """A supervisor that hangs: the write would block, and with it the loop."""
    path = "/v1/models/" + "x" * 4000  # the access log repeats it
    async with started("--config", config) as server, connected(await server.url()) as connection:
        with anyio.fail_after(60):
            while not await lost_lines(connection):
                for _ in range(500):
                    await connection.request(get(path))
        assert (await connection.request(SAID)).status == 200
        server.process.terminate()
        assert await server.ended() == 0
