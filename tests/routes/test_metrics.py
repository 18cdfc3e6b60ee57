"""``/metrics``: what is counted, under which names, and that labels stay bounded."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.end_to_end.raw import connected, get, post

pytestmark = pytest.mark.anyio

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TOML = """
[controller]
[api]
[[worker]]
backend = "echo"
[[worker]]
backend = "echo"
names = ["failing"]
options.fail_at = 1
"""


async def samples(connection) -> dict[tuple[str, frozenset], float]:
    reply = await connection.request(get("/metrics"))
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
        if not sample.name.endswith(("_created", "_bucket"))
    }


def of(operation: str, model: str, **labels: str) -> frozenset:
    return frozenset({"gen_ai_operation_name": operation, "gen_ai_request_model": model, **labels}.items())


async def test_requests_and_tokens_are_counted_as_soon_as_the_reply_is_there(serving):
    async with serving(TOML) as server, connected(server) as connection:
        for stream in (False, True):
            said = {"model": "echo", "messages": [{"role": "user", "content": "to be or"}], "stream": stream, "n": 2}
            await connection.request(post(CHAT, said))
        await connection.request(post(TEXT, {"model": "echo", "prompt": "one two"}))
        await connection.request(post("/v1/embeddings", {"model": "echo", "input": ["a b", "c"]}))
        found = await samples(connection)

    duration, tokens = "gen_ai_server_request_duration_seconds", "gen_ai_client_token_usage_tokens"
    assert found[f"{duration}_count", of("chat", "echo", error_type="")] == 2
    assert found[f"{duration}_count", of("text_completion", "echo", error_type="")] == 1
    assert found[f"{duration}_count", of("embeddings", "echo", error_type="")] == 1
    assert found[f"{tokens}_sum", of("chat", "echo", gen_ai_token_type="input")] == 8
    assert found[f"{tokens}_sum", of("chat", "echo", gen_ai_token_type="output")] == 12
    assert found[f"{tokens}_sum", of("text_completion", "echo", gen_ai_token_type="output")] == 2
    assert found[f"{tokens}_sum", of("embeddings", "echo", gen_ai_token_type="input")] == 3
    assert found["gen_ai_server_time_to_first_token_seconds_count", of("chat", "echo")] == 2
    assert found["gen_ai_server_time_per_output_token_seconds_count", of("chat", "echo")] == 2
    assert 0 < found[f"{duration}_sum", of("chat", "echo", error_type="")] < 20


async def test_failures_are_counted_by_their_code(serving):
    async with serving(TOML) as server, connected(server) as connection:
        for stream in (False, True):
            await connection.request(post(TEXT, {"model": "failing", "prompt": "a b c", "stream": stream}))
        found = await samples(connection)

    name = "gen_ai_server_request_duration_seconds_count"
    assert found[name, of("text_completion", "failing", error_type="engine_failed")] == 2
    assert (name, of("text_completion", "failing", error_type="")) not in found


async def test_gauges_show_each_worker(serving):
    toml = '[controller]\n[api]\n[[worker]]\nbackend = "echo"\nconcurrency = 2\noptions = {loop = true, delay_ms = 5}'
    async with serving(toml) as server, connected(server) as connection, connected(server) as busy:
        busy.send(post(TEXT, {"model": "echo", "prompt": "x", "stream": True, "max_tokens": 10**4, "n": 3}))
        await busy.head()
        found = await samples(connection)
        worker = frozenset({"worker": server.application.workers[0].id, "model": "echo"}.items())
        busy.reset()

    assert found["fastchat_worker_running", worker] == 2
    assert found["fastchat_worker_waiting", worker] == 1
    assert found["fastchat_worker_slots", worker] == 2
    assert found["fastchat_worker_ready", worker] == 1


async def test_nothing_a_client_makes_up_becomes_a_label(serving):
    """G8: an unknown model makes no series, however often it is asked for."""
    async with serving(TOML) as server, connected(server) as connection:
        before = await samples(connection)
        for number in range(50):
            for path, rest in (
                (CHAT, {"messages": [{"role": "user", "content": "x"}]}),
                (TEXT, {"prompt": "x"}),
                ("/v1/embeddings", {"input": "x"}),
            ):
                reply = await connection.request(post(path, {"model": f"made-up-{number}"} | rest))
                assert reply.status == 404
            await connection.request(get(f"/v1/models/made-up-{number}"))
            await connection.request(get(f"/made-up-{number}"))
        after = await samples(connection)

    assert after.keys() == before.keys()
