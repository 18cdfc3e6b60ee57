"""Dialling another process: a link, or one line that says what to change."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import anyio
import pytest

from fastchat_serve.worker import dial as module
from fastchat_serve.worker.dial import CALL, NODE, UPGRADE, Backoff, Credentials, DialError, dial, resolve, system_tls
from tests.worker.every_worker import until

pytestmark = pytest.mark.anyio

NOBODY = Credentials()
AGREES = f"HTTP/1.1 101 Switching Protocols\r\nupgrade: {UPGRADE}\r\n\r\n".encode()
NOT_FOUND = b'{"error":{"message":"no such route","type":"invalid_request_error","param":null,"code":"not_found"}}'


def answer(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def saying(*parts: bytes, hang_up: bool = False) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that says this to whatever request it gets: its URL, and the heads of those requests."""
    heads: list[bytes] = []
    served = anyio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            for part in parts:
                writer.write(part)
                await writer.drain()
            if not hang_up:
                await reader.read()
        except ConnectionError:
            pass  # the other end has seen enough
        finally:
            writer.close()
            served.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads
        with anyio.fail_after(10):
            await served.wait()


class Taking(asyncio.Protocol):
    """Takes what comes after the handshake."""

    def __init__(self) -> None:
        self.taken = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.taken += data


async def problem(url: str, path: str = NODE) -> str:
    with anyio.fail_after(20), pytest.raises(DialError) as raised:
        await dial(url, path, Taking, NOBODY)
    return str(raised.value)


@pytest.mark.parametrize(
    "parts", [(AGREES + b"frame",), (AGREES[:9], AGREES[9:], b"frame")], ids=["at once", "in parts"]
)
async def test_what_comes_with_the_agreement_is_handed_over(parts: tuple[bytes, ...]) -> None:
    taking = Taking()
    async with saying(*parts) as (url, _):
        await dial(url, CALL, lambda: taking, NOBODY)
        await until(lambda: taking.taken == b"frame")
        taking.transport.abort()


async def test_a_link_that_was_made_too_late_for_whoever_dialled_is_ended() -> None:
    """Nobody would know of it, and at the other end it would count as well for ever."""
    gone = anyio.Event()

    class Late(Taking):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            dialling.cancel()  # as its time limit does when it is over at this very moment

        def connection_lost(self, exc: Exception | None) -> None:
            gone.set()

    async with saying(AGREES) as (url, _):
        dialling = asyncio.ensure_future(dial(url, CALL, Late, NOBODY))
        with pytest.raises(asyncio.CancelledError):
            await dialling
        with anyio.fail_after(10):
            await gone.wait()


async def test_it_shows_who_it_is_and_what_it_wants() -> None:
    taking = Taking()
    async with saying(AGREES) as (url, heads):
        await dial(url, CALL, lambda: taking, Credentials(b"Bearer secret"))
        (head,) = heads
        taking.transport.abort()
    lines = head.split(b"\r\n")
    assert lines[0] == b"GET /cluster/call HTTP/1.1"
    assert {b"authorization: Bearer secret", b"connection: upgrade", f"upgrade: {UPGRADE}".encode()} <= set(lines)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (answer("401 Unauthorized", NOT_FOUND), "does not accept our cluster.token"),
        (answer("404 Not Found", NOT_FOUND), "a controller or an API is to be dialled"),
        (answer("400 Bad Request", NOT_FOUND), "refuses: no such route"),
        (answer("404 Not Found", b"<html>"), "no server of ours: it answers with status 404"),
        (answer("200 OK", b"hello"), "no server of ours: it answers with status 200"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "it does not speak HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x16", "use https://"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 10_000, "its reply has no end"),
    ],
    ids=["token", "role", "version", "another's 404", "another's 200", "ssh", "tls", "endless"],
)
async def test_whoever_is_no_peer_is_told_from_one(reply: bytes, says: str) -> None:
    async with saying(reply) as (url, _):
        assert says in await problem(url)


async def test_whoever_hangs_up_at_once_is_told() -> None:
    async with saying(hang_up=True) as (url, _):
        assert "without an answer" in await problem(url)


async def test_whoever_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIAL_S", 0.1)
    async with saying() as (url, _):
        assert "does not answer within" in await problem(url)


async def test_a_host_that_is_not_known_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def find_nobody(host: str, *_: object, **__: object) -> NoReturn:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", find_nobody)
    with pytest.raises(DialError, match="there is no host"):
        await resolve("http://no-such-host.invalid:80")
    assert "there is no host" in await problem("http://no-such-host.invalid:80")
    assert asked == ["no-such-host.invalid"] * 2


@pytest.mark.parametrize(
    "url", ["http://[", "http://a:b", "http://a:99999", "http://a..b", f"http://{'a' * 64}", "https://a..b"]
)
async def test_what_is_no_address_is_told_of_and_breaks_nothing(url: str) -> None:
    """Other processes name addresses, too."""
    assert "is no address" in await problem(url)
    with pytest.raises(DialError, match="is no address"):
        await resolve(url)


@pytest.mark.parametrize(
    ("url", "found"), [("http://127.0.0.1:1", ("127.0.0.1",)), ("http://[::1]:1", ("::1",))], ids=["IPv4", "IPv6"]
)
async def test_an_address_stands_for_itself(url: str, found: tuple[str, ...]) -> None:
    assert await resolve(url) == found


async def test_the_systems_authorities_are_loaded_once_and_not_by_the_event_loop(monkeypatch) -> None:
    """That takes some 0.1 s: all would stand still at every attempt."""
    loading_threads: list[int] = []

    def load() -> ssl.SSLContext:
        loading_threads.append(threading.get_ident())
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    monkeypatch.setattr(ssl, "create_default_context", load)
    system_tls.cache_clear()
    for _ in range(3):
        assert "nothing listens" in await problem("https://127.0.0.1:1")
    system_tls.cache_clear()
    assert len(loading_threads) == 1
    assert loading_threads[0] != threading.get_ident()


def test_it_is_dialled_again_soon_and_then_about_once_a_second() -> None:
    backoff = Backoff()
    waits = [backoff.wait_s() for _ in range(20)]

    assert waits[0] <= Backoff.FIRST_S
    assert all(0.5 * Backoff.MOST_S <= wait <= Backoff.MOST_S for wait in waits[6:])
    backoff.reset()
    assert backoff.wait_s() <= Backoff.FIRST_S
