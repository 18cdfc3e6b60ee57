"""The benchmark's engine: what its knobs do, and that it keeps the contract while it does."""

from __future__ import annotations

import time
from importlib.metadata import EntryPoint
from typing import Any

import httpx
import pytest

from fastchat_backend_mock import MockOptions
from fastchat_backend_mock.engine import MockEngine
from fastchat_backend_mock.knobs import Knobs
from fastchat_backend_mock.tokens import stamp
from fastchat_serve import (
    ChatPrompt,
    EngineError,
    GenerateRequest,
    InvalidRequest,
    Message,
    SamplingParams,
    Unsupported,
)
from fastchat_serve.plugins import Plugins
from tests.bench.gateway import WORKERS
from tests.conftest import Serving
from tests.sinks import Remembering, a_request

pytestmark = pytest.mark.anyio


def asked(text: str) -> GenerateRequest:
    system = Message(role="system", content="#itl=1#")
    prompt = ChatPrompt(messages=(system, Message(role="user", content=text)))
    return GenerateRequest(id="request", prompt=prompt, sampling=SamplingParams(max_tokens=5))


def test_knobs_are_read_from_the_last_message() -> None:
    knobs = Knobs.of(asked("#itl=20000;ttft=0;ts=1;phases=4;size=100# Please tell me a story."))

    assert knobs == Knobs(itl=20_000, ttft=0, ts=1, phases=4, size=100)


@pytest.mark.parametrize("text", ["a prompt like any other", "#1 is the best, #2 is not", "", "x" * 1000 + "#itl=5#"])
def test_without_knobs_near_the_beginning_there_are_defaults(text: str) -> None:
    assert Knobs.of(asked(text)) == Knobs()


def test_a_prompt_that_is_text_has_knobs_too() -> None:
    assert Knobs.of(a_request("#itl=7;#")).itl == 7


def test_a_prompt_of_token_ids_has_none() -> None:
    assert Knobs.of(a_request(b"#itl=7#")) == Knobs()


@pytest.mark.parametrize("text", ["#speed=3#", "#phases=0#", "#size=0#"])
def test_a_knob_that_is_not_there_is_refused_rather_than_ignored(text: str) -> None:
    with pytest.raises(InvalidRequest, match="#"):
        Knobs.of(asked(text))


@pytest.mark.parametrize("knobs", ["#itl=0#", "#itl=1000#", "#itl=1000;phases=3#", "#ttft=2000#", "#ts=1#"])
async def test_a_stream_has_as_many_tokens_as_asked_for_with_one_mark_each(knobs: str) -> None:
    async with MockEngine() as engine:
        sinks = [Remembering() for _ in range(7)]
        for sink in sinks:
            engine.start(a_request(knobs, max_tokens=5), sink)
        for sink in sinks:
            await sink.ended()

    for sink in sinks:
        assert [chunk.text.count("@") for chunk in sink.chunks] == [1] * 5
        assert [len(chunk.token_ids) for chunk in sink.chunks] == [1] * 5
        assert [chunk.finish_reason for chunk in sink.chunks] == [None] * 4 + ["length"]
        assert sink.chunks[-1].usage is not None
        assert sink.chunks[-1].usage.completion_tokens == 5
        assert sink.ends == [None]


async def test_tokens_come_at_the_pace_asked_for() -> None:
    async with MockEngine() as engine:
        began = time.perf_counter()
        sink = Remembering()
        engine.start(a_request("#itl=20000;ttft=30000#", max_tokens=4), sink)
        await sink.ended()

    assert time.perf_counter() - began >= 0.03 + 3 * 0.02 - 0.001  # never faster; slower if the machine is busy


async def test_a_token_says_when_it_was_sent() -> None:
    async with MockEngine() as engine:
        sink = Remembering()
        before = int(stamp().removeprefix(" @"))
        engine.start(a_request("#ts=1;itl=1000#", max_tokens=3), sink)
        await sink.ended()
        after = int(stamp().removeprefix(" @"))

    times = [int(chunk.text.removeprefix(" @")) for chunk in sink.chunks]
    elapsed = [(moment - before) % 100_000_000 for moment in times]  # eight digits wrap around
    assert elapsed == sorted(elapsed)
    assert elapsed[-1] <= (after - before) % 100_000_000


async def test_streams_of_one_phase_get_their_tokens_in_one_step_and_those_of_others_do_not() -> None:
    async with MockEngine() as engine:
        sinks = [Remembering() for _ in range(4)]
        for sink in sinks:
            engine.start(a_request("#itl=50000;ts=1;phases=2#", max_tokens=3), sink)
        for sink in sinks:
            await sink.ended()

    last = [sink.chunks[-1].text for sink in sinks]
    assert last[0] == last[2]
    assert last[1] == last[3]
    assert last[0] != last[1]


async def test_nothing_is_pushed_from_within_start() -> None:
    async with MockEngine() as engine:
        sink = Remembering()
        engine.start(a_request("#itl=1000#", max_tokens=2), sink)
        assert sink.chunks == []
        await sink.ended()


async def test_a_whole_answer_is_one_chunk_of_the_size_asked_for() -> None:
    async with MockEngine(MockOptions(whole=True)) as engine:
        sink = Remembering()
        engine.start(a_request("#size=77#", max_tokens=50), sink)
        await sink.ended()

    (chunk,) = sink.chunks
    assert (len(chunk.text), chunk.text.count("@")) == (77, 1)
    assert len(chunk.token_ids) == 50
    assert chunk.usage is not None
    assert chunk.usage.completion_tokens == 50


async def test_an_aborted_stream_ends_without_error_and_is_not_held() -> None:
    async with MockEngine() as engine:
        sink = Remembering()
        handle = engine.start(a_request("#itl=1000#", max_tokens=100_000), sink)
        await sink.has(3)
        handle.abort()
        handle.abort()
        await sink.ended()
        seen = len(sink.chunks)
        later = Remembering()
        engine.start(a_request("#itl=1000#", max_tokens=5), later)  # of the same clock
        await later.ended()

        assert sink.ends == [None]
        assert len(sink.chunks) == seen
        assert engine.current_load().running == 0


async def test_closing_the_engine_ends_what_is_under_way_with_an_error() -> None:
    sinks = [Remembering(), Remembering()]
    async with MockEngine() as engine:
        engine.start(a_request("#itl=1000#", max_tokens=100_000), sinks[0])
        engine.start(a_request("#ttft=60000000#"), sinks[1])
        await sinks[0].has(2)

    for sink in sinks:
        assert isinstance(sink.error, EngineError)


@pytest.mark.parametrize("more", [{"stop": ("@",)}, {"echo": True}])
async def test_what_it_cannot_do_is_refused(more: dict[str, Any]) -> None:
    async with MockEngine() as engine:
        sink = Remembering()
        engine.start(a_request("hello", **more), sink)
        await sink.ended()

    assert isinstance(sink.error, Unsupported)


async def test_a_knob_that_is_not_there_reaches_the_sink_as_an_error() -> None:
    async with MockEngine() as engine:
        sink = Remembering()
        engine.start(a_request("#speed=1#"), sink)
        await sink.ended()

    assert isinstance(sink.error, InvalidRequest)


async def test_the_product_serves_it_as_the_gateway_benchmark_asks(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    point = EntryPoint(name="mock", value="fastchat_backend_mock", group="fastchat_serve")
    question = {"max_tokens": 3, "messages": [{"role": "user", "content": "#itl=1000;phases=4;ts=1;size=200#"}]}
    config = f"[controller]\n[api]\n{WORKERS}"
    async with serving(config, Plugins({"mock": (point,)})) as server, httpx.AsyncClient(base_url=server.url) as client:
        plain = await client.post("/v1/chat/completions", json=question | {"model": "plain"})
        streamed = await client.post("/v1/chat/completions", json=question | {"model": "stream", "stream": True})

    assert len(plain.json()["choices"][0]["message"]["content"]) == 200
    assert streamed.text.count("@") == 3
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []  # it kept the contract
