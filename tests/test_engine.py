"""The contract's own words: what a request needs of an engine, and what the types promise."""

from __future__ import annotations

import msgspec
import pytest

from fastchat_serve import (
    CONTRACT,
    Capability,
    ChatPrompt,
    Choice,
    Chunk,
    Engine,
    Grammar,
    JsonObject,
    JsonSchema,
    Message,
    PushEngine,
    Regex,
    SamplingParams,
    TextPart,
    ToolSpec,
)
from fastchat_serve.engine import required_capabilities
from fastchat_serve.engines.echo import EchoEngine
from tests.sinks import a_request

HELLO = (Message(role="user", content="hello"),)


def test_this_is_contract_one() -> None:
    assert CONTRACT == 1


@pytest.mark.parametrize(
    ("request_", "needed"),
    [
        (a_request(), {Capability.TEXT_PROMPT}),
        (a_request(b"ids", stop=("x",), temperature=0.5, top_p=0.5, priority=2), {Capability.TOKEN_PROMPT}),
        (a_request(b"ids", top_k=3), {Capability.TOKEN_PROMPT, Capability.TOP_K}),
        (a_request(b"ids", min_p=0.1), {Capability.TOKEN_PROMPT, Capability.MIN_P}),
        (a_request(b"ids", presence_penalty=0.1), {Capability.TOKEN_PROMPT, Capability.PENALTIES}),
        (a_request(b"ids", frequency_penalty=-1.0), {Capability.TOKEN_PROMPT, Capability.PENALTIES}),
        (a_request(b"ids", repetition_penalty=1.1), {Capability.TOKEN_PROMPT, Capability.REPETITION_PENALTY}),
        (a_request(b"ids", min_tokens=1), {Capability.TOKEN_PROMPT, Capability.MIN_TOKENS}),
        (a_request(b"ids", stop_token_ids=(1,)), {Capability.TOKEN_PROMPT, Capability.STOP_TOKEN_IDS}),
        (a_request(b"ids", ignore_eos=True), {Capability.TOKEN_PROMPT, Capability.IGNORE_EOS}),
        (a_request(b"ids", echo=True), {Capability.TOKEN_PROMPT, Capability.ECHO}),
        (a_request(prompt_logprobs=0), {Capability.TEXT_PROMPT, Capability.PROMPT_LOGPROBS}),
        (a_request(logprobs=0), {Capability.TEXT_PROMPT, Capability.LOGPROBS}),
        (a_request(logit_bias={1: -100.0}), {Capability.TEXT_PROMPT, Capability.LOGIT_BIAS}),
        (a_request(logit_bias={}), {Capability.TEXT_PROMPT}),
        (a_request(resume_token_ids=(1,)), {Capability.TEXT_PROMPT, Capability.RESUME_SAMPLED}),
        (a_request(resume_token_ids=(1,), temperature=0.0), {Capability.TEXT_PROMPT, Capability.RESUME_GREEDY}),
        (a_request(adapter="law"), {Capability.TEXT_PROMPT, Capability.ADAPTERS}),
        (a_request(constraint=JsonObject()), {Capability.TEXT_PROMPT, Capability.JSON_OBJECT}),
        (a_request(constraint=JsonSchema({})), {Capability.TEXT_PROMPT, Capability.JSON_SCHEMA}),
        (a_request(constraint=Regex("a+")), {Capability.TEXT_PROMPT, Capability.REGEX}),
        (a_request(constraint=Grammar("root ::= 'a'")), {Capability.TEXT_PROMPT, Capability.GRAMMAR}),
        (a_request(constraint=Choice(("a", "b"))), {Capability.TEXT_PROMPT, Capability.CHOICE}),
        (msgspec.structs.replace(a_request(), prompt=ChatPrompt(HELLO)), {Capability.CHAT}),
        (
            msgspec.structs.replace(a_request(), prompt=ChatPrompt(HELLO, tools=(ToolSpec("f"),))),
            {Capability.CHAT, Capability.TOOLS},
        ),
        (
            msgspec.structs.replace(a_request(), prompt=ChatPrompt(HELLO, tools=(ToolSpec("f"),), tool_choice="f")),
            {Capability.CHAT, Capability.TOOLS, Capability.TOOL_CHOICE},
        ),
    ],
)
def test_a_request_needs_what_it_uses_and_nothing_else(request_, needed: set[Capability]) -> None:  # type: ignore[no-untyped-def]
    assert required_capabilities(request_) == {Capability.GENERATE} | needed


def test_every_constraint_has_a_capability() -> None:
    kinds = (JsonObject(), JsonSchema({}), Regex(""), Grammar(""), Choice(()))

    assert len({required_capabilities(a_request(constraint=kind)) for kind in kinds}) == len(kinds)


def test_a_message_has_one_text_however_it_came() -> None:
    assert Message(role="user", content="a").text == "a"
    assert Message(role="user", content=(TextPart("a"), TextPart("b"))).text == "a\nb"
    assert Message(role="assistant").text == ""


def test_a_default_turns_everything_off() -> None:
    off = SamplingParams()

    assert (off.temperature, off.top_p, off.top_k, off.min_p, off.repetition_penalty) == (1.0, 1.0, 0, 0.0, 1.0)
    assert (off.presence_penalty, off.frequency_penalty, off.logit_bias, off.stop, off.min_tokens) == (
        0,
        0,
        None,
        (),
        0,
    )


def test_a_chunk_says_only_what_it_is_told() -> None:
    assert Chunk() == Chunk(text="", token_ids=(), finish_reason=None, usage=None)
    with pytest.raises(AttributeError):
        Chunk().text = "x"  # type: ignore[misc]


def test_an_engine_is_known_by_its_form() -> None:
    class PullOnly(EchoEngine):
        start = None  # type: ignore[assignment]

    assert isinstance(EchoEngine(), PushEngine)
    assert isinstance(PullOnly(), Engine)
    assert not isinstance(PullOnly(), PushEngine)
    assert not isinstance(object(), Engine)
