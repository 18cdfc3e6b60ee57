"""Starting without a model: half a second of CPU time, and nothing heavy imported."""

from __future__ import annotations

import psutil
import pytest

from tests.end_to_end.process import install_plugin, started
from tests.end_to_end.raw import connected, get, post

pytestmark = pytest.mark.anyio

CPU_LIMIT_S = 1.0
"""The aim is half of it; this machine may be slow."""

HEAVY = {"pydantic", "torch", "numpy", "transformers", "jinja2", "httpx", "fastapi", "starlette"}

TELL = """
import sys
from fastchat_serve import CONTRACT, hookimpl
from fastchat_serve.engines.echo import EchoEngine

class Telling(EchoEngine):
    async def embed(self, request):
        names = sorted({name.partition(".")[0] for name in sys.modules})
        print("modules:", *names, file=sys.stderr, flush=True)
        return await super().embed(request)

@hookimpl
def register_engines(register):
    register("telling", lambda setup: Telling(), contract=CONTRACT)
"""
"""A plugin whose embeddings say which modules the serving process has imported."""


REQUESTS = [
    get("/v1/models"),
    get("/metrics"),
    get("/schema"),
    post("/v1/chat/completions", {"model": "echo", "messages": [{"role": "user", "content": "x"}], "stream": True}),
    post("/v1/completions", {"model": "echo", "prompt": "x", "logprobs": 1}),
    post("/v1/embeddings", {"model": "echo", "input": "x"}),
]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[server]\nport = 0\n[controller]\n[api]\n[[worker]]\nbackend = "echo"\n')
    return path


async def test_the_first_answer_costs_less_than_a_second_of_cpu(config):
    """Design, section 9. Best of three, since caches and neighbours only ever add."""
    spent = []
    for _ in range(3):
        async with started("--config", config) as server:
            async with connected(await server.url()) as connection:
                assert (await connection.request(get("/health"))).status == 200
            times = psutil.Process(server.process.pid).cpu_times()
            spent.append(times.user + times.system)

    assert min(spent) < CPU_LIMIT_S, spent


async def test_a_server_without_a_model_imports_no_heavy_library(config, tmp_path):
    """Design, section 9: also after it has served chat, completions, embeddings, models and metrics."""
    install_plugin(tmp_path, "telling", TELL)
    options = ("--set", "worker.0.backend=telling", "--set", 'worker.0.names=["echo"]')
    async with (
        started("--config", config, *options, plugins=tmp_path) as server,
        connected(await server.url()) as connection,
    ):
        for request in REQUESTS:
            assert (await connection.request(request)).status == 200
        modules = (await server.says("modules: (.*)\n"))[1].split()

    assert "fastchat_serve" in modules
    assert not HEAVY & set(modules)
