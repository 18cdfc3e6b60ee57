"""S12: heads without measure."""

from __future__ import annotations

from tests.hostile.case import CHAT, Case, get, post, request

__all__ = ["CASES"]

GOOD = b'{"model": "echo", "messages": [{"role": "user", "content": "x"}]}'
LONG = {
    "a value of 64 KiB": get("/health", b"x: " + b"y" * 65536 + b"\r\n"),
    "a value of 4 MB": get("/health", b"x: " + b"y" * 4_000_000 + b"\r\n"),
    "a name of 100 KB": get("/health", b"x" * 100_000 + b": y\r\n"),
    "129 headers": get("/health", b"a: b\r\n" * 129),
    "20 000 headers": get("/health", b"a: b\r\n" * 20_000),
    "20 000 different headers": get("/health", b"".join(b"x-%d: b\r\n" % i for i in range(20_000))),
    "20 000 empty headers": get("/health", b"a:\r\n" * 20_000),
    "20 000 lengths": get("/health", b"content-length: 0\r\n" * 20_000),
    "20 000 keys": get("/v1/models", b"authorization: Bearer x\r\n" * 20_000),
    "a cookie of 100 KB": get("/health", b"cookie: " + b"a=b; " * 20_000 + b"\r\n"),
    "100 000 hops": get("/health", b"x-forwarded-for: " + b"127.0.0.1, " * 10_000 + b"\r\n"),
    "a key of 100 KB": get("/v1/models", b"authorization: Bearer " + b"k" * 100_000 + b"\r\n"),
    "a path of 64 KiB": get("/" + "x" * 65536),
    "a path of 4 MB": get("/" + "x" * 4_000_000),
    "a path of 100 000 segments": get("/x" * 100_000),
    "a query of 64 KiB": get("/health?" + "x" * 65536),
    "a query of 50 000 fields": get("/health?" + "a=1&" * 50_000),
    "a path of 30 000 escapes": get("/" + "%41" * 30_000),
    "a method of 100 KB": request("X" * 100_000, "/health"),
    "one long head on another route": post(
        CHAT, GOOD, b"content-type: application/json\r\nx: %s\r\n" % (b"y" * 70_000)
    ),
    "129 headers on another route": post(CHAT, GOOD, b"content-type: application/json\r\n" + b"a: b\r\n" * 129),
}

CASES = {
    **{name: Case(400, sends, before_keys=True) for name, sends in LONG.items()},
    "a head of 60 KiB": Case(200, get("/v1/models", b"x: " + b"y" * 61440 + b"\r\n")),
    "120 headers": Case(200, get("/v1/models", b"a: b\r\n" * 120)),
    "a path of 60 000 characters": Case(404, get("/" + "x" * 60_000), before_keys=True),
    "a path of 20 000 segments": Case(404, get("/x" * 20_000), before_keys=True),
    "a model of 60 000 characters": Case(404, get("/v1/models/" + "x" * 60_000)),
    "a model of 15 000 escapes": Case(404, get("/v1/models/" + "%41" * 15_000)),
    "a query of 60 000 characters": Case(200, get("/v1/models?" + "x" * 60_000)),
    "a query of 10 000 fields": Case(200, get("/v1/models?" + "a=1&" * 10_000)),
    "a query of brackets": Case(200, get("/v1/models?" + "a[b][c]=1&" * 1000)),
    "a cookie of 50 000 characters": Case(200, get("/v1/models", b"cookie: " + b"a=b; " * 10_000 + b"\r\n")),
    "a cookie that is none": Case(200, get("/v1/models", b'cookie: =;;;="\\\xff; a\r\n')),
    "a language of 10 000 parts": Case(200, get("/v1/models", b"accept-language: " + b"a;q=0.1," * 5_000 + b"\r\n")),
    "a date that is none": Case(200, get("/v1/models", b"if-modified-since: yesterday\r\nif-none-match: *\r\n")),
}
