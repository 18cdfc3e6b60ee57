"""F23: the wall clock jumps. Nothing but time stamps may notice (G15)."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest

from fastchat_serve.worker.base import WorkerState
from tests.end_to_end.raw import connected, events, get, post
from tests.end_to_end.waiting import queue_lengths, until

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
SOURCES = [*(ROOT / "src").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")]

WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
TIME_STAMPS = {
    "controller/dispatcher.py": "when a worker was chosen, for `explain`",
    "controller/registry.py": "when a model was first listed",
    "routes/openai/chat.py": "`created` of a reply",
    "routes/openai/completions.py": "`created` of a reply",
    "plugins/fastchat-backend-openai/src/fastchat_backend_openai/failures.py": "a date in an upstream's Retry-After",
    "text/chat_template.py": "the date that a template may ask for",
}
"""Who may ask for the time of day, and for what. Intervals and limits are measured with `time.monotonic`."""

YEAR_S = 365 * 24 * 3600.0
CONFIG = """
[controller]
[api]
[[worker]]
backend = "echo"
concurrency = 1
options = {delay_ms = 5}
timeouts = {total_s = 60, queue_s = 30, first_token_s = 30, between_tokens_s = 30}
"""
TEXT = " ".join(map(str, range(60)))


def test_f23_only_time_stamps_come_from_the_wall_clock():
    asking = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
                owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
                if f"{owner}.{node.attr}" in WALL_CLOCKS:
                    asking.add(path)

    names = {path.relative_to(ROOT).as_posix().removeprefix("src/fastchat_serve/") for path in asking}
    assert names == set(TIME_STAMPS)


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, YEAR_S, -YEAR_S])
async def test_f23_a_jump_ends_no_request_and_no_connection_and_takes_nobody_out(serving, monkeypatch, jump_s):
    said = {"model": "echo", "prompt": TEXT, "max_tokens": 999, "stream": True}
    real = time.time
    async with (
        serving(CONFIG) as server,
        connected(server) as running,
        connected(server) as waiting,
        connected(server) as idle,
    ):
        assert (await idle.request(get("/health"))).status == 200
        running.send(post("/v1/completions", said))
        await running.head()
        waiting.send(post("/v1/completions", said))
        await until(lambda: queue_lengths(server) == (1, 1))

        monkeypatch.setattr(time, "time", lambda: real() + jump_s)

        parts = []
        while part := await running.piece():
            parts.append(part)
        waited = await waiting.reply()
        ready = await idle.request(get("/ready"))
        (worker,) = server.application.workers
        assert worker.state is WorkerState.READY

    for body in (b"".join(parts), waited.body):
        *chunks, done = events(body)
        assert done == "[DONE]"
        assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == TEXT
    assert ready.status == 200
    created = {chunk["created"] for chunk in events(b"".join(parts))[:-1]}
    assert len(created) == 1, "one answer has one time stamp"
