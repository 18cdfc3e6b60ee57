"""What is sent: everything a request holds, in the upstream's words, with our key and nobody else's."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from raw_upstream import DONE, PATIENCE_S, Opened, RawUpstream, Request, answer_of, asking, chat_event, head

from fastchat_backend_openai import OpenAIOptions
from fastchat_serve import (
    Capability,
    ChatPrompt,
    Choice,
    Constraint,
    ContextOverflow,
    EmbedRequest,
    GenerateRequest,
    Grammar,
    JsonObject,
    JsonSchema,
    Message,
    Regex,
    SamplingParams,
    Secret,
    StartupError,
    TextPart,
    TextPrompt,
    TokenPrompt,
    ToolCall,
    ToolSpec,
    Unsupported,
)

pytestmark = pytest.mark.anyio


async def answers(request: Request, writer: asyncio.StreamWriter) -> None:
    body = chat_event("x", finish="stop", usage=(1, 1)) + DONE
    writer.write(head(content_length=str(len(body))) + body)


async def sent(behind: Any, request: GenerateRequest, **options: Any) -> Any:
    """The body that `request` becomes."""
    async with behind(answers, **options) as (engine, upstream):
        await answer_of(engine, request)
    return upstream.requests[0].json()


async def refusal(behind: Any, request: GenerateRequest, **options: Any) -> Unsupported:
    async with behind(answers, **options) as (engine, upstream):
        with pytest.raises(Unsupported) as caught:
            await answer_of(engine, request)
        assert not upstream.requests
    return caught.value


async def test_a_conversation_is_passed_on_whole(behind: Any) -> None:
    call = ToolCall("c1", "weather", '{"city":"Rome"}')
    prompt = ChatPrompt(
        (
            Message(role="user", content=(TextPart("a"), TextPart("b")), name="ann"),
            Message(role="assistant", tool_calls=(call,)),
            Message(role="tool", content="sunny", tool_call_id="c1"),
        ),
        tools=(ToolSpec("weather", "of a city", {"type": "object"}),),
        tool_choice="weather",
    )

    body = await sent(behind, asking(prompt=prompt))

    assert body["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "ann"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
            ],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
    ]
    function = {"name": "weather", "description": "of a city", "parameters": {"type": "object"}}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert (body["model"], body["stream"], body["stream_options"]) == ("m", True, {"include_usage": True})


async def test_an_answer_as_long_as_the_context_is_refused(behind: Any) -> None:
    request = asking(sampling=SamplingParams(max_tokens=100))
    async with behind(answers, context_length=100) as (engine, upstream):
        with pytest.raises(ContextOverflow):
            await answer_of(engine, request)
        assert not upstream.requests
    assert (await sent(behind, request))["max_tokens"] == 100  # of an unknown context, nothing is known


async def test_standard_sampling_is_sent_to_everyone(behind: Any) -> None:
    sampling = SamplingParams(
        temperature=0.5,
        top_p=0.9,
        seed=2**63 + 5,
        max_tokens=7,
        stop=("x",),
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logit_bias={5: 1.0},
    )

    body = await sent(behind, asking(sampling=sampling, logprobs=2))

    assert {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 5,
        "max_tokens": 7,
        "stop": ["x"],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "logit_bias": {"5": 1.0},
        "logprobs": True,
        "top_logprobs": 2,
    }.items() <= body.items()


async def test_extensions_have_the_dialects_names_and_are_sent_even_when_off(behind: Any) -> None:
    assert "top_k" not in await sent(behind, asking(), dialect="openai")
    vllm = await sent(behind, asking(sampling=SamplingParams(seed=2**64 - 1, min_tokens=2)), dialect="vllm")
    assert (vllm["top_k"], vllm["min_p"], vllm["repetition_penalty"], vllm["min_tokens"]) == (-1, 0, 1, 2)
    assert (vllm["seed"], vllm["return_token_ids"]) == (-1, True)
    llamacpp = await sent(behind, asking(sampling=SamplingParams(repetition_penalty=1.2)), dialect="llamacpp")
    assert (llamacpp["top_k"], llamacpp["repeat_penalty"]) == (0, 1.2)


async def test_vllm_is_asked_for_one_alternative_more_since_it_counts_the_drawn_token(behind: Any) -> None:
    wanted = {count: await sent(behind, asking(logprobs=count), dialect="vllm") for count in (0, 4, 20)}

    assert {count: body["top_logprobs"] for count, body in wanted.items()} == {0: 0, 4: 5, 20: 20}


@pytest.mark.parametrize("dialect", ["openai", "vllm", "sglang", "llamacpp", "ollama", "lmstudio", "fastchat-serve"])
async def test_whatever_a_dialect_declares_is_sent(behind: Any, dialect: str) -> None:
    """Nothing declared is ignored: asking for it changes what is sent, under some name."""
    wanted = {
        Capability.TOP_K: {"top_k": 3},
        Capability.MIN_P: {"min_p": 0.2},
        Capability.PENALTIES: {"presence_penalty": 0.3},
        Capability.REPETITION_PENALTY: {"repetition_penalty": 1.3},
        Capability.LOGIT_BIAS: {"logit_bias": {1: 1.0}},
        Capability.MIN_TOKENS: {"min_tokens": 3},
        Capability.STOP_TOKEN_IDS: {"stop_token_ids": (3,)},
        Capability.IGNORE_EOS: {"ignore_eos": True},
    }
    plain = await sent(behind, asking(), dialect=dialect)
    async with behind(answers, dialect=dialect) as (engine, _):
        declared = engine.info.capabilities
    for capability in declared & set(wanted):
        request = asking(sampling=SamplingParams(**wanted[capability]))  # type: ignore[arg-type]
        assert await sent(behind, request, dialect=dialect) != plain, capability


@pytest.mark.parametrize(
    ("dialect", "constraint", "fields"),
    [
        ("openai", JsonObject(), {"response_format": {"type": "json_object"}}),
        (
            "openai",
            JsonSchema({"type": "object"}),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        ("vllm", Regex("a+"), {"structured_outputs": {"regex": "a+"}}),
        ("vllm", Choice(("a", "b")), {"structured_outputs": {"choice": ["a", "b"]}}),
        ("vllm", Grammar("root ::= x"), {"structured_outputs": {"grammar": "root ::= x"}}),
        ("sglang", Regex("a+"), {"regex": "a+"}),
        ("sglang", Grammar("root ::= x"), {"ebnf": "root ::= x"}),
        ("llamacpp", Grammar("root ::= x"), {"grammar": "root ::= x"}),
    ],
)
async def test_constraints_have_the_dialects_form(
    behind: Any, dialect: str, constraint: Constraint, fields: dict[str, Any]
) -> None:
    body = await sent(behind, asking(constraint=constraint), dialect=dialect)

    assert fields.items() <= body.items()


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        ("vllm", {"structured_outputs": {"json": {"type": "object"}}}),
        ("sglang", {"json_schema": '{"type":"object"}'}),
        ("llamacpp", {"json_schema": {"type": "object"}}),
    ],
)
async def test_completions_can_be_constrained_too(behind: Any, dialect: str, fields: dict[str, Any]) -> None:
    body = await sent(behind, asking(prompt=TextPrompt("x"), constraint=JsonObject()), dialect=dialect)

    assert fields.items() <= body.items()


async def test_what_a_dialect_has_no_words_for_is_refused_by_name(behind: Any) -> None:
    continued = ChatPrompt((Message(role="assistant", content="a"),), continue_final=True)
    thinking = ChatPrompt((Message(role="user", content="a"),), template_options={"enable_thinking": True})

    assert (await refusal(behind, asking(prompt=continued))).param == "continue_final_message"
    assert (await refusal(behind, asking(prompt=thinking), dialect="vllm")).param == "chat_template_kwargs"
    schema = asking(prompt=TextPrompt("a"), constraint=JsonObject())
    assert (await refusal(behind, schema)).param == "response_format"


async def test_template_variables_pass_if_the_operator_allows_them(behind: Any) -> None:
    thinking = ChatPrompt((Message(role="user", content="a"),), template_options={"enable_thinking": True})

    body = await sent(behind, asking(prompt=thinking), dialect="vllm", chat_template_kwargs=("enable_thinking",))

    assert body["chat_template_kwargs"] == {"enable_thinking": True}


async def test_prompts_of_text_and_tokens_go_to_completions(behind: Any) -> None:
    assert (await sent(behind, asking(prompt=TextPrompt("abc"), logprobs=1)))["prompt"] == "abc"
    body = await sent(behind, asking(prompt=TokenPrompt((1, 2)), logprobs=1))
    assert (body["prompt"], body["logprobs"]) == ([1, 2], 1)


async def test_clients_of_different_keys_share_no_cache(behind: Any) -> None:
    async with behind(answers, dialect="vllm") as (engine, upstream):
        for tenant in ("a", "a", "b"):
            await answer_of(engine, asking(tenant=tenant))

    first, same, other = (request.json()["cache_salt"] for request in upstream.requests)
    assert first == same != other


async def test_the_key_goes_to_the_upstream_and_is_shown_nowhere(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = "sk-a-very-secret-key"
    async with RawUpstream(answers) as upstream:
        options = {"api_key": Secret(key), "extra_headers": {"X-Org": Secret("org-secret")}}
        async with opened(f"{upstream.url}/v1", "m", lazy=True, **options) as engine:
            await answer_of(engine)
            shown = f"{engine!r} {engine.info!r} {OpenAIOptions(base_url=upstream.url, **options)!r}"

    assert upstream.requests[0].headers["authorization"] == f"Bearer {key}"
    assert upstream.requests[0].headers["x-org"] == "org-secret"
    assert "secret" not in shown + caplog.text


async def test_without_a_key_none_is_sent(behind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-someone-else")
    async with behind(answers) as (engine, upstream):
        await answer_of(engine)

    assert "authorization" not in upstream.requests[0].headers


async def test_a_key_can_come_from_the_environment(behind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-mine")
    async with behind(answers, api_key_env="MY_KEY") as (engine, upstream):
        await answer_of(engine)

    assert upstream.requests[0].headers["authorization"] == "Bearer sk-mine"
    with pytest.raises(StartupError, match="NO_KEY"):
        async with behind(answers, api_key_env="NO_KEY"):
            pass


async def test_no_more_connections_are_made_than_allowed(behind: Any) -> None:
    release = asyncio.Event()

    async def waits(request: Request, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        await answers(request, writer)

    async with behind(waits, max_connections=2) as (engine, upstream):
        running = [asyncio.ensure_future(answer_of(engine)) for _ in range(6)]
        async with asyncio.timeout(PATIENCE_S):
            while len(upstream.requests) < 2:  # noqa: ASYNC110 - nothing of ours tells of it
                await asyncio.sleep(0.001)
            assert (engine.current_load().running, engine.current_load().waiting) == (2, 4)
            release.set()
            await asyncio.gather(*running)

        assert upstream.connections == 2


async def test_a_proxy_is_asked_with_whole_urls(opened: Opened) -> None:
    async with (
        RawUpstream(answers) as proxy,
        opened("http://models.example:81/v1", "m", lazy=True, proxy=proxy.url) as engine,
    ):
        await answer_of(engine)

    assert proxy.requests[0].line == "POST http://models.example:81/v1/chat/completions HTTP/1.1"
    assert proxy.requests[0].headers["host"] == "models.example:81"


async def test_embeddings_that_are_mixed_or_cannot_be_cut_are_refused(behind: Any) -> None:
    async with behind(answers) as (engine, _):
        mixed = EmbedRequest(id="e", inputs=(TextPrompt("a"), TokenPrompt((1,))))
        with pytest.raises(Unsupported, match="mixed"):
            await engine.embed(mixed)
        with pytest.raises(Unsupported, match="truncated"):
            await engine.embed(EmbedRequest(id="e", inputs=(TextPrompt("a"),), truncate=True))
