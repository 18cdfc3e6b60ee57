"""Keys: refused by default, on every route, by whatever path, and never shown."""

from __future__ import annotations

import hashlib
import logging

import pytest
from litestar.routes import HTTPRoute
from openai import AsyncOpenAI, AuthenticationError

from fastchat_serve.routes.auth import Keys
from tests.end_to_end.raw import connected, expect_error, get, post

pytestmark = pytest.mark.anyio

PLAIN, HASHED, FILED = "sk-plain-4711", "sk-hashed-4712", "sk-filed-4713"
PUBLIC = {("/health", "GET"), ("/ready", "GET")}
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    keys_file = tmp_path_factory.mktemp("keys") / "keys"
    keys_file.write_text(f"# the team\n{FILED}\n\n")
    return f"""
[server]
log_level = "debug"
[controller]
[api]
keys = ["{PLAIN}", "sha256:{hashlib.sha256(HASHED.encode()).hexdigest()}"]
keys_file = '{keys_file}'
[[worker]]
backend = "echo"
"""


@pytest.mark.parametrize("key", [PLAIN, HASHED, FILED])
async def test_every_kind_of_key_opens(server, key):
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
        assert [model.id for model in (await client.models.list()).data] == ["echo"]
        assert (await client.chat.completions.create(**CHAT)).choices[0].message.content == "hi"


async def test_a_wrong_key_is_a_typed_401(server):
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sk-wrong", max_retries=0) as client:
        with pytest.raises(AuthenticationError) as refused:
            await client.chat.completions.create(**CHAT)

    assert refused.value.code == "invalid_api_key"
    assert "sk-wrong" not in refused.value.message


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {PLAIN}",
        PLAIN,
        f"Bearer {PLAIN}x",
        f"Bearer {PLAIN[:-1]}",
        f"Bearer {PLAIN.upper()}",
        f"Bearer sha256:{hashlib.sha256(HASHED.encode()).hexdigest()}",
        f"Bearer {hashlib.sha256(HASHED.encode()).hexdigest()}",
        f"Bearer {PLAIN},{HASHED}",
        "Bearer # the team",
        "Bearer \xff\xfe",
        "Bearer " + "x" * 10_000,
    ],
    ids=lambda value: repr(value[:30]),
)
async def test_what_is_no_key_is_refused(server, authorization):
    """S14, S16: a hash opens nothing, nor does a part of a key."""
    async with connected(server) as connection:
        reply = await connection.request(post("/v1/chat/completions", CHAT, authorization=authorization))

    assert expect_error(reply, 401, "invalid_api_key")["type"] == "invalid_request_error"
    assert reply.headers["www-authenticate"] == "Bearer"


async def test_the_scheme_is_not_case_sensitive(server):
    """RFC 9110, 11.1."""
    async with connected(server) as connection:
        assert (await connection.request(get("/v1/models", authorization=f"bearer {PLAIN}"))).status == 200


async def test_every_route_and_method_refuses_without_a_key(server):
    """S17: walks the router's table, so a new route is denied unless it is listed here as public."""
    table = set()
    for route in server.application.asgi.routes:
        path = route.path_format.replace("{model}", "echo")
        methods = (
            route.methods if isinstance(route, HTTPRoute) else ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
        )
        table |= {(path, method) for method in methods}
    assert len(table) > 20, "the walk sees the routes"

    async with connected(server) as connection:
        for path, method in sorted(table - PUBLIC - {(path, "OPTIONS") for path, _ in PUBLIC}):
            reply = await connection.request(get(path, method))
            expect_error(reply, 401, "invalid_api_key")
        for path, method in PUBLIC:
            assert (await connection.request(get(path, method))).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "//v1/models",
        "/v1//models",
        "/v1/models/",
        "/v1/models//",
        "/v1/%6dodels",
        "/%76%31/models",
        "/%2fv1/models",
        "/V1/models",
        "/v1/Models",
        "/health/../v1/models",
        "/health/..%2fv1/models",
        "/v1/./models",
        "/v1/models?x=/health",
        "/v1/models;/health",
        "/v1/models#/health",
        "/v1/models%00",
        "/v1/models/echo",
        "/v1/models/%2e%2e/health",
        "/health/",
        "/health/v1/models",
        "http://localhost/v1/models",
        "/metrics",
        "/metrics/",
        "/schema",
        "/cluster/workers",
        "/cluster/decisions/x",
    ],
)
async def test_no_way_of_writing_a_path_gets_by_without_a_key(server, path):
    """S4, S17, S20: it is refused, or not a route; never answered, never redirected."""
    async with connected(server) as connection:
        reply = await connection.request(get(path))

    if path == "/health/":
        assert reply.json() == {"status": "ok"}
        return
    expect_error(reply, 404 if reply.status == 404 else 401)
    assert "location" not in reply.headers
    assert b"echo" not in reply.body.replace(path.encode(), b"")


async def test_a_refused_request_is_not_even_parsed(server):
    """G16: the body is broken and never complete, yet the answer is 401 at once."""
    async with connected(server) as connection:
        connection.send(post("/v1/chat/completions", b"{{{", content_length="1000000"))
        expect_error(await connection.reply(), 401)


async def test_keys_never_show(server, caplog, capfd):
    """S15, G16: not in logs, metrics, schema, errors or representations, even at debug level."""
    caplog.set_level(logging.DEBUG)
    seen = repr(server.application.config)
    async with connected(server) as connection:
        for request in (
            get("/v1/models", authorization=f"Bearer {PLAIN}"),
            get("/metrics", authorization=f"Bearer {PLAIN}"),
            get("/schema", authorization=f"Bearer {HASHED}"),
            get("/cluster/workers", authorization=f"Bearer {FILED}"),
            get("/nowhere", authorization=f"Bearer {PLAIN}"),
            post("/v1/chat/completions", {"model": 1}, authorization=f"Bearer {PLAIN}"),
            post("/v1/chat/completions", CHAT, authorization=f"Bearer {PLAIN}!"),
        ):
            reply = await connection.request(request)
            seen += repr(reply)
    seen += caplog.text + "".join(capfd.readouterr())

    for key in (PLAIN, HASHED, FILED, hashlib.sha256(HASHED.encode()).hexdigest()):
        assert key not in seen


async def test_without_keys_the_server_is_open_on_loopback(serving):
    async with serving('[controller]\n[api]\n[[worker]]\nbackend = "echo"') as server, connected(server) as connection:
        assert (await connection.request(get("/v1/models"))).status == 200


def test_keys_are_kept_as_hashes_only():
    keys = Keys([PLAIN])

    known = keys.tenant(PLAIN.encode())
    assert known is not None
    assert known != Keys([PLAIN + "x"]).tenant(PLAIN.encode() + b"x")
    assert PLAIN not in repr(vars(keys))
    assert not Keys([])
