"""S11, S22, F36: bodies that are something else, or compressed."""

from __future__ import annotations

import gzip
import zlib

from tests.hostile.case import CHAT, COMPLETIONS, EMBEDDINGS, Case, get, post, request

__all__ = ["CASES"]

JSON = b"content-type: application/json\r\n"
GOOD = b'{"model": "echo", "messages": [{"role": "user", "content": "x"}]}'
BOMB = gzip.compress(b"\0" * 100_000_000, 9)
"""100 MB in 100 KB."""

TYPES = [
    "text/plain",
    "text/json",
    "text/html",
    "text/event-stream",
    "application/octet-stream",
    "application/x-www-form-urlencoded",
    "application/x-msgpack",
    "application/x-pickle",
    "application/xml",
    "application/jsonp",
    "application/json5",
    "application/json-patch",
    "multipart/form-data",
    "multipart/form-data; boundary=x",
    "multipart/form-data; boundary=" + "-" * 10_000,
    'multipart/form-data; boundary="x\\""',
    "multipart/mixed; boundary=x",
    "image/png",
    "json",
    "/",
    ";",
    "*/*",
    "application/*",
    "; application/json",
    "text/plain, application/json",
    "text/plain; application/json",
    "application/json\xff",
    "application/" + "x+" * 5_000 + "y",
    "application/" + "a" * 20_000,
    "application/x-www-form-urlencoded; " + "\\" * 10_000 + '"',
]
PARTS = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 10_000 + b"--x--\r\n"

ENCODINGS = {
    "gzip": gzip.compress(GOOD),
    "x-gzip": gzip.compress(GOOD),
    "deflate": zlib.compress(GOOD),
    "br": b"\x0b\x02\x80" + GOOD,
    "zstd": b"\x28\xb5\x2f\xfd" + GOOD,
    "compress": b"\x1f\x9d" + GOOD,
    "gzip, gzip": gzip.compress(gzip.compress(GOOD)),
    "identity, gzip": gzip.compress(GOOD),
    "GZIP": gzip.compress(GOOD),
    "unknown": GOOD,
    "*": GOOD,
    ",": GOOD,
    "gzip;q=1": GOOD,
}


def encoded(encoding: str, body: bytes) -> bytes:
    return post(CHAT, body, JSON + f"content-encoding: {encoding}\r\n".encode())


CASES = {
    **{
        f"a type of {kind[:40]!r}": Case(415, post(CHAT, GOOD, f"content-type: {kind}\r\n".encode("latin-1")))
        for kind in TYPES
    },
    "no type": Case(415, post(CHAT, GOOD, b"")),
    "an empty type": Case(415, post(CHAT, GOOD, b"content-type:\r\n")),
    "two types, neither JSON": Case(415, post(CHAT, GOOD, b"content-type: text/plain\r\ncontent-type: text/html\r\n")),
    "two types, one JSON": Case((200, 415), post(CHAT, GOOD, b"content-type: text/plain\r\n" + JSON)),
    "10 000 parts": Case(415, post(CHAT, PARTS, b"content-type: multipart/form-data; boundary=x\r\n")),
    "10 000 parts for a completion": Case(
        415, post(COMPLETIONS, PARTS, b"content-type: multipart/form-data; boundary=x\r\n")
    ),
    "10 000 parts for an embedding": Case(
        415, post(EMBEDDINGS, PARTS, b"content-type: multipart/form-data; boundary=x\r\n")
    ),
    "10 000 parts for a list": Case(
        405, post("/v1/models", PARTS, b"content-type: multipart/form-data; boundary=x\r\n"), before_keys=True
    ),
    "a part without end": Case(
        415, post(CHAT, b"--x\r\n" + b"A" * 500_000, b"content-type: multipart/form-data; boundary=x\r\n")
    ),
    "JSON by another name": Case(200, post(CHAT, GOOD, b"content-type: application/vnd.api+json\r\n")),
    "JSON in another alphabet, it says": Case(
        200, post(CHAT, GOOD, b"content-type: application/json; charset=utf-7\r\n")
    ),
    **{f"{name} as encoding": Case(415, encoded(name, body)) for name, body in ENCODINGS.items()},
    "a bomb": Case(415, encoded("gzip", BOMB)),
    "a bomb in a bomb": Case(415, encoded("gzip, gzip", gzip.compress(BOMB))),
    "a bomb that does not say so": Case(400, post(CHAT, BOMB)),
    "a bomb as transfer coding": Case(
        400,
        request(
            "POST", CHAT, JSON + b"transfer-encoding: gzip, chunked\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (len(BOMB), BOMB)
        ),
        before_keys=True,
    ),
    "encoded twice over": Case(
        415, post(CHAT, GOOD, JSON + b"content-encoding: gzip\r\ncontent-encoding: identity\r\n")
    ),
    "encoded twice over, the other way": Case(
        415, post(CHAT, GOOD, JSON + b"content-encoding: identity\r\ncontent-encoding: gzip\r\n")
    ),
    "identity as encoding": Case(200, encoded("identity", GOOD)),
    "a wish for a compressed answer": Case(200, get("/v1/models", b"accept-encoding: gzip, br\r\n")),
    "a wish for another type": Case((200, 406), get("/v1/models", b"accept: application/x-pickle\r\n")),
    "a wish for a part": Case(200, get("/v1/models", b"range: bytes=0-1,0-1,0-1\r\nif-range: x\r\n")),
    "a body too long, and said so": Case(413, request("POST", CHAT, JSON + b"content-length: 33554433\r\n")),
    "a body of a petabyte": Case(413, request("POST", CHAT, JSON + b"content-length: 1125899906842624\r\n")),
    "a body too long, in chunks": Case(
        413,
        request("POST", CHAT, JSON + b"transfer-encoding: chunked\r\n", b"100000\r\n%s\r\n" % (b" " * 2**20) * 33),
    ),
    "a body for a list": Case(200, request("GET", "/v1/models", JSON + b"content-length: 65\r\n", GOOD)),
    "a body for health": Case(200, request("GET", "/health", JSON + b"content-length: 65\r\n", GOOD), before_keys=True),
    "a body that never comes, for a list": Case(
        (200, 413), request("GET", "/v1/models", b"content-length: 100000000\r\n")
    ),
    "a body that is waited for": Case(
        200, request("POST", CHAT, JSON + b"expect: 100-continue\r\ncontent-length: 65\r\n", GOOD)
    ),
    "a wish that cannot be granted": Case(
        (200, 400, 417), request("POST", CHAT, JSON + b"expect: money\r\ncontent-length: 65\r\n", GOOD)
    ),
}
