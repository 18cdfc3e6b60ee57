"""Through two real servers: clients speak to a fastchat-serve whose worker is another fastchat-serve."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from openai import AsyncOpenAI, BadRequestError
from raw_upstream import PATIENCE_S, Opened, answer_of, asking

from fastchat_serve import Capability, EmbedRequest, SamplingParams, TextPrompt, Unavailable
from fastchat_serve.server import HttpServer
from tests.conftest import Serving

pytestmark = pytest.mark.anyio

UPSTREAM = """
[controller]
[api]
keys = ["sk-upstream"]
[[worker]]
backend = "echo"
names = ["echo"]
concurrency = 64
[worker.options]
delay_ms = 1
context_length = 1000
"""
GATEWAY = """
[controller]
[api]
[[worker]]
backend = "openai"
model = "echo"
names = ["mine"]
concurrency = 64
[worker.options]
base_url = "{url}/v1"
api_key = "sk-upstream"
"""


@asynccontextmanager
async def gateway(serving: Serving, upstream: str = UPSTREAM) -> AsyncIterator[tuple[HttpServer, AsyncOpenAI]]:
    """The upstream, and a client of the server before it."""
    async with (
        serving(upstream) as running,
        serving(GATEWAY.format(url=running.url)) as server,
        AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sk-of-a-client", max_retries=0, timeout=PATIENCE_S) as client,
    ):
        yield running, client


async def test_a_stream_passes_through_with_its_counts(serving: Serving) -> None:
    async with gateway(serving) as (_, client):
        stream = await client.chat.completions.create(
            model="mine",
            messages=[{"role": "user", "content": "to be or not to be"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        events = [event async for event in stream]

    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert text == "to be or not to be"
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == 6


async def test_many_at_once_keep_their_own_answers(serving: Serving) -> None:
    async with gateway(serving) as (_, client):
        texts = [f"number {number} " * 20 for number in range(50)]
        replies = await asyncio.gather(
            *(
                client.chat.completions.create(model="mine", messages=[{"role": "user", "content": text}])
                for text in texts
            )
        )

    assert [reply.choices[0].message.content for reply in replies] == texts


async def test_what_the_upstream_refuses_is_the_clients_400(serving: Serving) -> None:
    async with gateway(serving) as (_, client):
        with pytest.raises(BadRequestError) as caught:
            await client.completions.create(model="mine", prompt="word " * 5000)

    assert caught.value.code == "context_length_exceeded"


async def test_a_client_who_leaves_frees_the_upstream(serving: Serving) -> None:
    slow = UPSTREAM.replace("delay_ms = 1\n", "delay_ms = 1000\nloop = true\n")
    async with gateway(serving, slow) as (upstream, client):
        worker = upstream.application.workers[0]
        stream = await client.completions.create(model="mine", prompt="on and on", stream=True, max_tokens=900)
        async for _ in stream:
            break
        assert worker.load().running == 1  # and would be for a quarter of an hour
        await stream.close()

        async with asyncio.timeout(PATIENCE_S):
            while worker.load().running:  # noqa: ASYNC110 - it sets no event
                await asyncio.sleep(0.001)


async def test_it_declares_what_the_workers_behind_it_can_do(serving: Serving, opened: Opened) -> None:
    """Echo has no `logit_bias` and no tools; the same engine, asked for them, would be refused behind."""
    async with (
        serving(UPSTREAM.replace('keys = ["sk-upstream"]', "")) as upstream,
        opened(f"{upstream.url}/v1") as engine,
    ):
        found, context_length = engine.info.capabilities, engine.info.context_length

    assert {Capability.TOP_K, Capability.SEED, Capability.LOGPROBS, Capability.EMBED, Capability.TOKEN_PROMPT} <= found
    assert not {Capability.LOGIT_BIAS, Capability.TOOLS, Capability.JSON_SCHEMA} & found
    assert context_length == 1000


async def test_vectors_and_log_probabilities_pass_through(serving: Serving, opened: Opened) -> None:
    async with (
        serving(UPSTREAM.replace('keys = ["sk-upstream"]', "")) as upstream,
        opened(f"{upstream.url}/v1") as engine,
    ):
        vectors = await engine.embed(EmbedRequest(id="e", inputs=(TextPrompt("a b"), TextPrompt("c"))))
        chunks = await answer_of(engine, asking("one two three", logprobs=1, sampling=SamplingParams(max_tokens=2)))

    assert (len(vectors.data), vectors.prompt_tokens) == (2 * 4 * vectors.dimensions, 3)
    assert "".join(token.text for chunk in chunks for token in chunk.logprobs or ()) == "one two"
    assert chunks[-1].finish_reason == "length"


async def test_answers_leave_no_cyclic_garbage(serving: Serving, opened: Opened) -> None:
    """A collector that has nothing to do holds nobody up."""
    async with (
        serving(UPSTREAM.replace('keys = ["sk-upstream"]', "")) as upstream,
        opened(f"{upstream.url}/v1") as engine,
    ):
        await answer_of(engine)
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(20):
                await answer_of(engine)
            gc.collect()
            found = {type(item).__qualname__ for item in gc.garbage if type(item).__module__.startswith("fastchat_b")}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()

    assert found == set()


async def test_an_upstream_that_was_stopped_is_unavailable(serving: Serving, opened: Opened) -> None:
    running = AsyncExitStack()
    upstream = await running.enter_async_context(serving(UPSTREAM.replace('keys = ["sk-upstream"]', "")))
    async with opened(f"{upstream.url}/v1") as engine:
        await answer_of(engine)
        await running.aclose()

        with pytest.raises(Unavailable):
            await answer_of(engine)
