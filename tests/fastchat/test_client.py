"""How FastChat's processes are called: framing, failures, and what a client costs."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fastchat_serve.errors import EngineError
from fastchat_serve.fastchat import client as module
from fastchat_serve.fastchat.addresses import resolved
from fastchat_serve.fastchat.client import Client, NotOffered, Silent, Unreachable
from fastchat_serve.protocol.fastchat import ContextLength, ModelQuery
from tests.fastchat.acting import Actor, Reply, said, streamed

pytestmark = pytest.mark.anyio

ASKED = ModelQuery("tiny")


@asynccontextmanager
async def client_of(reply: Reply) -> AsyncIterator[Client]:
    """Of a process that answers everything with `reply`."""
    actor = Actor(lambda _: reply)
    async with actor.listening():
        dial = await resolved(actor.url)
        async with Client(dial, dial.places[0]) as client:
            yield client


async def texts(*pieces: Any) -> list[str]:
    """Of the messages that are read when these pieces of a stream come one after the other."""
    async with client_of(tuple(streamed(*pieces))) as client:
        return [message.text async for message in client.messages("/worker_generate_stream", ASKED)]


async def test_a_message_may_come_in_pieces() -> None:
    assert await texts(b'{"te', b'xt": "a', b'"}', b"\0") == ["a"]


async def test_of_messages_that_come_together_the_last_has_all_text() -> None:
    assert await texts(b'{"text": "a"}\0{"text": "ab"}\0{"text"', b': "abc"}\0') == ["ab", "abc"]


async def test_what_is_left_at_the_end_is_no_message() -> None:
    with pytest.raises(Unreachable, match="within a message"):
        await texts({"text": "a"}, b'{"text": "ab"')


async def test_a_message_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MESSAGE_BYTES", 1000)
    with pytest.raises(EngineError, match="too long"):
        await texts(*[b"x" * 300] * 5)


async def test_a_reply_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REPLY_BYTES", 1000)
    async with client_of(said({"x": "x" * 2000})) as client:
        with pytest.raises(EngineError, match="too long"):
            await client.call("/model_details", ASKED, ContextLength)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (said({}, "404 Not Found"), NotOffered),
        (said({}, "500 Internal Server Error"), EngineError),
        (said({}, "307 Temporary Redirect"), EngineError),
        (said({"context_length": "?"}), EngineError),
        (said({"context_length": 0}), EngineError),
        (said({})[:-1] + b"\xff", EngineError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", Silent),
        (b"no HTTP\r\n\r\n", Unreachable),
        ((None,), Unreachable),
    ],
)
async def test_every_failure_is_an_error_of_ours(
    reply: Reply, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REPLY_S", 0.3)
    async with client_of(reply) as client:
        with pytest.raises(error) as failed:
            await client.call("/model_details", ASKED, ContextLength)

    assert "127.0.0.1" not in str(failed.value)


async def test_b7_a_client_for_plain_http_loads_no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would keep everybody waiting for tens of milliseconds."""

    loaded: list[object] = []

    def load(*_: Any, **__: Any) -> None:
        loaded.append(1)

    monkeypatch.setattr(ssl, "create_default_context", load)
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", load)
    dial = await resolved("http://127.0.0.1:1")
    async with Client(dial, dial.places[0]):
        assert loaded == []
