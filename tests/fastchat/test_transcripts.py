"""What was recorded of FastChat 0.2.36, byte for byte: its worker behind us, and its processes before us."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from tests.conftest import Serving
from tests.fastchat.acting import TRANSCRIPTS, Actor, Asked, parsed, replay, transcript
from tests.fastchat.calls import CALLS
from tests.fastchat.conftest import Ours, client_of, listed

pytestmark = pytest.mark.anyio

ANSWERS = json.loads((TRANSCRIPTS / "worker_answers.json").read_text())


@pytest.mark.parametrize("call", CALLS)
async def test_an_openai_client_is_answered_from_its_worker_as_when_that_was_recorded(ours: Ours, call: str) -> None:
    worker = Actor(replay("worker"))
    async with worker.listening(), ours(f'upstreams = ["{worker.url}"]') as server:
        await listed(server, "tiny")
        async with client_of(server) as client:
            assert await CALLS[call](client) == ANSWERS[call]


async def exchange(url: str, request: bytes) -> bytes:
    """The response to raw bytes."""
    host, port = re.fullmatch(r"http://(.+):(\d+)", url).groups()  # type: ignore[union-attr]
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        body = await (reader.readexactly(int(length[1])) if length else reader.readuntil(b"0\r\n\r\n"))
    writer.close()
    return head + body


def comparable(response: bytes, url: str) -> bytes:
    """Without what differs from one time to the next: ids, dates, our own address."""
    without = re.sub(rb"\r\n(?:x-request-id|date): [^\r]*", b"", response)
    return re.sub(rb"http://127.0.0.1:\d+", url.encode(), without).replace(
        b"content-length: %d" % len(without.partition(b"\r\n\r\n")[2]), b"content-length"
    )


def to_us(request: bytes, url: str) -> bytes:
    return re.sub(rb"Host: [^\r]*", b"Host: " + url.removeprefix("http://").encode(), request)


@pytest.fixture(scope="module")
def vicuna_echo() -> str:
    """As it was when the front ends were recorded."""
    return """
[controller]
[api]
[fastchat]
enabled = true
[[worker]]
backend = "echo"
names = ["vicuna-echo"]
options = { split = "byte" }
"""


async def test_its_front_ends_are_answered_as_when_that_was_recorded(serving: Serving, vicuna_echo: str) -> None:
    asked = set()
    async with serving(vicuna_echo) as server:
        for request, response in transcript("front_ends"):
            again = await exchange(server.url, to_us(request, server.url))
            assert comparable(again, server.url) == comparable(response, server.url), parsed(request)
            asked.add(parsed(request).path)

    assert asked == {
        *("/refresh_all_workers", "/list_models", "/get_worker_address", "/worker_get_conv_template"),
        *("/model_details", "/count_token", "/worker_generate", "/worker_get_embeddings", "/worker_generate_stream"),
    }


async def test_its_worker_is_answered_as_by_its_own_controller(ours: Ours) -> None:
    (register, null), *beats = transcript("worker_to_controller")
    async with ours() as server:
        for request, response in ((register, null), *beats):
            again = await exchange(server.url, to_us(request, server.url))
            assert again.partition(b"\r\n\r\n")[2] == response.partition(b"\r\n\r\n")[2]

    assert isinstance(parsed(register), Asked)
    assert [parsed(beat).path for beat, _ in beats] == ["/receive_heart_beat"] * 2
