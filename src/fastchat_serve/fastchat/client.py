"""How one process of FastChat's is called: over connections that are kept, to the address that was permitted."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final, Self, TypeVar

import anyio
import httpx
import msgspec
from msgspec import Struct

from fastchat_serve import __version__
from fastchat_serve.errors import EngineError, Unavailable
from fastchat_serve.fastchat.addresses import Dial
from fastchat_serve.protocol.fastchat import Message

__all__ = ["CONNECT_S", "Client", "NotOffered", "Silent", "Unreachable"]

CONNECT_S: Final = 5.0
REPLY_S: Final = 5.0
"""For a plain reply: what FastChat's own processes wait for one another."""
KEPT_S: Final = 4.0
"""An idle connection is closed before uvicorn, in whose default FastChat trusts, does it after 5 s."""
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
MAX_REPLY_BYTES: Final = 256 * 1024 * 1024
"""Embeddings are written as numbers."""

T = TypeVar("T")
_message = msgspec.json.Decoder(Message)


class Unreachable(Unavailable):
    """No connection to it could be had, or it broke off."""


class Silent(Unavailable):
    """It did not answer in time."""


class NotOffered(EngineError):
    """It has no such route."""


class Client:
    """One process.

    Args:
        dial: How to reach it.
        place: Which of its places.
    """

    def __init__(self, dial: Dial, place: str) -> None:
        headers = {"user-agent": f"fastchat-serve/{__version__}", "accept-encoding": "identity"}
        base = httpx.URL(place)
        named = f"[{dial.host}]" if ":" in dial.host else dial.host
        headers["host"] = named if base.port is None else f"{named}:{base.port}"
        self._extensions = {"sni_hostname": dial.host} if base.scheme == "https" else {}
        self._http = httpx.AsyncClient(
            base_url=base,
            headers=headers,
            verify=_trusted() if base.scheme == "https" else _untouched(),
            timeout=httpx.Timeout(None, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=KEPT_S),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._http.aclose()

    async def call(self, path: str, body: Struct | None, reply: type[T]) -> T:
        """The reply to ``POST path``.

        Raises:
            Unreachable, Silent, NotOffered: See there.
            EngineError: It failed, or answered what is no `reply`.
        """
        content = await self.post(path, body, REPLY_S)
        try:
            return msgspec.json.decode(content, type=reply)
        except msgspec.DecodeError as error:
            raise EngineError(f"The FastChat process answered {path} with what it should not: {error}.") from None

    async def offers(self, path: str) -> bool:
        """Whether there is a route of this path: another method than its own is not answered with 404 then."""
        with self._explained():
            with anyio.fail_after(REPLY_S):
                response = await self._http.get(path, extensions=self._extensions)
            return response.status_code != httpx.codes.NOT_FOUND

    async def messages(self, path: str, body: Struct) -> AsyncGenerator[Message, None]:
        """The messages that answer ``POST path``. Closing early closes the connection.

        Each has all the text so far, so that of several that arrive at once only the last is read.

        Raises:
            Unreachable, NotOffered: See there.
            EngineError: It failed, or sent what is no message.
        """
        unread = b""
        with self._explained():
            async with self._http.stream(
                "POST",
                path,
                content=msgspec.json.encode(body),
                headers={"content-type": "application/json"},
                extensions=self._extensions,
            ) as response:
                self._require_good(path, response)
                async for data in response.aiter_raw():
                    whole, separator, rest = data.rpartition(b"\0")
                    if not separator:
                        unread += data
                        if len(unread) > MAX_MESSAGE_BYTES:
                            raise EngineError("The FastChat process sent a message that is too long.")
                        continue
                    whole, unread = unread + whole, rest
                    try:
                        message = _message.decode(whole.rpartition(b"\0")[2])
                    except msgspec.DecodeError as error:
                        raise EngineError(f"The FastChat process sent what is no message: {error}.") from None
                    yield message
        if unread:
            raise Unreachable("The FastChat process broke off within a message.")

    async def post(self, path: str, body: Struct | None, within_s: float | None) -> bytes:
        """The reply as it comes. Raises as `call` does."""
        content = b"" if body is None else msgspec.json.encode(body)
        headers = {"content-type": "application/json"} if content else {}
        parts, size = [], 0
        with self._explained():
            with anyio.fail_after(within_s):
                async with self._http.stream(
                    "POST", path, content=content, headers=headers, extensions=self._extensions
                ) as response:
                    self._require_good(path, response)
                    async for data in response.aiter_raw():
                        parts.append(data)
                        size += len(data)
                        if size > MAX_REPLY_BYTES:
                            raise EngineError("The FastChat process sent a reply that is too long.")
        return b"".join(parts)

    @staticmethod
    def _require_good(path: str, response: httpx.Response) -> None:
        if response.status_code in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED):
            raise NotOffered(f"The FastChat process has no {path}.")
        if response.status_code != httpx.codes.OK:
            raise EngineError(f"The FastChat process answered {path} with status {response.status_code}.")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Failures of the connection as errors of ours, which say no address."""
        try:
            yield
        except (httpx.TimeoutException, TimeoutError):
            raise Silent("The FastChat process did not answer in time.", retry_after_s=1.0) from None
        except (httpx.TransportError, OSError) as error:
            raise Unreachable(
                f"The FastChat process cannot be reached: {type(error).__name__}.", retry_after_s=1.0
            ) from None


@cache
def _trusted() -> ssl.SSLContext:
    """With the certificates of this machine. To load them takes tens of milliseconds, so it is done once."""
    return ssl.create_default_context()


@cache
def _untouched() -> ssl.SSLContext:
    """For clients that speak no TLS, which would load all of that as well."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
