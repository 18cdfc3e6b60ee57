"""Making connections: TCP, TLS, or through an HTTP proxy."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fastchat_backend_openai.address import Address
from fastchat_backend_openai.connection import Connection, unreachable
from fastchat_serve import EngineError, StartupError

__all__ = ["Connector", "trusted"]

logger = logging.getLogger(__name__)

_MAX_TUNNEL_REPLY_BYTES = 16 * 1024


def trusted(ca_file: Path | None) -> ssl.SSLContext:
    """What certificates are checked with. Reads files, so not for the loop's thread.

    Raises:
        StartupError: `ca_file` cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise StartupError(f"ca_file {ca_file} cannot be used: {error}") from error
    context.set_alpn_protocols(["http/1.1"])
    return context


class Connector:
    """Opens connections to one address.

    Args:
        tls: Needed for an address with https.
        proxy: To go through; asked for a tunnel where TLS is spoken.
    """

    def __init__(
        self, address: Address, *, tls: ssl.SSLContext | None, proxy: Address | None, timeout_s: float
    ) -> None:
        self._address, self._tls, self._proxy, self._timeout_s = address, tls, proxy, timeout_s

    async def __call__(self, make: Callable[[], Connection]) -> Connection:
        """A connection of `make`, open.

        Raises:
            Unavailable: The upstream cannot be reached.
            EngineError: It can, and it is not to be trusted, or the proxy refuses.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._open(make)
        except TimeoutError:
            logger.warning("No connection to %s within %g s.", self._address.authority, self._timeout_s)
            raise unreachable("did not accept a connection in time") from None
        except ssl.SSLError as error:  # a certificate that is not trusted, or no TLS at all
            logger.error("TLS with %s failed: %s", self._address.authority, error)  # noqa: TRY400 - no bug of ours
            raise EngineError("A secure connection to the upstream could not be made.") from None
        except (OSError, UnicodeError) as error:  # refused, no route, no such name, a name that is none
            logger.warning("%s cannot be reached: %s", self._address.authority, error)
            raise unreachable("cannot be reached") from None

    async def _open(self, make: Callable[[], Connection]) -> Connection:
        loop, target = asyncio.get_running_loop(), self._address
        near = self._proxy or target
        if self._proxy is None or not target.secure:
            _, connection = await loop.create_connection(make, near.host, near.port, ssl=self._tls)
            return connection
        assert self._tls is not None
        transport, tunnel = await loop.create_connection(_Tunnel, near.host, near.port)
        try:
            await tunnel.through_to(target)
            connection = make()
            secure = await loop.start_tls(transport, connection, self._tls, server_hostname=target.host)
        except BaseException:
            transport.abort()
            raise
        if secure is None:
            raise ConnectionResetError("closed during the TLS handshake")
        connection.connection_made(secure)
        return connection


class _Tunnel(asyncio.Protocol):
    """A connection to a proxy, until it leads further."""

    def __init__(self) -> None:
        self._reply = bytearray()
        self._answered = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # a stream's

    async def through_to(self, target: Address) -> None:
        """Ask for a tunnel. Raises `EngineError` if the proxy will not."""
        place = f"{target.authority.removesuffix(f':{target.port}')}:{target.port}"
        self._transport.write(f"CONNECT {place} HTTP/1.1\r\nhost: {place}\r\n\r\n".encode())
        status: bytes = await self._answered
        if status.split(b" ", 2)[1:2] != [b"200"]:
            logger.error("The proxy refuses a tunnel: %r", status[:100])
            raise EngineError("The proxy before the upstream refused to connect.")

    def data_received(self, data: bytes) -> None:
        self._reply += data
        head, end, _ = self._reply.partition(b"\r\n\r\n")
        if (end or len(self._reply) > _MAX_TUNNEL_REPLY_BYTES) and not self._answered.done():
            self._answered.set_result(bytes(head.partition(b"\r\n")[0]))

    def connection_lost(self, error: Exception | None) -> None:
        with suppress(asyncio.InvalidStateError):
            self._answered.set_exception(ConnectionResetError("the proxy closed the connection"))
