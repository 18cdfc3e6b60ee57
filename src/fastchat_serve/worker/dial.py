"""Open a link to another process: dial its server, and change from HTTP to frames (RFC 9110, section 7.8).

A link runs on the port that serves HTTP, so there is one address per process to get right. What can go wrong with that
is told in words that say what to change.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from ipaddress import ip_address
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from fastchat_serve.protocol.link import VERSION
from fastchat_serve.protocol.openai import ErrorEnvelope

__all__ = [
    "CALL",
    "DIAL_S",
    "NODE",
    "UPGRADE",
    "WATCH",
    "Backoff",
    "Credentials",
    "DialError",
    "dial",
    "resolve",
    "system_tls",
]

CALL: Final = "/cluster/call"
"""Dialled by whoever calls workers, where they are."""
NODE: Final = "/cluster/node"
"""Dialled by a process with workers, where they are wanted: controllers list them."""
WATCH: Final = "/cluster/watch"
"""Dialled by whoever wants to know of all nodes of a controller."""

UPGRADE: Final = f"fastchat-link/{VERSION}"
"""The protocol's name in HTTP."""

DIAL_S: Final = 2.0
"""How long an answer may take; then the way there counts as cut."""

_MAX_HEAD_BYTES: Final = 16 * 1024
_MAX_BODY_BYTES: Final = 16 * 1024


class DialError(Exception):
    """There is no link, for a reason that an operator understands."""


class Credentials(Struct, frozen=True):
    """What a process shows to others of its cluster."""

    authorization: bytes = b""
    """Value of the header; empty: none."""
    tls: ssl.SSLContext | None = None
    """For ``https://`` addresses; None: what Python trusts by default."""


class Backoff:
    """How long to wait before the next attempt: soon at first, then about a second, for ever.

    A peer that starts is found within a second or two, and thousands that wait for it do not come at once.
    """

    FIRST_S: Final = 0.05
    MOST_S: Final = 1.0

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = rng or random.Random()
        self._next_s = self.FIRST_S

    def reset(self) -> None:
        """It worked."""
        self._next_s = self.FIRST_S

    def lasted(self, seconds: float) -> None:
        """It worked for so long: who closes as soon as it is dialled is not dialled again at once."""
        if seconds >= self.MOST_S:
            self.reset()

    def wait_s(self) -> float:
        wait_s = self._next_s
        self._next_s = min(2 * self._next_s, self.MOST_S)
        return wait_s * self._random.uniform(0.5, 1.0)


async def resolve(url: str) -> tuple[str, ...]:
    """All IP addresses of a URL's host: a name may stand for several processes. Raises `DialError`."""
    host, port, _ = _parts(url)
    with suppress(ValueError):
        return (str(ip_address(host)),)
    try:
        async with asyncio.timeout(DIAL_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise DialError(f"the name server does not answer for {host!r}") from None
    except OSError as error:
        raise DialError(f"there is no host {host!r} ({error.strerror or error})") from None
    except ValueError:
        raise _no_address(url) from None
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


async def dial(
    url: str, path: str, protocol: Callable[[], asyncio.Protocol], credentials: Credentials, *, at: str | None = None
) -> None:
    """Dial `url`, and hand the connection to `protocol` once the other end has agreed.

    Args:
        path: `CALL`, `NODE` or `WATCH`.
        at: One of the host's IP addresses.

    Raises:
        DialError: There is no link.
    """
    host, port, tls = _parts(url)
    loop = asyncio.get_running_loop()
    context = (credentials.tls or await asyncio.to_thread(system_tls)) if tls else None
    handshake = _Handshake(url, path, protocol, credentials)
    try:
        async with asyncio.timeout(DIAL_S):
            await loop.create_connection(
                lambda: handshake,
                at or host,
                port,
                ssl=context,
                server_hostname=host if tls else None,
            )
            await handshake.done
            handshake.let_go()
    except TimeoutError:
        raise DialError(
            f"{url} does not answer within {DIAL_S:g} s (is that address right, and the way open?)"
        ) from None
    except ssl.SSLCertVerificationError as error:
        raise DialError(f"the certificate of {url} is not to be trusted: {error.verify_message.rstrip('.')}") from None
    except ssl.SSLError as error:
        raise DialError(f"{url} does not speak TLS as we do ({error.reason or error}): is it http:// there?") from None
    except ConnectionRefusedError:
        raise DialError(f"nothing listens at {url}") from None
    except socket.gaierror as error:
        raise DialError(f"there is no host {host!r} ({error.strerror})") from None
    except OSError as error:
        raise DialError(f"{url} cannot be reached ({error.strerror or error})") from None
    except ValueError:  # such as a host that is no name in DNS
        raise _no_address(url) from None
    finally:
        handshake.give_up()


@cache
def system_tls() -> ssl.SSLContext:
    """What Python trusts by default: to load it takes some 0.1 s."""
    return ssl.create_default_context()


def _parts(url: str) -> tuple[str, int, bool]:
    """Host, port, and whether it is TLS. Other processes name URLs, too, and may name anything: raises `DialError`."""
    try:
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        return parts.hostname or "", parts.port or (443 if tls else 80), tls
    except ValueError:
        raise _no_address(url) from None


def _no_address(url: str) -> DialError:
    return DialError(f"{url!r} is no address that can be dialled")


class _Handshake(asyncio.Protocol):
    """The HTTP before the frames."""

    def __init__(self, url: str, path: str, protocol: Callable[[], asyncio.Protocol], credentials: Credentials) -> None:
        self._url, self._path, self._protocol, self._credentials = url, path, protocol, credentials
        self._transport: asyncio.Transport | None = None
        self._reply = bytearray()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def let_go(self) -> None:
        """It was handed over, and whoever dialled knows that."""
        self._transport = None

    def give_up(self) -> None:
        """Unless it was let go, end the connection."""
        if self._transport is not None:
            self._transport.abort()
        if not self.done.cancel() and not self.done.cancelled():
            self.done.exception()  # nobody asks any more; asyncio would complain of that

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        lines = [
            f"GET {self._path} HTTP/1.1",
            f"host: {urlsplit(self._url).netloc}",
            "connection: upgrade",
            f"upgrade: {UPGRADE}",
        ]
        head = "\r\n".join(lines).encode() + b"\r\n"
        if self._credentials.authorization:
            head += b"authorization: " + self._credentials.authorization + b"\r\n"
        transport.write(head + b"\r\n")

    def data_received(self, data: bytes) -> None:
        self._reply += data
        head, found, rest = bytes(self._reply).partition(b"\r\n\r\n")
        if not found:
            if not b"HTTP/1.1 ".startswith(head[:9]):
                hint = "it speaks TLS: use https://" if head[:1] == b"\x15" else "it does not speak HTTP"
                self._fail(f"what listens at {self._url} is no server of ours: {hint}")
            elif len(head) > _MAX_HEAD_BYTES:
                self._fail(f"what listens at {self._url} is no server of ours: its reply has no end")
            return
        if head[9:12] == b"101":
            self._hand_over(rest)
        elif len(rest) >= min(_length(head), _MAX_BODY_BYTES):
            self._fail(self._refusal(head, rest))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        reply = bytes(self._reply)
        head, found, rest = reply.partition(b"\r\n\r\n")
        if found:
            self._fail(self._refusal(head, rest))
        elif self._url.startswith("https:"):
            ours = "does it trust the certificate that we show, server.tls_certificate, and is that still valid?"
            self._fail(f"{self._url} closed the connection without an answer ({ours})")
        else:
            self._fail(f"{self._url} closed the connection without an answer (is it https:// there?)")

    def _hand_over(self, rest: bytes) -> None:
        if self._transport is None or self.done.done():
            return
        protocol = self._protocol()
        self._transport.set_protocol(protocol)
        self.done.set_result(None)
        protocol.connection_made(self._transport)
        if rest:
            protocol.data_received(rest)

    def _fail(self, problem: str) -> None:
        if not self.done.done():
            self.done.set_exception(DialError(problem))

    def _refusal(self, head: bytes, body: bytes) -> str:
        status = head[9:12].decode("latin-1")
        try:
            said = msgspec.json.decode(body, type=ErrorEnvelope).error.message
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return f"what listens at {self._url} is no server of ours: it answers with status {status}"
        if status == "401":
            return f"{self._url} does not accept our cluster.token: it has to be the same everywhere"
        if status == "404":
            return f"the server at {self._url} has no role for this: {_WANTED[self._path]} is to be dialled"
        return f"{self._url} refuses: {said}"


_WANTED: Final = MappingProxyType(
    {CALL: "a process with workers", NODE: "a controller or an API", WATCH: "a controller"}
)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    return 0
