"""Chat: the model's template, tools, and calls."""

from __future__ import annotations

import msgspec
import pytest

from fastchat_serve.engine import Capability, ChatPrompt, Message, TextPart, ToolCall, ToolSpec
from fastchat_serve.errors import InvalidRequest
from fastchat_serve.testing.answers import Answer
from fastchat_serve.testing.marks import in_both_forms, needs
from fastchat_serve.testing.subject import Subject

pytestmark = needs(Capability.CHAT)

SYSTEM = Message(role="system", content="Answer like a lighthouse keeper.")
QUESTION = Message(role="user", content="Which ships passed today?")
REPLY = Message(role="assistant", content="Two schooners, both bound north.")
FURTHER = Message(role="user", content="And at night?")

WEATHER = ToolSpec(
    "get_weather",
    "Tells the weather of a place",
    {"type": "object", "properties": {"place": {"type": "string", "maxLength": 12}}, "required": ["place"]},
)
CLOCK = ToolSpec("get_time", "Tells the time", {"type": "object", "properties": {}})
CALL = ToolCall("call_1", "get_weather", '{"place": "Oslo"}')

CALL_TOKENS = 200
"""For an answer that makes one call."""


async def render(subject: Subject, prompt: ChatPrompt) -> str:
    return await subject.renderer.render(prompt)


def in_order(text: str, *pieces: str) -> bool:
    """Whether `text` holds all `pieces`, one after the other."""
    start = 0
    for piece in pieces:
        start = text.find(piece, start)
        if start < 0:
            return False
        start += len(piece)
    return True


@needs(Capability.RENDER)
async def test_every_turn_is_rendered(subject: Subject) -> None:
    """The template shows system, user and assistant turns, all of them and in order."""
    rendered = await render(subject, ChatPrompt((SYSTEM, QUESTION, REPLY, FURTHER)))
    assert in_order(rendered, *(turn.text for turn in (SYSTEM, QUESTION, REPLY, FURTHER))), rendered


@needs(Capability.RENDER)
async def test_parts_are_rendered(subject: Subject) -> None:
    """Content in parts is rendered, every part in order."""
    parts = (TextPart("Which ships passed today?"), TextPart("And which passed yesterday?"))
    rendered = await render(subject, ChatPrompt((Message(role="user", content=parts),)))
    assert in_order(rendered, *(part.text for part in parts)), rendered


@needs(Capability.RENDER)
async def test_a_begun_answer_is_left_open(subject: Subject) -> None:
    """With `continue_final` the prompt ends with the last message, so that the answer goes on from there."""
    begun = Message(role="assistant", content="Two schooners and")
    rendered = await render(subject, ChatPrompt((QUESTION, begun), continue_final=True))
    assert rendered.endswith("Two schooners and"), rendered


@needs(Capability.RENDER, Capability.TOOLS)
async def test_tools_are_rendered(subject: Subject) -> None:
    """The template shows tools, calls that were made, and their results."""
    result = Message(role="tool", content="rain all day", tool_call_id=CALL.id, name=CALL.name)
    turns = (QUESTION, Message(role="assistant", tool_calls=(CALL,)), result, FURTHER)
    rendered = await render(subject, ChatPrompt(turns, tools=(WEATHER, CLOCK)))
    for piece in ("get_weather", "get_time", "Tells the weather of a place", "Oslo", "rain all day"):
        assert piece in rendered, f"{piece!r} is not in {rendered!r}"


@needs(Capability.GENERATE)
async def test_every_turn_counts(subject: Subject) -> None:
    """A turn more is a longer prompt."""
    counts = []
    for turns in ((QUESTION,), (SYSTEM, QUESTION), (SYSTEM, QUESTION, REPLY, FURTHER)):
        answer = await subject.answer(subject.request(ChatPrompt(turns), max_tokens=2))
        counts.append(answer.usage.prompt_tokens)
    assert counts == sorted(set(counts)), f"prompt tokens of 1, 2 and 4 turns: {counts}"


@needs(Capability.GENERATE)
async def test_options_of_no_template_are_refused(subject: Subject) -> None:
    """A template option that the template does not know is an `InvalidRequest`; nothing is ignored."""
    prompt = ChatPrompt((QUESTION,), template_options={"no_template_knows_this": True})
    assert isinstance(await subject.refusal(subject.request(prompt)), InvalidRequest)


@needs(Capability.GENERATE)
async def test_a_conversation_of_nothing_is_refused(subject: Subject) -> None:
    """A `ChatPrompt` without messages is an `InvalidRequest`."""
    assert isinstance(await subject.refusal(subject.request(ChatPrompt(()))), InvalidRequest)


@needs(Capability.GENERATE, Capability.TOOLS)
async def test_tools_can_be_offered(subject: Subject) -> None:
    """A conversation with tools, calls and results is answered, and the tools are in its prompt."""
    without = await subject.answer(subject.request(ChatPrompt((QUESTION,)), max_tokens=4))
    with_tools = await subject.answer(subject.request(ChatPrompt((QUESTION,), tools=(WEATHER, CLOCK)), max_tokens=4))
    assert with_tools.usage.prompt_tokens > without.usage.prompt_tokens


def assert_calls(subject: Subject, answer: Answer, *names: str) -> None:
    """The answer calls tools of these names and no others, with arguments that are JSON objects."""
    calls = [(call.name, call.arguments) for call in answer.tool_calls]
    if not subject.can(Capability.TOOL_CALLS):
        calls = subject.parsed_calls(answer.text)
    assert calls, f"there is no call in {answer.text!r}"
    for name, arguments in calls:
        assert name in names
        assert isinstance(msgspec.json.decode(arguments), dict)


@needs(Capability.GENERATE, Capability.TOOL_CALLS)
@in_both_forms
async def test_calls_are_calls_of_the_tools(subject: Subject, form: str) -> None:
    """What is in `Chunk.tool_calls` has an id, the name of a tool that was offered, and JSON for arguments."""
    prompt = ChatPrompt((Message(role="user", content="What is the weather in Oslo?"),), tools=(WEATHER,))
    answer = await subject.answer(subject.request(prompt, max_tokens=CALL_TOKENS), form)
    if not answer.tool_calls:
        pytest.skip("the model called nothing")
    assert all(call.id for call in answer.tool_calls)
    assert_calls(subject, answer, WEATHER.name)


@needs(Capability.GENERATE, Capability.TOOL_CHOICE)
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_choice_of_tool_is_kept(subject: Subject, seed: int) -> None:
    """With `tool_choice` the model calls that tool, or any if it is empty, also at temperature 1."""
    for choice, allowed in ((CLOCK.name, [CLOCK.name]), ("", [CLOCK.name, WEATHER.name])):
        prompt = ChatPrompt((QUESTION,), tools=(WEATHER, CLOCK), tool_choice=choice)
        answer = await subject.answer(subject.request(prompt, max_tokens=CALL_TOKENS, temperature=1.0, seed=seed))
        if answer.finish_reason == "length":
            subject.note("an answer was too long")
            continue
        assert_calls(subject, answer, *allowed)
