"""Failures of the router itself have OpenAI's shape too, and every reply has a request id."""

from __future__ import annotations

import logging

import pytest

from tests.end_to_end.raw import connected, expect_error, get, post

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/", "/nowhere", "/v1/chat/completions/x", "/v1/chat", "/%00", "/%ff", "/" + "x" * 2000]
)
async def test_an_unknown_route_is_a_404(server, path):
    """G14."""
    async with connected(server) as connection:
        expect_error(await connection.request(get(path)), 404, "not_found")
        expect_error(await connection.request(post(path, {})), 404, "not_found")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (CHAT, "POST"),
        ("/v1/completions", "POST"),
        ("/v1/embeddings", "POST"),
        ("/v1/models", "GET, OPTIONS"),
        ("/health", "GET, OPTIONS"),
        ("/metrics", "GET, OPTIONS"),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "GET", "POST"])
async def test_a_wrong_method_is_a_405_that_names_the_right_ones(server, path, allowed, method):
    """RFC 9110, 15.5.6: the reply says what is allowed."""
    if method in allowed:
        return
    async with connected(server) as connection:
        reply = await connection.request(get(path, method))

    expect_error(reply, 405, "method_not_allowed")
    assert set(reply.headers["allow"].split(", ")) == set(allowed.split(", "))


@pytest.mark.parametrize(
    "path",
    ["/v1/models", "/v1/models/echo", "/health", "/ready", "/metrics", "/schema", "/cluster/workers", "/nowhere", CHAT],
)
async def test_every_reply_has_a_request_id(server, path):
    async with connected(server) as connection:
        echoed = await connection.request(get(path, x_request_id="mine-1"))
        made = await connection.request(get(path))
        replaced = await connection.request(get(path, x_request_id="x" * 129))

    assert echoed.headers["x-request-id"] == "mine-1"
    assert len(made.headers["x-request-id"]) == 32
    assert len(replaced.headers["x-request-id"]) == 32


async def test_hostile_request_ids_reach_no_header_and_no_log(server, caplog):
    """S20: escape codes, markup and bidirectional marks."""
    caplog.set_level(logging.DEBUG)
    async with connected(server) as connection:
        for harmful in ("id with spaces", "<script>", "\u202e".encode().decode("latin-1"), "a%0d%0ax: y"):
            reply = await connection.request(post(CHAT, b"{", x_request_id=harmful))
            assert reply.headers["x-request-id"].isalnum()
            assert harmful not in caplog.text


async def test_a_connection_goes_on_after_every_kind_of_error(server):
    """F39: nothing of a refused request is left in the next."""
    good = {"model": "echo", "messages": [{"role": "user", "content": "to be"}]}
    async with connected(server) as connection:
        for bad in (
            get("/nowhere"),
            get(CHAT),
            post(CHAT, b"{"),
            post(CHAT, good | {"model": "x"}),
            post(CHAT, b"x" * 1000, content_type="text/plain"),
            post("/v1/models", b"x" * 1000),
        ):
            assert (await connection.request(bad)).status >= 400
            reply = await connection.request(post(CHAT, good))
            assert reply.json()["choices"][0]["message"]["content"] == "to be"


async def test_pipelined_requests_are_answered_in_order(server):
    """F39."""
    async with connected(server) as connection:
        asked = [{"model": "echo", "prompt": f"number {i}", "stream": i % 2 == 0, "max_tokens": 5} for i in range(20)]
        connection.send(b"".join(post("/v1/completions", request) for request in asked))
        for i in range(20):
            assert f"number{' ' if i % 2 else ''}".encode() in (reply := await connection.reply()).body.replace(
                b'"text":"', b""
            )
            assert str(i).encode() in reply.body
