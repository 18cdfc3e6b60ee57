"""``/v1/chat/completions`` as OpenAI's own client uses it."""

from __future__ import annotations

import pytest
from openai import APIError, AsyncOpenAI, BadRequestError, NotFoundError

from tests.end_to_end.raw import connected, events, post

pytestmark = pytest.mark.anyio

SAID = [{"role": "user", "content": "to be or not to be"}]


async def streamed(client: AsyncOpenAI, **request: object) -> list:
    stream = await client.chat.completions.create(**{"model": "echo", "messages": SAID, "stream": True} | request)
    return [chunk async for chunk in stream]


def text_of(chunks: list, index: int = 0) -> str:
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == index)


async def test_an_answer_has_text_finish_reason_and_exact_usage(client):
    answer = await client.chat.completions.create(model="echo", messages=SAID)

    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "echo"
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "to be or not to be")
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    # The echo engine sees "user: to be or not to be": seven words, and answers with six.
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 6, 13)


async def test_a_stream_opens_with_the_role_and_ends_once(client):
    """G2."""
    chunks = await streamed(client)

    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert text_of(chunks) == "to be or not to be"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in chunks)


async def test_a_stream_reports_usage_in_an_event_of_its_own_if_asked(client):
    chunks = await streamed(client, stream_options={"include_usage": True})

    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (7, 6)
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_every_event_but_the_last_says_that_usage_is_still_null(server):
    """OpenAI's reference: "all other chunks will also include a usage field, but with a null value"."""
    asked = {"model": "echo", "messages": SAID, "stream": True}
    async with connected(server) as connection:
        with_usage = events(
            (
                await connection.request(
                    post("/v1/chat/completions", asked | {"stream_options": {"include_usage": True}})
                )
            ).body
        )
        without = events((await connection.request(post("/v1/chat/completions", asked))).body)

    assert [event.get("usage", "absent") for event in with_usage[:-2]] == [None] * (len(with_usage) - 2)
    assert with_usage[-2]["usage"]["total_tokens"] == 13
    assert with_usage[-1] == without[-1] == "[DONE]"
    assert not any("usage" in event for event in without[:-1])


async def test_choices_of_one_request_are_whole_and_the_prompt_counts_once(client):
    """G2, for n > 1."""
    plain = await client.chat.completions.create(model="echo", messages=SAID, n=3)
    chunks = await streamed(client, n=3, stream_options={"include_usage": True})

    assert [choice.index for choice in plain.choices] == [0, 1, 2]
    assert {choice.message.content for choice in plain.choices} == {"to be or not to be"}
    assert (plain.usage.prompt_tokens, plain.usage.completion_tokens) == (7, 18)
    assert chunks[-1].usage == plain.usage
    for index in range(3):
        of_choice = [c for chunk in chunks for c in chunk.choices if c.index == index]
        assert text_of(chunks, index) == "to be or not to be"
        assert [c.delta.role for c in of_choice if c.delta.role] == ["assistant"]
        assert [c.finish_reason for c in of_choice if c.finish_reason] == ["stop"]


@pytest.mark.parametrize("stop", [" not", ["zzz", " not to"], "t t"])
async def test_nothing_from_a_stop_string_on_is_sent(client, stop):
    plain = await client.chat.completions.create(model="echo", messages=SAID, stop=stop)
    chunks = await streamed(client, stop=stop)

    expected = "to be or no" if stop == "t t" else "to be or"
    assert plain.choices[0].message.content == text_of(chunks) == expected
    assert plain.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_an_answer_is_cut_at_the_number_of_tokens(client, field):
    plain = await client.chat.completions.create(model="echo", messages=SAID, **{field: 2})
    chunks = await streamed(client, **{field: 2})

    assert plain.choices[0].message.content == text_of(chunks) == "to be"
    assert plain.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "length"
    assert plain.usage.completion_tokens == 2


async def test_max_completion_tokens_goes_before_its_older_name(client):
    plain = await client.chat.completions.create(model="echo", messages=SAID, max_tokens=5, max_completion_tokens=1)

    assert plain.usage.completion_tokens == 1


async def test_log_probabilities_come_per_token_with_alternatives(client):
    plain = await client.chat.completions.create(model="echo", messages=SAID, logprobs=True, top_logprobs=2)
    chunks = await streamed(client, logprobs=True, top_logprobs=2)

    tokens = plain.choices[0].logprobs.content
    assert [token.token for token in tokens] == ["to", " be", " or", " not", " to", " be"]
    assert [bytes(token.bytes) for token in tokens] == [token.token.encode() for token in tokens]
    assert all(token.top_logprobs[0].token == token.token for token in tokens)
    assert [t for chunk in chunks if chunk.choices[0].logprobs for t in chunk.choices[0].logprobs.content] == tokens
    assert text_of(chunks) == "to be or not to be"


async def test_log_probabilities_without_alternatives(client):
    plain = await client.chat.completions.create(model="echo", messages=SAID, logprobs=True)

    assert [token.top_logprobs for token in plain.choices[0].logprobs.content] == [[]] * 6


async def test_text_parts_and_all_roles_are_taken(client):
    answer = await client.chat.completions.create(
        model="echo",
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "developer", "content": [{"type": "text", "text": "be kind"}]},
            {"role": "user", "content": "first", "name": "anna"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": "42"},
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        ],
    )

    assert answer.choices[0].message.content == "one\ntwo"


async def test_sampling_fields_within_their_ranges_are_taken(client):
    answer = await client.chat.completions.create(
        model="echo",
        messages=SAID,
        seed=-5,
        temperature=0,
        top_p=0,
        presence_penalty=-2,
        frequency_penalty=2,
        user="u",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        modalities=["text"],
        tool_choice="none",
        response_format={"type": "text"},
        extra_body={"top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 0, "unknown": [1, {"x": None}]},
    )

    assert answer.choices[0].message.content == "to be or not to be"


async def test_null_means_not_given(server):
    names = (
        "stream stream_options n temperature top_p stop presence_penalty frequency_penalty logit_bias seed user tools"
    )
    names += " tool_choice parallel_tool_calls response_format max_tokens max_completion_tokens logprobs top_logprobs"
    async with connected(server) as connection:
        reply = await connection.request(
            post("/v1/chat/completions", {"model": "echo", "messages": SAID} | dict.fromkeys(names.split()))
        )

    assert reply.json()["choices"][0]["message"]["content"] == "to be or not to be"


async def test_the_assistant_can_be_made_to_continue_its_own_words(client):
    begun = [*SAID, {"role": "assistant", "content": "that is"}]
    answer = await client.chat.completions.create(
        model="echo", messages=begun, extra_body={"continue_final_message": True}
    )

    assert answer.choices[0].message.content == "that is"


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("asked", "param", "code"),
    [
        ({"messages": []}, "messages", None),
        ({"messages": [{"role": "user"}]}, "messages", None),
        ({"messages": [{"role": "cat", "content": "x"}]}, "messages[0].role", None),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/"}}]}
                ]
            },
            "messages",
            "unsupported",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type", None),
        ({"temperature": 2.1}, "temperature", None),
        ({"temperature": "hot"}, "temperature", None),
        ({"top_p": -0.1}, "top_p", None),
        ({"n": 0}, "n", None),
        ({"n": 9}, "n", None),
        ({"n": 1.5}, "n", None),
        ({"max_tokens": 0}, "max_tokens", None),
        ({"max_tokens": 200_000}, "messages", "context_length_exceeded"),
        ({"seed": 2**63}, "seed", None),
        ({"stop": [""]}, "stop", None),
        ({"stop": ["x"] * 17}, "stop", None),
        ({"stop": "x" * 1025}, "stop", None),
        ({"top_logprobs": 2}, "top_logprobs", None),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", None),
        ({"logit_bias": {"5": 101}}, "logit_bias[...]", None),
        ({"logit_bias": {"five": 1}}, "logit_bias", None),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported"),
        ({"tools": [TOOL]}, "tools", "unsupported"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tools", "unsupported"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
            "response_format",
            "unsupported",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            None,
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type", None),
        ({"extra_body": {"structured_outputs": {"regex": "a+"}}}, "structured_outputs.regex", "unsupported"),
        ({"extra_body": {"structured_outputs": {"choice": []}}}, "structured_outputs.choice", None),
        ({"extra_body": {"best_of": 3}}, "best_of", "unsupported"),
        ({"extra_body": {"chat_template": "{{ 1 }}"}}, "chat_template", "unsupported"),
        ({"extra_body": {"continue_final_message": True}}, "messages", None),
        ({"extra_body": {"min_tokens": 5}, "max_tokens": 2}, "min_tokens", None),
        ({"modalities": ["audio"]}, "modalities", "unsupported"),
        ({"web_search_options": {}}, "web_search_options", "unsupported"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_done_is_refused_by_name(client, asked, param, code, stream):
    """F33: nothing is silently ignored, and nothing is a 5xx."""
    with pytest.raises(BadRequestError) as refused:
        await client.chat.completions.create(**{"model": "echo", "messages": SAID, "stream": stream} | asked)

    assert refused.value.type == "invalid_request_error"
    assert refused.value.param == param
    assert refused.value.code == code


async def test_an_unknown_model_is_a_typed_404(client):
    with pytest.raises(NotFoundError) as missing:
        await client.chat.completions.create(model="no/such", messages=SAID)

    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"
    assert "no/such" in missing.value.message


async def test_absurd_n_is_refused_at_once(server):
    """S8: the loop is not blocked, so the refusal comes within a step."""
    async with connected(server) as connection:
        reply = await connection.request(post("/v1/chat/completions", {"model": "echo", "messages": SAID, "n": 10**6}))

    assert (reply.status, reply.json()["error"]["param"]) == (400, "n")


async def test_request_ids_are_echoed_or_made(client):
    asked = client.with_options(default_headers={"x-request-id": "abc-123"})
    echoed = await asked.chat.completions.with_raw_response.create(model="echo", messages=SAID)
    made = await client.chat.completions.with_raw_response.create(model="echo", messages=SAID)
    harmful = client.with_options(default_headers={"x-request-id": "a b\t<script>"})
    replaced = await harmful.chat.completions.with_raw_response.create(model="echo", messages=SAID)

    assert echoed.headers["x-request-id"] == "abc-123"
    assert len(made.headers["x-request-id"]) >= 32
    assert replaced.headers["x-request-id"] not in ("a b\t<script>", made.headers["x-request-id"])


async def test_two_requests_with_one_request_id_are_still_two(client):
    """Engines tell requests apart by id, so a client's header must not decide it."""
    asked = client.with_options(default_headers={"x-request-id": "same"})
    first = await asked.chat.completions.create(model="echo", messages=SAID)
    second = await asked.chat.completions.create(model="echo", messages=SAID)

    assert first.id != second.id


async def test_the_sdk_turns_an_error_within_a_stream_into_an_exception(serving):
    """G2: after the error event there is nothing."""
    toml = '[controller]\n[api]\n[[worker]]\nbackend = "echo"\noptions.fail_at = 2'
    async with serving(toml) as server, AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        got = []
        stream = await client.chat.completions.create(model="echo", messages=SAID, stream=True)
        with pytest.raises(APIError) as failed:  # noqa: PT012 - the loop is what fails
            async for chunk in stream:
                got.append(chunk)

    assert text_of(got) == "to be"
    assert failed.value.code == "engine_failed"


async def test_what_stopped_an_answer_is_told_as_vllm_tells_it(client):
    asked = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}
    stopped = await client.chat.completions.create(**asked, stop=["two"])
    stream = await client.chat.completions.create(**asked, stop=["two"], stream=True)
    ended = await client.chat.completions.create(**asked)

    assert stopped.choices[0].stop_reason == "two"
    assert [chunk.choices[0] async for chunk in stream][-1].stop_reason == "two"
    assert not hasattr(ended.choices[0], "stop_reason")
