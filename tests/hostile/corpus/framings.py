"""S13, F37: where a request ends, said in every way that two servers have read differently.

What is not plain HTTP/1.1 is refused, and the connection with it: whatever stands behind it, `SMUGGLED`, is
never taken for a request.
"""

from __future__ import annotations

from tests.hostile.case import AUTHORIZATION, CHAT, COMPLETIONS, SILENCE, Case

__all__ = ["CASES"]

GOOD = b'{"model": "echo", "messages": [{"role": "user", "content": "x"}]}'
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-request-id: smuggled\r\n" + AUTHORIZATION + b"\r\n"
LINE = (
    b"POST %s HTTP/1.1\r\nhost: localhost\r\n" % CHAT.encode() + AUTHORIZATION + b"content-type: application/json\r\n"
)
LENGTH = b"content-length: %d\r\n" % len(GOOD)
CHUNKED = b"transfer-encoding: chunked\r\n"
CHUNK = b"%x\r\n%s\r\n" % (len(GOOD), GOOD)
END = b"0\r\n\r\n"


def framed(headers: bytes, body: bytes) -> bytes:
    """A chat request that is framed like this."""
    return LINE + headers + b"\r\n" + body


def chunks(body: bytes) -> bytes:
    """One whose body is chunked."""
    return framed(CHUNKED, body)


def line(first: bytes, headers: bytes = b"host: localhost\r\n") -> bytes:
    """A request with another first line."""
    return first + b"\r\n" + headers + AUTHORIZATION + b"\r\n"


LENGTHS = {
    "two lengths": framed(LENGTH + b"content-length: 1\r\n", GOOD),
    "the same length twice": framed(LENGTH * 2, GOOD),
    "two lengths in one": framed(b"content-length: 65, 65\r\n", GOOD),
    "two different lengths in one": framed(b"content-length: 65, 1\r\n", GOOD),
    "a length below 0": framed(b"content-length: -1\r\n", GOOD),
    "a length with plus": framed(b"content-length: +65\r\n", GOOD),
    "a hexadecimal length": framed(b"content-length: 0x41\r\n", GOOD),
    "a length with a dot": framed(b"content-length: 65.0\r\n", GOOD),
    "a length with underscore": framed(b"content-length: 6_5\r\n", GOOD),
    "a length in words": framed(b"content-length: many\r\n", GOOD),
    "an empty length": framed(b"content-length:\r\n", GOOD),
    "a length of two numbers": framed(b"content-length: 6 5\r\n", GOOD),
    "a length with a vertical tab": framed(b"content-length: \x0b65\r\n", GOOD),
    "a length in Arabic digits": framed("content-length: ٦٥\r\n".encode(), GOOD),
    "a length of 30 digits": framed(b"content-length: " + b"9" * 30 + b"\r\n", GOOD),
    "a length of 2⁶⁴": framed(b"content-length: 18446744073709551616\r\n", GOOD),
    "a length with semicolon": framed(b"content-length: 65;x\r\n", GOOD),
    "a length and a space before the colon": framed(b"content-length : 65\r\n", GOOD),
    "a length on the next line": framed(b"content-length:\r\n 65\r\n", GOOD),
}

CODINGS = {
    "length and chunks": framed(LENGTH + CHUNKED, CHUNK + END),
    "chunks and length": framed(CHUNKED + LENGTH, CHUNK + END),
    "length 0 and chunks": framed(b"content-length: 0\r\n" + CHUNKED, CHUNK + END),
    "chunks and length 0": framed(CHUNKED + b"content-length: 0\r\n", CHUNK + END),
    "chunked twice": framed(CHUNKED * 2, CHUNK + END),
    "chunked, chunked": framed(b"transfer-encoding: chunked, chunked\r\n", CHUNK + END),
    "chunked, identity": framed(b"transfer-encoding: chunked, identity\r\n", CHUNK + END),
    "chunked, then identity": framed(CHUNKED + b"transfer-encoding: identity\r\n", CHUNK + END),
    "identity": framed(b"transfer-encoding: identity\r\n", GOOD),
    "identity and length": framed(b"transfer-encoding: identity\r\n" + LENGTH, GOOD),
    "identity, chunked": framed(b"transfer-encoding: identity, chunked\r\n", CHUNK + END),
    "gzip": framed(b"transfer-encoding: gzip\r\n", GOOD),
    "gzip, chunked": framed(b"transfer-encoding: gzip, chunked\r\n", CHUNK + END),
    "chunked, gzip": framed(b"transfer-encoding: chunked, gzip\r\n", CHUNK + END),
    "xchunked": framed(b"transfer-encoding: xchunked\r\n", CHUNK + END),
    "chunkedx": framed(b"transfer-encoding: chunkedx\r\n", CHUNK + END),
    "chunked in quotes": framed(b'transfer-encoding: "chunked"\r\n', CHUNK + END),
    "chunked with a parameter": framed(b"transfer-encoding: chunked;q=1\r\n", CHUNK + END),
    "chunked with a vertical tab": framed(b"transfer-encoding:\x0bchunked\r\n", CHUNK + END),
    "chunked with NUL": framed(b"transfer-encoding: chunked\0\r\n", CHUNK + END),
    "chunked and a space before the colon": framed(b"transfer-encoding : chunked\r\n", CHUNK + END),
    "chunked and a space before the name": framed(b" transfer-encoding: chunked\r\n", CHUNK + END),
    "chunked on the next line": framed(b"transfer-encoding:\r\n chunked\r\n", CHUNK + END),
    "chunked in the line of another": framed(b"x: y\ntransfer-encoding: chunked\r\n", CHUNK + END),
    "chunked behind a bare CR": framed(b"x: y\rtransfer-encoding: chunked\r\n", CHUNK + END),
    "an empty coding": framed(b"transfer-encoding:\r\n", CHUNK + END),
    "a comma as coding": framed(b"transfer-encoding: ,\r\n", CHUNK + END),
}

CHUNKS = {
    "a size that is none": chunks(b"xyz\r\n" + GOOD + b"\r\n" + END),
    "no size": chunks(b"\r\n" + GOOD + b"\r\n" + END),
    "a size below 0": chunks(b"-41\r\n" + GOOD + b"\r\n" + END),
    "a size with plus": chunks(b"+41\r\n" + GOOD + b"\r\n" + END),
    "a size with 0x": chunks(b"0x41\r\n" + GOOD + b"\r\n" + END),
    "a size with a space behind": chunks(b"41 \r\n" + GOOD + b"\r\n" + END),
    "a size with a space before": chunks(b" 41\r\n" + GOOD + b"\r\n" + END),
    "a size with underscore": chunks(b"4_1\r\n" + GOOD + b"\r\n" + END),
    "a size of 17 digits": chunks(b"f" * 17 + b"\r\n" + GOOD + b"\r\n" + END),
    "a size of 1 000 digits": chunks(b"1" * 1000 + b"\r\n" + GOOD + b"\r\n" + END),
    "a size that wraps around": chunks(b"10000000000000041\r\n" + GOOD + b"\r\n" + END),
    "a size without CR": chunks(b"41\n" + GOOD + b"\r\n" + END),
    "a size without LF": chunks(b"41\r" + GOOD + b"\r\n" + END),
    "a chunk longer than its size": chunks(b"40\r\n" + GOOD + b"\r\n" + END),
    "a chunk without line end": chunks(b"41\r\n" + GOOD + END),
    "a chunk with LF only": chunks(b"41\r\n" + GOOD + b"\n" + END),
    "a chunk shorter than its size": chunks(b"42\r\n" + GOOD + b"\r\n" + END),
    "an extension with a bare LF": chunks(b"41;a=\nb\r\n" + GOOD + b"\r\n" + END),
    "an extension with NUL": chunks(b"41;\0\r\n" + GOOD + b"\r\n" + END),
    "a last chunk with LF only": chunks(CHUNK + b"0\n\n"),
    "a trailer that is none": chunks(CHUNK + b"0\r\nno trailer\r\n\r\n"),
    "a length as trailer": chunks(CHUNK + b"0\r\ncontent-length: 5\r\n\r\n"),
    "a folded trailer": chunks(CHUNK + b"0\r\na: b\r\n c\r\n\r\n"),
}

HEADS = {
    "a folded header": line(b"GET /v1/models HTTP/1.1", b"host: localhost\r\nx: a\r\n b\r\n"),
    "a folded first header": line(b"GET /v1/models HTTP/1.1\r\n x: y"),
    "a bare LF": line(b"GET /v1/models HTTP/1.1", b"host: localhost\nx: y\r\n"),
    "bare LFs only": b"GET /v1/models HTTP/1.1\nhost: localhost\n\n",
    "a bare CR": line(b"GET /v1/models HTTP/1.1", b"host: localhost\r\nx: a\rb\r\n"),
    "a bare CR at the end": b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\rX",
    "NUL in a value": line(b"GET /v1/models HTTP/1.1", b"host: localhost\r\nx: a\0b\r\n"),
    "NUL in a name": line(b"GET /v1/models HTTP/1.1", b"host: localhost\r\nx\0: b\r\n"),
    "a control character in a value": line(b"GET /v1/models HTTP/1.1", b"host: localhost\r\nx: a\x01b\r\n"),
    "a header without name": line(b"GET /v1/models HTTP/1.1", b"host: localhost\r\n: x\r\n"),
    "a header without colon": line(b"GET /v1/models HTTP/1.1", b"host: localhost\r\nx\r\n"),
    "a space before the colon": line(b"GET /v1/models HTTP/1.1", b"host: localhost\r\nx : y\r\n"),
    "a tab before the colon": line(b"GET /v1/models HTTP/1.1", b"host: localhost\r\nx\t: y\r\n"),
    "a space in a name": line(b"GET /v1/models HTTP/1.1", b"host: localhost\r\nx y: z\r\n"),
    "a bracket in a name": line(b"GET /v1/models HTTP/1.1", b"host: localhost\r\nx(y: z\r\n"),
    "a name of 8 bits": line(b"GET /v1/models HTTP/1.1", b"host: localhost\r\nx\xff: z\r\n"),
    "two hosts": line(b"GET /v1/models HTTP/1.1", b"host: localhost\r\nhost: localhost\r\n"),
    "two different hosts": line(b"GET /v1/models HTTP/1.1", b"host: localhost\r\nhost: evil.example\r\n"),
    "no host": line(b"GET /v1/models HTTP/1.1", b""),
    "no host for a chat": framed(LENGTH, GOOD).replace(b"host: localhost\r\n", b""),
    "no version": b"GET /v1/models\r\n\r\n",
    "no version, but headers": line(b"GET /v1/models"),
    "HTTP/0.9": line(b"GET /v1/models HTTP/0.9"),
    "HTTP/1.2": line(b"GET /v1/models HTTP/1.2"),
    "HTTP/2.0": line(b"GET /v1/models HTTP/2.0"),
    "HTTP/3": line(b"GET /v1/models HTTP/3"),
    "HTTP/1.1.1": line(b"GET /v1/models HTTP/1.1.1"),
    "HTTP/01.1": line(b"GET /v1/models HTTP/01.1"),
    "HTTP/ 1.1": line(b"GET /v1/models HTTP/ 1.1"),
    "http/1.1": line(b"GET /v1/models http/1.1"),
    "HTTPS/1.1": line(b"GET /v1/models HTTPS/1.1"),
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    "TLS": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + b"\0" * 40 + b"\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "Redis": b"*1\r\n$4\r\nPING\r\n",
    "a pickle": b"\x80\x04\x95\x1d\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.\r\n\r\n",
    "NULs": b"\0" * 100,
    "a space first": line(b" GET /v1/models HTTP/1.1"),
    "a tab for a space": line(b"GET\t/v1/models\tHTTP/1.1"),
    "no space": line(b"GET/v1/modelsHTTP/1.1"),
    "a space in the target": line(b"GET /v1/ models HTTP/1.1"),
    "a space behind the version": line(b"GET /v1/models HTTP/1.1 "),
    "an unknown method": line(b"HACK /v1/models HTTP/1.1"),
    "a method in small letters": line(b"get /v1/models HTTP/1.1"),
    "a method with NUL": line(b"GE\0T /v1/models HTTP/1.1"),
    "no method": line(b"/v1/models HTTP/1.1"),
    "no target": line(b"GET  HTTP/1.1"),
    "a target without slash": line(b"GET v1/models HTTP/1.1"),
    "a target of 8 bits": line(b"GET /v1/models\xff HTTP/1.1"),
    "a target with NUL": line(b"GET /v1/models\0 HTTP/1.1"),
    "a target with CR": line(b"GET /v1/models\rx HTTP/1.1"),
    "a target with backslash host": line(b"GET \\\\evil.example\\x HTTP/1.1"),
    "a tunnel": line(b"CONNECT localhost:22 HTTP/1.1"),
    "a tunnel to a path": line(b"CONNECT /v1/models HTTP/1.1"),
    "a tunnel without port": line(b"CONNECT localhost HTTP/1.1"),
    "a tunnel with a body": line(b"CONNECT localhost:22 HTTP/1.1", b"host: localhost\r\n" + LENGTH) + GOOD,
}
"""Refused as no HTTP that we speak."""

OFFER = b"connection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\nupgrade: %s\r\n"
PLAIN_HTTP = {
    "a length with zeros before": framed(b"content-length: 0065\r\n", GOOD),
    "a length with spaces around": framed(b"content-length: \t 65 \t\r\n", GOOD),
    "a length in capitals": framed(LENGTH.upper(), GOOD),
    "chunks": chunks(CHUNK + END),
    "chunked in capitals": framed(b"Transfer-Encoding: Chunked\r\n", CHUNK + END),
    "chunks of a byte": chunks(b"".join(b"1\r\n%c\r\n" % byte for byte in GOOD) + END),
    "a size with zeros before": chunks(b"0" * 40 + b"41\r\n" + GOOD + b"\r\n" + END),
    "an extension": chunks(b"41;a=b;c\r\n" + GOOD + b"\r\n" + END),
    "an extension in quotes": chunks(b'41;a="b"\r\n' + GOOD + b"\r\n" + END),
    "a trailer": chunks(CHUNK + b"0\r\nx-request-id: trailer\r\n\r\n"),
    "a trailer with another host": chunks(CHUNK + b"0\r\nhost: evil.example\r\n\r\n"),
    "an offer of HTTP/2": framed(OFFER % b"h2c" + LENGTH, GOOD),
    "an offer of HTTP/2, in chunks": framed(OFFER % b"h2c" + CHUNKED, CHUNK + END),
    "an offer of WebSocket": framed(OFFER % b"websocket" + b"sec-websocket-key: eA==\r\n" + LENGTH, GOOD),
    "empty lines first": b"\r\n\r\n" + framed(LENGTH, GOOD),
    "HTTP/1.0": framed(LENGTH, GOOD).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    "an announced end": framed(b"connection: close\r\n" + LENGTH, GOOD),
    "connection says nonsense": framed(b"connection: x, ,, \xff\r\n" + LENGTH, GOOD),
    "connection names the length": framed(b"connection: content-length, authorization\r\n" + LENGTH, GOOD),
}

EITHER = {
    "a trailer without end": chunks(CHUNK + b"0\r\na: " + b"b" * 100_000 + b"\r\n\r\n"),
    "20 000 trailers": chunks(CHUNK + b"0\r\n" + b"a: b\r\n" * 20_000 + b"\r\n"),
    "an extension without end": chunks(b"41;" + b"a" * 100_000 + b"\r\n" + GOOD + b"\r\n" + END),
    "10 000 chunks with extensions": chunks((b"1;" + b"x" * 50 + b"\r\n \r\n") * 10_000 + END),
    "RTSP/1.0": line(b"GET /v1/models RTSP/1.0"),
    "ICE/1.0": line(b"SOURCE /v1/models ICE/1.0"),
}
"""Odd, but with one end only: answered or refused, and with no more than a read or two of memory."""

UNFINISHED = {
    "half a request line": b"GET /v1/mod",
    "half a head": b"GET /v1/models HTTP/1.1\r\nhost: loc",
    "a head without its end": b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n",
    "half a line end": b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r",
    "empty lines only": b"\r\n" * 1000,
    "a body that does not come": framed(LENGTH, b""),
    "half a body": framed(LENGTH, GOOD[:30]),
    "a body one byte short": framed(LENGTH, GOOD[:-1]),
    "a length of 20 000": framed(b"content-length: 20000\r\n", GOOD),
    "no chunk": chunks(b""),
    "half a chunk's size": chunks(b"4"),
    "half a chunk": chunks(b"41\r\n" + GOOD[:30]),
    "no last chunk": chunks(CHUNK),
    "half a last chunk": chunks(CHUNK + b"0\r\n"),
    "half a trailer": chunks(CHUNK + b"0\r\na: b"),
    "a chunk of the largest size": chunks(b"f" * 15 + b"\r\n" + GOOD),
}

TARGETS = {
    "another server's address": line(b"GET http://evil.example/v1/models HTTP/1.1"),
    "our own address": line(b"GET http://localhost/nowhere HTTP/1.1"),
    "an address with a user": line(b"GET http://localhost@evil.example/nowhere HTTP/1.1"),
    "an address of https": line(b"GET https://evil.example:443/nowhere HTTP/1.1"),
    "a star": line(b"GET * HTTP/1.1"),
    "options for a star": line(b"OPTIONS * HTTP/1.1"),
    "a fragment": line(b"GET /nowhere#/v1/models HTTP/1.1"),
}

CASES = {
    **{
        name: Case(400, sends + SMUGGLED, before_keys=True)
        for name, sends in (LENGTHS | CODINGS | CHUNKS | HEADS).items()
    },
    **{f"{name}: plain HTTP": Case(200, sends) for name, sends in PLAIN_HTTP.items()},
    **{f"{name}, then nothing": Case(SILENCE, sends) for name, sends in UNFINISHED.items()},
    **{f"{name} as target": Case((200, 400, 401, 404), sends, before_keys=True) for name, sends in TARGETS.items()},
    **{f"{name}, once": Case((200, 400, 401, 405), sends, before_keys=True) for name, sends in EITHER.items()},
    "a stream for HTTP/1.0": Case(
        200, framed(b"content-length: 81\r\n", GOOD[:-1] + b', "stream": true}').replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    ),
    "HTTP/1.0 without host": Case(403, line(b"GET /v1/models HTTP/1.0", b""), before_keys=True),
    "a length too short": Case(
        (400, 401), framed(b"content-length: 5\r\n", GOOD) + SMUGGLED, before_keys=True, replies=2
    ),
    "a length of 0, and a request where a body would be": Case(
        (400, 200), framed(b"content-length: 0\r\n", SMUGGLED), replies=2
    ),
    "fifty requests at once": Case(200, framed(LENGTH, GOOD) * 50, replies=50),
    "fifty requests at once, half of them wrong": Case(
        (200, 400), (framed(LENGTH, GOOD) + framed(LENGTH, GOOD.upper())) * 25, replies=50
    ),
    "a good request, then none": Case((200, 400), framed(LENGTH, GOOD) + b"\0" * 10, before_keys=True, replies=2),
    "a wrong request, then a good one": Case(
        (404, 200),
        line(b"POST /nowhere HTTP/1.1", b"host: localhost\r\n" + LENGTH) + GOOD + SMUGGLED,
        replies=2,
        before_keys=True,
    ),
    "a completion and a chat in one": Case(
        (200, 400), framed(LENGTH, GOOD).replace(CHAT.encode(), COMPLETIONS.encode()) + framed(LENGTH, GOOD), replies=2
    ),
}
