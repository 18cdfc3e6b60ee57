"""Browsers: which host names are answered, and which pages may ask."""

from __future__ import annotations

import pytest

from tests.end_to_end.raw import connected, events, expect_error, get, post

pytestmark = pytest.mark.anyio

WORKER = '[controller]\n[api]\n[[worker]]\nbackend = "echo"\n'
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "to be"}], "stream": True}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]", "[::1]:8000"])
async def test_names_of_loopback_are_answered(server, host):
    async with connected(server) as connection:
        assert (await connection.request(get("/v1/models", host=host))).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "evil.example:8000",
        "localhost@evil",
        "[::2]",
        "localhost.",
        "0.0.0.0",
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/health", "/metrics", "/schema"])
async def test_foreign_names_are_refused(server, host, path):
    """S18: DNS rebinding."""
    async with connected(server) as connection:
        expect_error(await connection.request(get(path, host=host)), 403, "forbidden")
        expect_error(await connection.request(get(path, host=host, x_forwarded_host="localhost")), 403)


@pytest.mark.parametrize(
    ("lines", "status"),
    [(b"", 400), (b"Host: localhost\r\nHost: localhost\r\n", 400), (b"Host:\r\n", 403)],
    ids=["none", "two", "empty"],
)
async def test_a_request_has_one_name_for_the_server(server, lines, status):
    """RFC 9112, section 3.2."""
    async with connected(server) as connection:
        connection.send(b"GET /health HTTP/1.1\r\n" + lines + b"\r\n")
        assert (await connection.reply()).status == status


async def test_two_names_in_one_are_no_name(server):
    async with connected(server) as connection:
        expect_error(await connection.request(get("/v1/models", host="127.0.0.1, evil.example")), 400)


async def test_a_generation_for_a_foreign_name_is_refused(server):
    async with connected(server) as connection:
        expect_error(await connection.request(post("/v1/chat/completions", CHAT, host="evil.example")), 403)


async def test_configured_names_are_answered_and_no_others(serving):
    async with (
        serving('[server]\nallowed_hosts = ["llm.example"]\n' + WORKER) as server,
        connected(server) as connection,
    ):
        assert (await connection.request(get("/v1/models", host="llm.example:443"))).status == 200
        expect_error(await connection.request(get("/v1/models", host="x.llm.example")), 403)
        expect_error(await connection.request(get("/v1/models", host="localhost")), 403)


async def test_a_star_answers_all_names(serving):
    async with serving('[server]\nallowed_hosts = ["*"]\n' + WORKER) as server, connected(server) as connection:
        assert (await connection.request(get("/v1/models", host="whatever.example"))).status == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000"])
async def test_no_foreign_page_may_read_unless_it_is_configured(server, origin):
    """S18."""
    async with connected(server) as connection:
        asked = await connection.request(
            get("/v1/chat/completions", "OPTIONS", origin=origin, access_control_request_method="POST")
        )
        listed = await connection.request(get("/v1/models", origin=origin))

    for reply in (asked, listed):
        assert not [name for name in reply.headers if name.startswith("access-control-")]
    assert asked.status == 405


async def test_a_configured_page_may_call_every_kind_of_route(serving):
    async with (
        serving('[server]\ncors_origins = ["https://chat.example"]\n' + WORKER) as server,
        connected(server) as connection,
    ):
        asked = await connection.request(
            get(
                "/v1/chat/completions",
                "OPTIONS",
                origin="https://chat.example",
                access_control_request_method="POST",
                access_control_request_headers="authorization, content-type",
            )
        )
        models = await connection.request(get("/v1/models", origin="https://chat.example"))
        stream = await connection.request(post("/v1/chat/completions", CHAT, origin="https://chat.example"))
        plain = await connection.request(
            post("/v1/chat/completions", CHAT | {"stream": False}, origin="https://chat.example")
        )
        wrong = await connection.request(post("/v1/chat/completions", b"{", origin="https://chat.example"))

    assert (asked.status, asked.headers["access-control-allow-methods"]) == (204, "GET, POST")
    assert (models.status, stream.status, plain.status, wrong.status) == (200, 200, 200, 400)
    assert events(stream.body)[-1] == "[DONE]"
    for reply in (asked, models, stream, plain, wrong):
        assert reply.headers["access-control-allow-origin"] == "https://chat.example"
        assert "access-control-allow-credentials" not in reply.headers
    assert "x-request-id" in stream.headers["access-control-expose-headers"].lower()


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "https://chat.example.evil", "http://chat.example"])
async def test_other_pages_stay_out_when_one_is_configured(serving, origin):
    """S18: no prefix, suffix or scheme will do, nor ``null``."""
    async with (
        serving('[server]\ncors_origins = ["https://chat.example"]\n' + WORKER) as server,
        connected(server) as connection,
    ):
        asked = await connection.request(
            get("/v1/models", "OPTIONS", origin=origin, access_control_request_method="GET")
        )
        stream = await connection.request(post("/v1/chat/completions", CHAT, origin=origin))

    assert asked.status == 400
    assert "access-control-allow-origin" not in asked.headers
    assert "access-control-allow-origin" not in stream.headers
