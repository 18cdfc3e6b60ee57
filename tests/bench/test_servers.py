"""The processes that are measured: they start, tell what it took, and are gone afterwards."""

from __future__ import annotations

import httpx
import psutil
import pytest

from tests.bench.servers import API_KEY, bare, cpu_s, ours, rss_mb

WORKER = """
[[worker]]
backend = "echo"
names = ["echo"]
"""


def test_the_product_runs_with_keys_on_and_nothing_to_complain_of() -> None:
    with ours(WORKER) as server:
        question = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
        url = f"{server.url}/v1/chat/completions"
        stranger = httpx.post(url, json=question)
        reply = httpx.post(url, json=question, headers={"Authorization": f"Bearer {API_KEY}"})

        assert stranger.status_code == 401
        assert reply.json()["choices"][0]["message"]["content"] == "hello"
        assert 0 < server.cpu_s <= cpu_s(server.pid)
        assert server.ready_s > 0
        assert rss_mb(server.pid) > 10
        assert server.complaints() == []
    assert not psutil.pid_exists(server.pid)


def test_the_bare_app_sends_as_many_events_as_asked_for() -> None:
    with bare() as server:
        reply = httpx.post(server.url, json={"max_tokens": 5})

    assert reply.text.count("data: ") == 5


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(RuntimeError, match="nonsense"), ours("nonsense = 1"):
        pass
