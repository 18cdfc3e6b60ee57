"""Who may use FastChat's routes: its processes, which have no keys and are known by their addresses alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from fastchat_serve.errors import Forbidden
from fastchat_serve.fastchat.addresses import Networks
from fastchat_serve.routes.door import Door, Guard
from fastchat_serve.routes.exchange import Header

__all__ = ["Peers"]

_PASSED_ON: Final = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via", b"origin"})
"""Headers of requests that somebody else made: through a proxy, which is a peer only by its own address, or on a page
in a browser."""


class Peers:
    """The processes in `networks`.

    Args:
        networks: Where they are.
        door: Asks everybody else for a key.
    """

    def __init__(self, networks: Networks, door: Door) -> None:
        self._networks, self._door = networks, door

    @property
    def only(self) -> Guard:
        """Lets in peers, and nobody else."""

        async def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
            if not self._is_peer(connection.scope["headers"], connection.scope["client"]):
                raise Forbidden("Only FastChat's processes may do this, from the networks of the config's [fastchat].")

        return guard

    @property
    def or_key(self) -> Guard:
        """Lets in peers, and whoever else has a key if keys are needed."""

        async def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
            headers, client = connection.scope["headers"], connection.scope["client"]
            if not self._is_peer(headers, client):
                self._door.admit(headers, client)

        return guard

    def _is_peer(self, headers: Iterable[Header], client: tuple[str, int] | None) -> bool:
        if client is None or not self._networks.include(client[0]):
            return False
        return not any(name in _PASSED_ON for name, _ in headers)
