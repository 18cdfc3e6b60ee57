"""FastChat's routes in front of engines in other processes: what crosses a link is the same afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from fastchat_serve.server import HttpServer
from tests.routes.fastchat.conftest import FASTCHAT, FastChatClient

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def config() -> str:
    return FASTCHAT.replace("concurrency = 4", 'concurrency = 4\nplacement = "process"')


@pytest.fixture
async def elsewhere(server: HttpServer) -> AsyncIterator[FastChatClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=20) as http:
        yield FastChatClient(http)


async def test_answers_counts_and_vectors_are_the_same(elsewhere: FastChatClient) -> None:
    said = await elsewhere.stream(model="echo", prompt="ab", echo=True, logprobs=1)
    assert said[-1]["text"] == "abab"
    assert said[-1]["logprobs"]["tokens"] == ["a", "b", "a", "b"]
    assert (await elsewhere.call("/count_token", {"prompt": "ab"}))["count"] == 2
    assert (await elsewhere.call("/worker_get_embeddings", {"input": ["ab"]}))["token_num"] == 2


async def test_more_tokens_than_there_is_room_for_means_as_many_as_there_is(elsewhere: FastChatClient) -> None:
    said = await elsewhere.stream(prompt="ab", max_new_tokens=1_000_000, echo=False)
    assert said[-1]["text"] == "ab"


async def test_a_prompt_that_is_too_long_is_told_by_its_number(elsewhere: FastChatClient) -> None:
    said = await elsewhere.stream(prompt="x" * 131_072, echo=False)
    assert said[-1]["error_code"] == 40303
