"""What every reply to a hostile request has to keep, whatever the request was."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

__all__ = ["Reply", "assert_harmless", "assert_openai_error"]

HEADERS = {
    "allow",
    "cache-control",
    "connection",
    "content-length",
    "content-type",
    "date",
    "retry-after",
    "transfer-encoding",
    "www-authenticate",
    "x-accel-buffering",
    "x-request-id",
}
"""All that a reply may carry: nothing about the software, its address, or what a client tried to put there."""
LEAK = re.compile(
    r"Traceback|File \"|\.py\b|site-packages|/usr/|/home/|/tmp/|/root/|0x[0-9a-f]{6,}|<\w+ object at"
    r"|\b(uvicorn|litestar|msgspec|httptools|starlette)\b",
    re.IGNORECASE,
)
MAX_MESSAGE_CHARS = 1000


class Reply(Struct, frozen=True):
    """One HTTP reply. Header names are in lower case."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str:
        """The value of a header that comes once; empty if it does not."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} comes {len(values)} times"
        return "".join(values)

    @property
    def closes(self) -> bool:
        return self.header("connection") == "close"


def assert_harmless(reply: Reply, sent: bytes, secrets: Sequence[str]) -> None:
    """Nothing in `reply` betrays the server or was smuggled into its head; an error is one in OpenAI's shape."""
    assert reply.status < 500 or reply.status == 503, reply
    assert {name for name, _ in reply.headers} <= HEADERS, reply.headers
    assert all(re.fullmatch(r"[ -~]*", value) for _, value in reply.headers), reply.headers
    assert re.fullmatch(r"[A-Za-z0-9._:/+=-]{1,128}", reply.header("x-request-id")), reply.headers
    shown = repr(reply.headers) + (reply.body.decode() if reply.status >= 400 else "")
    for secret in secrets:
        assert secret not in shown, f"{secret!r} in {shown[:500]}"
    found = LEAK.search(shown)
    assert found is None or found[0].encode() in sent, f"{found and found[0]!r} in {shown[:500]}"
    if reply.status in (429, 503):
        assert int(reply.header("retry-after")) >= 1


def assert_openai_error(reply: Reply) -> dict[str, Any]:
    """Returns what is inside."""
    assert reply.header("content-type") == "application/json", reply
    (key, error), *others = json.loads(reply.body).items()
    assert (key, others) == ("error", [])
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert 0 < len(error["message"]) < MAX_MESSAGE_CHARS
    assert isinstance(error["type"], str)
    assert isinstance(error["param"], str | None)
    assert isinstance(error["code"], str | None)
    return dict(error)
