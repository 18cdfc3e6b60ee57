"""F16: an engine blocks the event loop. The log names its plugin and the line while it lasts, the server is not ready
for a while, and then everything goes on (G17)."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.end_to_end.process import install_plugin, started
from tests.end_to_end.raw import connected, events, get, post

pytestmark = pytest.mark.anyio

SLEEPY = """
import time
from fastchat_serve import CONTRACT, hookimpl
from fastchat_serve.engines.echo import EchoEngine, EchoOptions

def blunder():
    time.sleep(2.5)

class Sleepy(EchoEngine):
    def start(self, request, sink):
        if request.prompt.text == "sleep":
            blunder()
        return super().start(request, sink)

@hookimpl
def register_engines(register):
    register("sleepy", lambda setup: Sleepy(EchoOptions(delay_ms=20)), contract=CONTRACT)
"""
LINE = SLEEPY.splitlines().index("    time.sleep(2.5)") + 1
CONFIG = """
[server]
port = 0
[controller]
[api]
[[worker]]
backend = "sleepy"
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    install_plugin(tmp_path, "sleepy", SLEEPY)
    return path


def completion(prompt: str) -> bytes:
    return post("/v1/completions", {"model": "sleepy", "prompt": prompt, "max_tokens": 1000, "stream": True})


async def blocked_seconds(connection) -> list[float]:
    """[how many blocks, their sum]"""
    text = (await connection.request(get("/metrics"))).body.decode()
    values = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    return [values[f"fastchat_event_loop_blocked_seconds_{what}"] for what in ("count", "sum")]


async def test_f16_the_culprit_is_named_readiness_falls_and_everybody_is_served_in_the_end(config, tmp_path):
    words = " ".join(map(str, range(100)))
    async with (
        started("--config", config, plugins=tmp_path) as server,
        connected(await server.url()) as running,
        connected(await server.url()) as guilty,
        connected(await server.url()) as asking,
    ):
        count, seconds = await blocked_seconds(asking)
        running.send(completion(words))
        assert (await running.head())[0] == 200
        guilty.send(completion("sleep"))
        blocked = await server.says(r"The event loop is blocked by (.*)\n")
        goes_on_unsaid = "goes on" not in server.log  # it was named while it lasted
        ready = await asking.request(get("/ready"))
        parts = []
        while part := await running.piece():
            parts.append(part)
        said = await guilty.reply()
        goes_on = await server.says(r"The event loop goes on after (\d\.\d) s")
        count_after, seconds_after = await blocked_seconds(asking)
        health = await asking.request(get("/health"))

    assert re.match(rf"plugin 'sleepy' \(fake-sleepy 1\.0\), blunder in .*fake_sleepy\.py:{LINE}\.", blocked[1])
    assert goes_on_unsaid
    assert server.log.count("The event loop is blocked by") == 1
    assert float(goes_on[1]) > 2.0
    assert ready.status == 503
    assert "blocked" in ready.json()["reason"]
    assert b"sleepy" not in ready.body.replace(b'"sleepy":["ready"]', b"")
    assert str(tmp_path).encode() not in ready.body
    assert count_after > count
    assert seconds_after - seconds > 2.0
    assert health.status == 200
    *chunks, done = events(b"".join(parts))
    assert done == "[DONE]"
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == words
    assert events(said.body)[-1] == "[DONE]"
