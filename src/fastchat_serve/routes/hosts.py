"""Only answer to the names this server goes by.

A page of a foreign site can point its own host name at 127.0.0.1 and then talk to a local server as to
its own (DNS rebinding). The browser still sends the foreign name in ``Host``, so that is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from fastchat_serve.errors import Forbidden

__all__ = ["Hosts"]

_HOST = re.compile(rb"(?:\[([0-9A-Fa-f:.]++)\]|([^:\[\]]++))(?::[0-9]{0,5})?")


class Hosts:
    """The names. They are compared exactly, ports are not; forwarded hosts are not looked at."""

    def __init__(self, names: Iterable[str]) -> None:
        known = frozenset(name.lower().encode() for name in names)
        self._is_ours = lru_cache(maxsize=64)(lambda host: _name(host) in known)

    def require(self, host: bytes) -> None:
        """Raises `Forbidden` if the header `host` has none of the names."""
        if not self._is_ours(host):
            raise Forbidden("This server does not go by that host name. The config's allowed_hosts says which it does.")


def _name(host: bytes) -> bytes:
    """A Host header without its port; an IPv6 address without its brackets. Empty if it is no such thing."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found is not None else b""
