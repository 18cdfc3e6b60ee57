"""What comes back: text, thoughts, calls, log-probabilities, counts and vectors, in the contract's form."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from array import array
from typing import Any

import msgspec
import pytest
from raw_upstream import DONE, Request, answer_of, asking, chat_event, event, head

from fastchat_backend_openai.answers import UpstreamAnswer
from fastchat_backend_openai.events import Event
from fastchat_serve import (
    Chunk,
    EmbedRequest,
    EngineError,
    TextPrompt,
    TokenLogprob,
    ToolCall,
    Usage,
)

pytestmark = pytest.mark.anyio

END = chat_event(finish="stop", usage=(3, 2)) + DONE


async def chunks(behind: Any, *events: bytes, request: Any = None, **options: Any) -> list[Chunk]:
    """The answer to a stream of `events`, all in one read."""

    async def handler(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head() + b"".join(events))
        await writer.drain()
        writer.close()

    async with behind(handler, **options) as (engine, _):
        return await answer_of(engine, request)


def delta(**fields: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": fields}]})


def call(index: int | None = None, **fields: Any) -> bytes:
    """A piece of a tool call: ``call(0, id="c", name="f")``."""
    part: dict[str, Any] = {} if index is None else {"index": index}
    if "id" in fields:
        part["id"] = fields.pop("id")
    return delta(tool_calls=[part | {"function": fields}])


async def test_what_one_read_brings_is_one_chunk(behind: Any) -> None:
    found = await chunks(behind, delta(role="assistant", content=""), delta(content="a"), delta(content="b"), END)

    assert [chunk.text for chunk in found] == ["ab"]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_thoughts_are_told_from_the_answer(behind: Any, field: str) -> None:
    found = await chunks(behind, delta(**{field: "hm"}), delta(**{field: "m"}), delta(content="yes"), END)

    assert ("".join(c.reasoning for c in found), "".join(c.text for c in found)) == ("hmm", "yes")


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(
            [
                call(0, id="a", name="f", arguments=""),
                call(0, arguments='{"x"'),
                call(0, arguments=":1}"),
                call(1, id="b", name="g", arguments="{}"),
            ],
            id="in pieces",
        ),
        pytest.param(
            [call(0, id="a", name="f", arguments='{"x":1}'), call(0, id="b", name="g")], id="all with index 0"
        ),
        pytest.param([call(id="a", name="f", arguments='{"x":1}'), call(id="b", name="g")], id="without index"),
    ],
)
async def test_tool_calls_are_put_together(behind: Any, events: list[bytes]) -> None:
    finish = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    found = await chunks(behind, *events, finish, END)

    assert [c for chunk in found for c in chunk.tool_calls] == [ToolCall("a", "f", '{"x":1}'), ToolCall("b", "g", "{}")]
    assert found[-1].finish_reason == "stop"


def test_a_call_is_reported_once_it_is_complete() -> None:
    answer = UpstreamAnswer()
    for data in (call(0, id="a", name="f", arguments="{}"), call(1, id="b", name="g")):
        answer.take(_event(data))

    news = answer.news()

    assert news is not None
    assert [c.name for c in news.tool_calls] == ["f"]


def _event(data: bytes) -> Event:
    return msgspec.json.decode(data.removeprefix(b"data: "), type=Event)


def test_calls_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastchat_backend_openai.answers.MAX_TOOL_CALL_CHARS", 100)
    answer = UpstreamAnswer()
    answer.take(_event(call(0, id="a", name="f", arguments="x" * 60)))

    with pytest.raises(EngineError, match="too long"):
        answer.take(_event(call(0, arguments="x" * 60)))


async def test_log_probabilities_of_chats(behind: Any) -> None:
    top = [{"token": "é", "logprob": -0.1, "bytes": [0xC3, 0xA9]}, {"token": "x", "logprob": -3.0, "bytes": None}]
    content = [{"token": "é", "logprob": -0.1, "bytes": [0xC3, 0xA9], "top_logprobs": top}]
    data = event({"choices": [{"index": 0, "delta": {"content": "é"}, "logprobs": {"content": content}}]})

    (found,) = await chunks(behind, data, END, request=asking(logprobs=2))

    best, other = TokenLogprob(-1, "é", "é".encode(), -0.1), TokenLogprob(-1, "x", b"x", -3.0)
    assert found.logprobs == (TokenLogprob(-1, "é", "é".encode(), -0.1, (best, other)),)


async def test_log_probabilities_of_completions_have_as_many_alternatives_as_asked_for(behind: Any) -> None:
    logprobs = {
        "tokens": ["a"],
        "token_logprobs": [-2.0],
        "top_logprobs": [{"a": -2.0, "b": -0.5}],
        "text_offset": [0],
    }
    data = event({"choices": [{"index": 0, "text": "a", "logprobs": logprobs}]})

    (found,) = await chunks(behind, data, END, request=asking(prompt=TextPrompt("x"), logprobs=1))

    assert found.logprobs == (TokenLogprob(-1, "a", b"a", -2.0, (TokenLogprob(-1, "b", b"b", -0.5),)),)


async def test_a_drawn_token_that_is_put_before_the_most_likely_ones_is_no_alternative(behind: Any) -> None:
    top = [{"token": token, "logprob": logprob} for token, logprob in (("z", -9.0), ("a", -0.1), ("b", -2.0))]
    content = [{"token": "z", "logprob": -9.0, "top_logprobs": top}]
    choice = {"index": 0, "delta": {"content": "z"}, "logprobs": {"content": content}, "token_ids": [26]}

    (found,) = await chunks(behind, event({"choices": [choice]}), END, request=asking(logprobs=2), dialect="vllm")

    (rated,) = found.logprobs or ()
    assert (rated.token_id, [other.text for other in rated.top]) == (26, ["a", "b"])


async def test_cached_tokens_and_what_stopped_the_answer_are_passed_on(behind: Any) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}
    end = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": 42}]})

    (last,) = await chunks(behind, end, event({"choices": [], "usage": usage}), DONE)

    assert (last.usage, last.stop_match) == (Usage(9, 4, 8), 42)


async def test_token_ids_are_passed_on(behind: Any) -> None:
    data = event({"choices": [{"index": 0, "delta": {"content": "a"}, "token_ids": [5, 6]}]})

    (found,) = await chunks(behind, data, END, dialect="vllm")

    assert found.token_ids == (5, 6)


async def embedded(behind: Any, body: object, count: int = 2) -> Any:
    async def handler(_: Request, writer: asyncio.StreamWriter) -> None:
        data = json.dumps(body).encode()
        writer.write(head(content_type="application/json", content_length=str(len(data))) + data)

    async with behind(handler) as (engine, _):
        return await engine.embed(EmbedRequest(id="e", inputs=(TextPrompt("x"),) * count))


def listed(*vectors: object) -> dict[str, Any]:
    """Vectors in the wrong order, but with their numbers."""
    data = [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return {"data": data[::-1], "usage": {"prompt_tokens": 5, "total_tokens": 5}}


async def test_vectors_come_in_order_and_have_length_one(behind: Any) -> None:
    packed = base64.b64encode(array("f", [0.0, 2.0]).tobytes()).decode()

    found = await embedded(behind, listed([3.0, 4.0], packed))

    rows = array("f", found.data)
    assert (found.dimensions, found.prompt_tokens) == (2, 5)
    assert rows.tolist() == pytest.approx([0.6, 0.8, 0.0, 1.0])
    assert math.hypot(*rows[:2]) == pytest.approx(1)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(listed([1.0]), id="too few"),
        pytest.param(listed([1.0], [1.0, 2.0]), id="of different lengths"),
        pytest.param(listed([], []), id="empty"),
        pytest.param(listed([0.0], [1.0]), id="without direction"),
        pytest.param(listed("%%%", "%%%"), id="no base64"),
        pytest.param({"data": 1}, id="no list"),
        pytest.param({"data": listed([1.0], [1.0])["data"]}, id="not counted"),
    ],
)
async def test_vectors_that_are_none_are_an_error(behind: Any, body: object) -> None:
    with pytest.raises(EngineError):
        await embedded(behind, body)


async def test_embeddings_that_never_end_are_cut_off(behind: Any) -> None:
    async def handler(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(content_type="application/json"))
        while not writer.is_closing():
            writer.write(b" " * 65536)
            await writer.drain()

    async with behind(handler, max_reply_bytes=2**20) as (engine, _):
        with pytest.raises(EngineError, match="too long"):
            await engine.embed(EmbedRequest(id="e", inputs=(TextPrompt("x"),)))


async def test_other_choices_are_not_mixed_in(behind: Any) -> None:
    other = event({"choices": [{"index": 1, "delta": {"content": "no"}}]})

    found = await chunks(behind, delta(content="yes"), other, END)

    assert "".join(chunk.text for chunk in found) == "yes"
