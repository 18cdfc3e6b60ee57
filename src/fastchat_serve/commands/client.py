"""How commands talk to a running server: every wait is bounded, every failure is one line of text.

Works with any server that speaks OpenAI's API, not only with ours.
"""

from __future__ import annotations

import argparse
import os
import re
import ssl
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self, TypeVar

import anyio
import httpx
import msgspec
from rich.table import Table

from fastchat_serve import __version__
from fastchat_serve.commands.sse import EventReader
from fastchat_serve.commands.tables import print_table
from fastchat_serve.commands.trust import tls_mismatch, trusted
from fastchat_serve.config import Secret
from fastchat_serve.configfile.rules import is_loopback
from fastchat_serve.errors import FastchatServeError, StartupError

__all__ = ["RequestFailed", "ServerClient", "client_from", "error_message", "operator_from", "reader_from", "show_list"]

CONNECT_S = 5.0
REPLY_S = 15.0
"""For a whole plain reply."""
SILENCE_S = 300.0
"""Between two pieces of a stream. The server's own limits are shorter; this is for one that froze."""
MAX_MESSAGE_CHARS = 500

_URL = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")
_KEY = re.compile(r"[\x21-\x7e]+")
_KEY_GOES = "with --api-key or in OPENAI_API_KEY"
_TOKEN_GOES = "with --token or in FASTCHAT_TOKEN"

T = TypeVar("T")


class RequestFailed(FastchatServeError):
    """The server could not be reached, or refused, or broke off. The text is one line."""


class _Error(msgspec.Struct, frozen=True):
    message: str


class _ErrorReply(msgspec.Struct, frozen=True):
    """OpenAI's shape, and FastChat's."""

    error: _Error | None = None
    message: str | None = None


class ServerClient:
    """A connection to the server at `url`, which may end in ``/v1``.

    Args:
        hint: What to do if `api_key` is not accepted.
        ca: The authority to believe if `url` has TLS; None: those of the environment.

    Raises:
        StartupError: `url`, `api_key` or `ca` cannot be used.
    """

    def __init__(self, url: str, api_key: Secret, hint: str, ca: Path | None = None) -> None:
        self._hint = hint
        if not _URL.fullmatch(url):
            raise StartupError("--url: an address has the form http://host:port, with a path at most.")
        if api_key and not _KEY.fullmatch(api_key.reveal()):
            raise StartupError("The API key holds white space or characters that no HTTP header can carry.")
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {"user-agent": f"fastchat-serve/{__version__}"}
        if api_key:
            headers["authorization"] = f"Bearer {api_key.reveal()}"
        try:
            base = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise StartupError(f"--url: {error}.") from None
        if (base.port or 0) > 65535:
            raise StartupError("--url: a port is at most 65535.")
        self._http = httpx.AsyncClient(
            base_url=base,
            headers=headers,
            # Without TLS none is believed, as to load them takes tens of milliseconds.
            verify=trusted(ca) if base.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
            trust_env=not is_loopback(base.host),  # no proxy on the way to this machine
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._http.__aexit__(*exc_info)

    async def get(self, path: str) -> bytes:
        """The body of a good reply to ``GET path``. Raises `RequestFailed`."""
        return await self.ask("GET", path)

    async def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The same for any method, with a body of JSON."""
        headers = {"content-type": "application/json"} if body else {}
        with self._explained():
            with anyio.fail_after(REPLY_S):
                response = await self._http.request(method, path, content=body, headers=headers)
            if not response.is_success:
                raise RequestFailed(_refusal(response, self._hint))
            return response.content

    async def events(self, path: str, body: bytes) -> AsyncGenerator[str, None]:
        """The data of the events that answer ``POST path``. Closing early closes the connection.

        Raises:
            RequestFailed: Also in the middle.
        """
        headers = {"content-type": "application/json", "accept": "text/event-stream"}
        reader = EventReader()
        with self._explained():
            async with self._http.stream("POST", path, content=body, headers=headers) as response:
                if not response.is_success:
                    await response.aread()
                    raise RequestFailed(_refusal(response, self._hint))
                with self._explained(answered=True):
                    async for data in response.aiter_bytes():
                        for event in reader.feed(data):
                            yield event

    @contextmanager
    def _explained(self, *, answered: bool = False) -> Iterator[None]:
        """Whatever goes wrong with the connection, in words. `answered`: it had gone well until then."""
        try:
            yield
        except (httpx.TimeoutException, TimeoutError) as error:
            what = "took no connection" if isinstance(error, httpx.ConnectTimeout) else "did not answer in time"
            raise RequestFailed(f"The server at {self.url} {what}.") from None
        except (httpx.HTTPError, ValueError) as error:
            if not answered and (mismatch := tls_mismatch(error, self.url)):
                raise RequestFailed(mismatch) from None
            if isinstance(error, httpx.ConnectError):
                raise RequestFailed(
                    f"Cannot connect to {self.url}: {_line(str(error))}. Is a server running there?"
                ) from None
            raise RequestFailed(f"The connection to {self.url} broke off: {_line(str(error))}") from None


def client_from(args: argparse.Namespace, url: str) -> ServerClient:
    """A client for `url` with the key of ``--api-key`` or ``OPENAI_API_KEY``. Raises `StartupError`."""
    key = args.api_key if args.api_key is not None else os.environ.get("OPENAI_API_KEY", "")
    return ServerClient(url, Secret(key.strip()), f"Give a key {_KEY_GOES}.", args.ca)


def operator_from(args: argparse.Namespace) -> ServerClient:
    """A client for ``--url`` with the token of ``--token`` or ``FASTCHAT_TOKEN``. Raises `StartupError`."""
    token = args.token if args.token is not None else os.environ.get("FASTCHAT_TOKEN", "")
    return ServerClient(args.url, Secret(token.strip()), f"Give the cluster's token {_TOKEN_GOES}.", args.ca)


def reader_from(args: argparse.Namespace) -> ServerClient:
    """A client for ``--url`` with either: what is given as an argument, else the token. Raises `StartupError`."""
    given = args.token if args.token is not None else args.api_key
    if given is None:
        given = os.environ.get("FASTCHAT_TOKEN") or os.environ.get("OPENAI_API_KEY", "")
    hint = f"Give the cluster's token {_TOKEN_GOES}; where there is an [api], a key {_KEY_GOES} will do."
    return ServerClient(args.url, Secret(given.strip()), hint, args.ca)


def show_list(client: ServerClient, path: str, type_: type[T], table: Callable[[T], Table], *, as_json: bool) -> int:
    """A command that prints what ``GET path`` lists: as it came, or as a table.

    Returns:
        The exit code.
    """

    async def fetch() -> bytes:
        async with client:
            return await client.get(path)

    try:
        body = anyio.run(fetch)
        if as_json:
            print(body.decode(errors="replace"))
            return 0
        value = msgspec.json.decode(body, type=type_)
    except RequestFailed as error:
        print(f"fastchat-serve: {error}", file=sys.stderr)
        return 1
    except msgspec.DecodeError as error:
        print(f"fastchat-serve: {client.url}{path} is not what this command expects: {error}", file=sys.stderr)
        return 1
    print_table(table(value))
    return 0


def error_message(body: bytes | str) -> str | None:
    """What a server says in an error's body, in one line; None if it does not say it in a shape we know."""
    try:
        reply = msgspec.json.decode(body, type=_ErrorReply)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    message = reply.error.message if reply.error is not None else reply.message
    return _line(message) if message else None


def _refusal(response: httpx.Response, hint: str) -> str:
    status = response.status_code
    said = error_message(response.content)
    if said is None:
        names = {known.value: known.phrase for known in HTTPStatus}
        said = f"The server answered {status} {names.get(status, '')}".rstrip() + "."
    if status == HTTPStatus.UNAUTHORIZED:
        said += f" {hint}"
    if (seconds := response.headers.get("retry-after", "")).isdigit():
        said += f" Try again in {seconds} s."
    return said


def _line(text: str) -> str:
    """Foreign text as one short line without control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MAX_MESSAGE_CHARS else line[:MAX_MESSAGE_CHARS] + "…"
