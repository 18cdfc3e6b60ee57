"""Which addresses that a process registers may be dialled: a controller that dials any is a way into its network.

A name is resolved once, here, and what it resolved to is dialled from then on: it cannot come to mean another host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

import anyio
from msgspec import Struct

from fastchat_serve.errors import Forbidden, InvalidRequest

__all__ = ["Dial", "Networks", "permitted", "resolved"]

RESOLVE_S: Final = 5.0
_URL = re.compile(r"https?://[^\s/?#@\\]{1,260}/?")
_PORTS: Final = MappingProxyType({"http": 80, "https": 443})

Ip = IPv4Address | IPv6Address


class Dial(Struct, frozen=True):
    """How to reach a process: as it is called, and where its name led to."""

    url: str
    """Without a slash at its end."""
    host: str
    """Name or address, as in the URL."""
    places: tuple[str, ...]
    """URLs with an address in place of the name, the likeliest first."""


class Networks:
    """Where FastChat's processes are. Of the form "10.0.0.0/8"."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ip_network(network) for network in networks]

    def include(self, address: str) -> bool:
        ip = _ip(address)
        return ip is not None and any(ip in network for network in self._networks)


async def permitted(url: str, registered_by: str, networks: Networks) -> Dial:
    """How to reach the worker that the process at the address `registered_by` calls `url`.

    That process's own address is permitted, and those in `networks`; but this machine's own to itself only.

    Raises:
        InvalidRequest: `url` is no address of a worker.
        Forbidden: It is of another host.
    """
    dial = await resolved(url)
    allowed = tuple(place for place in dial.places if _is_allowed(urlsplit(place).hostname, registered_by, networks))
    if not allowed:
        raise Forbidden(
            "The worker's address is neither that of the process that registers it nor in the networks of the config's "
            "[fastchat]. Start the worker with --worker-address and the address at which this host reaches it."
        )
    return Dial(dial.url, dial.host, allowed)


async def resolved(url: str) -> Dial:
    """How to reach `url`, wherever that is. Raises `InvalidRequest` if it is no address, or no name that is known."""
    try:
        parts = urlsplit(url)
        port = _PORTS.get(parts.scheme, 0) if parts.port is None else parts.port
    except ValueError:
        port = 0
    if not _URL.fullmatch(url) or not port or not parts.hostname:
        raise InvalidRequest("A worker's address has the form http://host:port.", param="worker_name")
    try:
        with anyio.fail_after(RESOLVE_S):
            found = await anyio.getaddrinfo(parts.hostname, port)
    except (OSError, TimeoutError, UnicodeError):
        raise InvalidRequest(
            "The worker's address has a host name that is not known here.", param="worker_name"
        ) from None
    # FastChat listens at one address of a name that has several, most often at that of IPv4.
    hosts = sorted({str(sockaddr[0]) for *_, sockaddr in found}, key=lambda host: ":" in host)
    places = tuple(f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}" for host in hosts)
    return Dial(url.rstrip("/"), parts.hostname, places)


def _is_allowed(host: str | None, registered_by: str, networks: Networks) -> bool:
    ip, peer = _ip(host or ""), _ip(registered_by)
    if ip is None or peer is None:
        return False
    if ip.is_loopback or ip.is_unspecified:
        return ip.is_loopback and peer.is_loopback
    return ip == peer or networks.include(str(ip))


def _ip(address: str) -> Ip | None:
    try:
        ip = ip_address(address)
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return mapped or ip
