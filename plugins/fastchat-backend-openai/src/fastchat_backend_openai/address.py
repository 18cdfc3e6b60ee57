"""Where the upstream is: what a base URL says."""

from __future__ import annotations

from urllib.parse import urlsplit

from msgspec import Struct

__all__ = ["Address"]


class Address(Struct, frozen=True):
    """Host and port, and the path below which the API is."""

    host: str
    port: int
    secure: bool
    path: str

    @classmethod
    def of(cls, url: str) -> Address:
        """Raises `ValueError` for a port that is none, or a host that is not there."""
        parts = urlsplit(url)
        if not parts.hostname:
            raise ValueError("there is no host in it")
        secure = parts.scheme == "https"
        port = parts.port if parts.port is not None else 443 if secure else 80
        return cls(parts.hostname, port, secure, parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        """As the ``Host`` header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    @property
    def root(self) -> str:
        """The path of the server that has the API below ``/v1``."""
        return self.path.removesuffix("/v1")
