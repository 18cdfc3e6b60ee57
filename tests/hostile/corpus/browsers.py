"""S18, S19: what a foreign page can make a browser send, and what only a proxy should say."""

from __future__ import annotations

from tests.hostile.case import CHAT, Case, get, post

__all__ = ["CASES"]

GOOD = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}
JSON = b"content-type: application/json\r\n"

HOSTS = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "evil.example.localhost",
    "127.0.0.1.nip.io",
    "localhost.",
    "localhost..",
    "xlocalhost",
    "0.0.0.0",
    "127.0.0.2",
    "127.1",
    "2130706433",
    "0x7f000001",
    "[::2]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[0:0:0:0:0:0:0:1]",
    "[::1",
    "::1",
    "localhost@evil.example",
    "evil.example@localhost",
    "localhost,evil.example",
    "evil.example, localhost",
    "localhost/evil",
    "localhost?x",
    "localhost#x",
    "localhost\\evil",
    "localhost evil",
    "*",
    ".",
    ":",
    ":8000",
    "user:pass@localhost",
    "http://localhost",
    "lоcalhost",
    "ⅼocalhost",
    "x" * 10_000,
]
"""None of our names."""

ORIGINS = ["https://evil.example", "null", "http://localhost:3000", "http://127.0.0.1", "file://", "*", "x" * 10_000]

FORWARDED = {
    "X-Forwarded-For": "1.2.3.4, 127.0.0.1",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Port": "443",
    "X-Forwarded-Prefix": "/v1",
    "X-Real-IP": "127.0.0.1",
    "X-Client-IP": "127.0.0.1",
    "True-Client-IP": "127.0.0.1",
    "CF-Connecting-IP": "127.0.0.1",
    "Forwarded": "for=127.0.0.1;host=evil.example;proto=https",
    "X-Original-Host": "evil.example",
    "X-Host": "evil.example",
    "X-Remote-User": "admin",
    "X-Authenticated-User": "admin",
    "X-API-Key": "x",
    "X-Internal": "1",
    "Via": "1.1 localhost",
    "Max-Forwards": "0",
    "Proxy-Authorization": "Basic eDp5",
    "Proxy": "http://evil.example",
}


def host(name: str, path: str = "/v1/models") -> bytes:
    """A request that takes us for `name`."""
    return get(path).replace(b"host: localhost", b"host: " + name.encode(), 1)


CASES = {
    **{f"host {name[:40]}": Case((400, 403), host(name), before_keys=True) for name in HOSTS},
    **{
        f"host {name[:40]}, for health": Case((400, 403), host(name, "/health"), before_keys=True) for name in HOSTS[:4]
    },
    "an empty host": Case((400, 403), host(""), before_keys=True),
    "a foreign host and ours forwarded": Case(
        403, host("evil.example\r\nx-forwarded-host: localhost\r\nforwarded: host=localhost"), before_keys=True
    ),
    "a foreign host for a chat": Case(
        403, post(CHAT, GOOD).replace(b"host: localhost", b"host: evil.example", 1), before_keys=True
    ),
    **{f"from {origin[:40]}": Case(200, get("/v1/models", f"origin: {origin}\r\n".encode())) for origin in ORIGINS},
    **{
        f"a chat from {origin[:40]}": Case(200, post(CHAT, GOOD, JSON + f"origin: {origin}\r\n".encode()))
        for origin in ORIGINS
    },
    **{
        f"{origin[:40]} asks first": Case(
            (401, 405),
            get(CHAT, f"origin: {origin}\r\naccess-control-request-method: POST\r\n".encode(), "OPTIONS"),
            before_keys=True,
        )
        for origin in ORIGINS
    },
    **{
        f"a form posted from elsewhere as {kind}": Case(
            415, post(CHAT, GOOD, f"content-type: {kind}\r\norigin: null\r\n".encode())
        )
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x")
    },
    **{
        f"{name}: {value}": Case(200, get("/v1/models", f"{name}: {value}\r\n".encode()))
        for name, value in FORWARDED.items()
    },
    "everything forwarded": Case(
        200, get("/v1/models", "".join(f"{k}: {v}\r\n" for k, v in FORWARDED.items()).encode())
    ),
}
