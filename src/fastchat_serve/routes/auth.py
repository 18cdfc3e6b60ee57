"""API keys, compared in constant time. This is the only place that compares them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import ClassVar

from fastchat_serve.errors import Unauthorized

__all__ = ["Keys", "Token"]

_HASHED = "sha256:"


class Keys:
    """The accepted API keys, kept as SHA-256 only.

    Args:
        entries: Keys in plain, or as ``sha256:`` and 64 hexadecimal digits.
    """

    MISSING: ClassVar = "Send your API key in the header 'Authorization: Bearer KEY'."
    UNKNOWN: ClassVar = "This API key is not known here."

    def __init__(self, entries: Iterable[str]) -> None:
        digests = [
            bytes.fromhex(entry.removeprefix(_HASHED)) if entry.startswith(_HASHED) else _digest(entry.encode())
            for entry in entries
        ]
        self._tenants = {digest: f"key:{_digest(digest)[:8].hex()}" for digest in digests}

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def tenant(self, key: bytes) -> str | None:
        """The mark of whoever has `key`, which says nothing about it; None if it is not known here.

        It is compared with every key, whichever matches, so that time tells nothing.
        """
        digest = _digest(key)
        matches = [tenant for known, tenant in self._tenants.items() if hmac.compare_digest(digest, known)]
        return matches[0] if matches else None

    def require(self, authorization: bytes) -> str:
        """The mark of whoever sent this ``Authorization`` header. Raises `Unauthorized`."""
        key = _bearer(authorization)
        if not key:
            raise Unauthorized(self.MISSING)
        known = self.tenant(key)
        if known is None:
            raise Unauthorized(self.UNKNOWN)
        return known

    def holder(self, authorization: bytes) -> str | None:
        """The same; None if it is nobody known here."""
        return self.tenant(_bearer(authorization))


class Token(Keys):
    """The cluster's, in place of keys."""

    MISSING = "Send the cluster's token in the header 'Authorization: Bearer TOKEN'."
    UNKNOWN = "This is not the cluster's token."


def _bearer(authorization: bytes) -> bytes:
    """The key in an ``Authorization`` header; empty if there is none."""
    scheme, _, key = authorization.partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
