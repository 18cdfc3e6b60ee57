"""Bodies: what is read, what is refused, and that nothing in them is ever a 5xx."""

from __future__ import annotations

import gzip
import json
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastchat_serve.errors import InvalidRequest
from fastchat_serve.routes.exchange import MAX_CONTAINERS, MAX_NESTING, decode
from tests.end_to_end.raw import connected, expect_error, post

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
GOOD = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
GOOD_BYTES = json.dumps(GOOD).encode()


def with_unknown(value: bytes) -> bytes:
    """A good request with one more field that nobody knows."""
    return GOOD_BYTES[:-1] + b', "x": ' + value + b"}"


@pytest.fixture(scope="module")
def config() -> str:
    return """
[server]
max_body_bytes = 3_000_000
[controller]
[api]
[[worker]]
backend = "echo"
"""


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b"{'model': 'echo'}",
        GOOD_BYTES + b"x",
        GOOD_BYTES[:-1],
        GOOD_BYTES.replace(b"hi", b"\xff\xfe"),
        GOOD_BYTES.replace(b"hi", b"\xed\xa0\x80"),
        GOOD_BYTES.replace(b"hi", b"\xc0\xaf"),
        GOOD_BYTES.replace(b"hi", rb"\ud800"),
        GOOD_BYTES.replace(b"hi", rb"\udc00\ud800"),
        GOOD_BYTES.replace(b"hi", b"\x00"),
        b"\xef\xbb\xbf" + GOOD_BYTES,
        GOOD_BYTES.decode().encode("utf-16"),
        with_unknown(b"\xff"),
        with_unknown(b"NaN"),
        with_unknown(b"[" * 65 + b"]" * 65),
        with_unknown(b"[" * 100_000 + b"]" * 100_000),
        with_unknown(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        with_unknown(b"[" * 100_000),
        with_unknown(b"[" + b"[]," * (MAX_CONTAINERS + 1) + b"[]]"),
        GOOD_BYTES.replace(b'"hi"', b"[" * 100_000),
        *(
            with_unknown(b"0").replace(b'"x": 0', b'"%s": %s' % (field, number))
            for field, number in [
                (b"temperature", b"NaN"),
                (b"temperature", b"Infinity"),
                (b"temperature", b"1e999"),
                (b"temperature", b"-1e308"),
                (b"n", b"1" * 5000),
                (b"n", b"1e30"),
                (b"n", str(2**64).encode()),
                (b"n", b"-1"),
                (b"n", b"true"),
                (b"dimensions", str(2**31).encode()),
                (b"seed", str(2**64).encode()),
                (b"max_tokens", str(2**31).encode()),
                (b"stop", b'[["x"]]'),
                (b"model", b"7"),
                (b"model", b"null"),
                (b"prompt", b"9"),
                (b"input", b"{}"),
            ]
        ),
    ],
    ids=lambda body: repr(body[-40:]),
)
async def test_a_broken_body_is_a_400_that_says_so(server, path, body):
    """F32, F33, G14."""
    async with connected(server) as connection:
        reply = await connection.request(post(path, body))
        again = await connection.request(post(CHAT, GOOD))

    # Some of these are broken for one route only; then the others miss a field, or know no such field.
    assert reply.status == 400 or (reply.status == 200 and path == CHAT), reply
    if reply.status == 400:
        error = expect_error(reply, 400)
        assert error["type"] == "invalid_request_error"
    assert again.status == 200


async def test_only_fields_of_other_routes_pass_in_a_broken_body(server):
    """So that the test above cannot pass by letting through what it should not."""
    async with connected(server) as connection:
        for field in (b"prompt", b"input", b"dimensions"):
            body = with_unknown(b"0").replace(b'"x"', b'"' + field + b'"')
            assert (await connection.request(post(CHAT, body))).status == 200
        for body in (with_unknown(b"NaN"), with_unknown(b"\xff"), with_unknown(b'{"a":' * 65 + b"1" + b"}" * 65)):
            expect_error(await connection.request(post(CHAT, body)), 400)


async def test_the_last_of_duplicate_keys_wins_and_depth_up_to_the_limit_is_fine(server):
    async with connected(server) as connection:
        twice = GOOD_BYTES[:-1] + b', "model": "other"}'
        expect_error(await connection.request(post(CHAT, twice)), 404, "model_not_found")
        deep = with_unknown(b"[" * (MAX_NESTING - 1) + b"]" * (MAX_NESTING - 1))
        assert (await connection.request(post(CHAT, deep))).status == 200
        text = with_unknown(json.dumps('"[{' * 1000).encode())
        assert (await connection.request(post(CHAT, text))).status == 200


async def test_a_message_never_repeats_much_of_what_was_sent(server):
    async with connected(server) as connection:
        role = {"model": "echo", "messages": [{"role": "x - at `$.y` " * 1000, "content": "hi"}]}
        assert expect_error(await connection.request(post(CHAT, role)), 400)["param"] == "messages[0].role"
        expect_error(await connection.request(post(CHAT, GOOD | {"model": "x" * 100_000})), 404)
        parts = {"model": "echo", "messages": [{"role": "user", "content": [{"type": "y" * 10_000}]}]}
        expect_error(await connection.request(post(CHAT, parts)), 400)


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "json",
    ],
)
async def test_what_is_not_json_is_refused_unread(server, content_type):
    """S11, and S18: a form of a foreign page can send none but these types."""
    async with connected(server) as connection:
        expect_error(await connection.request(post(CHAT, GOOD, content_type=content_type)), 415)


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/ld+json"])
async def test_json_by_any_of_its_names_is_taken(server, content_type):
    async with connected(server) as connection:
        assert (await connection.request(post(CHAT, GOOD, content_type=content_type))).status == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip", "x-unknown"])
async def test_compressed_bodies_are_refused(server, encoding):
    """S22, F36."""
    async with connected(server) as connection:
        body = gzip.compress(GOOD_BYTES)
        expect_error(await connection.request(post(CHAT, body, content_encoding=encoding)), 415)


async def test_a_body_over_the_limit_is_refused_by_its_stated_length(server):
    """S12: before it is sent."""
    async with connected(server) as connection:
        connection.send(post(CHAT, b"", content_length="3000001"))
        expect_error(await connection.reply(), 413, "payload_too_large")


async def test_a_body_over_the_limit_is_refused_while_it_is_read(server):
    """S12: chunked, so that no length is stated."""
    async with connected(server) as connection:
        connection.send(post(CHAT, b"", content_length="", transfer_encoding="chunked"))
        for _ in range(48):
            connection.send(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        expect_error(await connection.reply(), 413, "payload_too_large")


async def test_a_chunked_body_within_the_limit_is_taken(server):
    async with connected(server) as connection:
        connection.send(post(CHAT, b"", content_length="", transfer_encoding="chunked"))
        for byte in GOOD_BYTES:
            connection.send(b"1\r\n%c\r\n" % byte)
        assert (await connection.request(b"0\r\n\r\n")).status == 200


async def test_a_client_that_asks_before_it_sends_is_told_to_go_on(server):
    async with connected(server) as connection:
        connection.send(post(CHAT, b"", content_length=str(len(GOOD_BYTES)), expect="100-continue"))
        assert (await connection.head())[0] == 100
        assert (await connection.request(GOOD_BYTES)).status == 200


@pytest.mark.parametrize(
    "body",
    [b"{}," * 70 + b'"' + rb"\"" * 1_000_000, b"{}," * 70 + b'"' + rb"\"" * 1_000_000 + b"\\", b"[]," * 1_000_000],
    ids=["open string", "open escape", "many arrays"],
)
def test_looking_at_the_shape_takes_linear_time(body):
    """S10. A quadratic scan of these takes minutes."""
    began = time.process_time()
    with pytest.raises(InvalidRequest):
        decode(msgspec.json.Decoder(dict), b'{"a": [' + body)

    assert time.process_time() - began < 2


JSON = st.recursive(
    st.none() | st.integers() | st.text('"\\[]{}a\n', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\[]{}a', max_size=3), inner, max_size=3),
    max_leaves=20,
)


@given(JSON, st.integers(1, 70))
def test_depth_is_counted_outside_of_strings_only(value, deeper):
    """Against the plain definition of depth."""

    def depth(value: object) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    for _ in range(deeper):
        value = [value, "[" * 70]
    decoder = msgspec.json.Decoder(list)

    if depth(value) <= MAX_NESTING:
        assert decode(decoder, json.dumps(value).encode()) == value
    else:
        with pytest.raises(InvalidRequest, match="nested more than 64"):
            decode(decoder, json.dumps(value).encode())


@given(st.binary(max_size=60) | st.lists(st.sampled_from([*b'[]{}"\\:,1'])).map(bytes))
def test_any_bytes_are_decoded_or_refused(body):
    """G14: nothing but `InvalidRequest` comes out."""
    try:
        decode(msgspec.json.Decoder(), body)
    except InvalidRequest:
        return
    json.loads(body)


@given(st.text(), st.text("aé日😀", max_size=5))
def test_what_is_not_utf8_is_said_to_be_where_it_is_in_the_body(before, after):
    body = json.dumps({"é": before, "x": "?"}, ensure_ascii=False).encode()[:-3] + b"\xff" + after.encode()
    with pytest.raises(InvalidRequest, match=rf"not valid UTF-8 at byte {body.index(0xFF)}\."):
        decode(msgspec.json.Decoder(), body + b'"}')
