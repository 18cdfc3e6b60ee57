"""One hostile request: what goes on the wire, and what must come back.

A corpus is a dictionary of names and cases; names say what is hostile about them. Requests carry the
key, so that what they attack lies behind the door; the runner also sends each without it.
"""

from __future__ import annotations

import json
from typing import Any

from msgspec import Struct

__all__ = [
    "CANARY",
    "CHAT",
    "COMPLETIONS",
    "EMBEDDINGS",
    "KEY",
    "PROMPT",
    "SILENCE",
    "Case",
    "chat",
    "complete",
    "embed",
    "get",
    "post",
    "request",
]

KEY = "sk-hostile-7c1f4e9a2b"
"""The key of the server under attack; it must show up nowhere."""
PROMPT = "a secret between us 8d25"
"""What every good prompt here says; it must show up in answers only, never in an error or a log."""
AUTHORIZATION = f"authorization: Bearer {KEY}\r\n".encode()
CANARY = "127.0.0.1:@PORT"
"""Stands for the address of a socket that nobody may connect to; as long as what replaces it."""
SILENCE = 0
"""The status of a request that is never complete: there is nothing to answer yet."""

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


class Case(Struct, frozen=True):
    """Attributes:
    status: What must come back: one status, or several that are all right.
    sends: All bytes, beginning with a request line.
    param: What the error must name; None: anything.
    before_keys: What is wrong is refused before anybody looks for a key.
    replies: How many requests these bytes are.
    """

    status: int | tuple[int, ...]
    sends: bytes
    param: str | None = None
    before_keys: bool = False
    replies: int = 1

    @property
    def statuses(self) -> tuple[int, ...]:
        return self.status if isinstance(self.status, tuple) else (self.status,)

    def without_key(self) -> bytes:
        """The same from somebody who has no key."""
        return self.sends.replace(AUTHORIZATION, b"")


def request(method: str, target: str | bytes, headers: bytes = b"", body: bytes = b"") -> bytes:
    """A request with the key. `headers`: whole lines, with their ends."""
    target = target.encode() if isinstance(target, str) else target
    return b"%s %s HTTP/1.1\r\nhost: localhost\r\n%s%s\r\n%s" % (method.encode(), target, AUTHORIZATION, headers, body)


def get(target: str | bytes, headers: bytes = b"", method: str = "GET") -> bytes:
    return request(method, target, headers)


def post(target: str, body: bytes | dict[str, Any], headers: bytes = b"content-type: application/json\r\n") -> bytes:
    """A body with its length."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request("POST", target, headers + b"content-length: %d\r\n" % len(data), data)


def chat(**fields: Any) -> bytes:
    """A good chat request but for `fields`."""
    return post(CHAT, {"model": "echo", "messages": [{"role": "user", "content": PROMPT}]} | fields)


def complete(**fields: Any) -> bytes:
    """A good completion request but for `fields`."""
    return post(COMPLETIONS, {"model": "echo", "prompt": PROMPT} | fields)


def embed(**fields: Any) -> bytes:
    """A good embedding request but for `fields`."""
    return post(EMBEDDINGS, {"model": "echo", "input": PROMPT} | fields)
