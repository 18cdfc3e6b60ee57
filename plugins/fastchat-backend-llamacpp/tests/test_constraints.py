"""Answers that keep to a schema, pattern, grammar or choice, on llama.cpp's own vocabulary."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from llamacpp_answers import Opened, answer, asking, saying

from fastchat_serve import ChatPrompt, Choice, Grammar, InvalidRequest, JsonObject, JsonSchema, Message, Regex, ToolSpec

pytestmark = pytest.mark.anyio

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


async def test_json_is_valid_at_any_temperature_and_beside_others(opened: Opened) -> None:
    requests = [
        asking(saying("Who are you?"), temperature=1.3, seed=seed, max_tokens=200, constraint=JsonSchema(SCHEMA))
        for seed in range(16)
    ]
    async with opened() as engine:
        found = await asyncio.gather(*(answer(engine, request) for request in requests))
    for said in found:
        if said.last.finish_reason == "length":  # a number without end
            continue
        assert json.loads(said.text).keys() == {"name", "age"}
    assert sum(said.last.finish_reason == "stop" for said in found) >= 12


async def test_every_kind_is_kept(opened: Opened) -> None:
    prompt = saying("Say something.")
    async with opened() as engine:
        pattern = await answer(engine, asking(prompt, temperature=1.0, constraint=Regex("[a-f]{3}-[0-9]{2}")))
        assert re.fullmatch("[a-f]{3}-[0-9]{2}", pattern.text)
        choice = await answer(engine, asking(prompt, max_tokens=20, constraint=Choice(("naïve 🪿", "yes"))))
        assert choice.text in ("naïve 🪿", "yes")
        grammar = await answer(engine, asking(prompt, constraint=Grammar('root ::= "(" [0-9]{2,4} ")"')))
        assert re.fullmatch(r"\([0-9]{2,4}\)", grammar.text)
        thing = await answer(engine, asking(prompt, max_tokens=200, constraint=JsonObject()))
        assert isinstance(json.loads(thing.text), dict)


async def test_a_constrained_answer_goes_on_after_any_of_its_tokens(opened: Opened) -> None:
    settings = {"temperature": 1.0, "seed": 3, "max_tokens": 60, "constraint": JsonSchema(SCHEMA)}
    async with opened() as engine:
        whole = await answer(engine, asking(saying("Hello!"), **settings))
        for index in range(len(whole.ids)):
            rest = await answer(engine, asking(saying("Hello!"), resume_token_ids=tuple(whole.ids[:index]), **settings))
            assert rest.ids == whole.ids[index:]


async def test_a_demanded_tool_call_is_one(opened: Opened) -> None:
    tool = ToolSpec("look_up", parameters={"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}})
    prompt = ChatPrompt((Message(role="user", content="Hello!"),), tools=(tool,), tool_choice="look_up")
    async with opened() as engine:
        said = await answer(engine, asking(prompt, max_tokens=200))
    call = json.loads(said.text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert (call["name"], type(call["arguments"])) == ("look_up", dict)
    assert said.last.finish_reason == "stop"


async def test_min_tokens_does_not_break_a_constraint(opened: Opened) -> None:
    async with opened() as engine:
        said = await answer(engine, asking(max_tokens=20, min_tokens=15, constraint=Choice(("yes",))))
    assert (said.text, said.last.finish_reason) == ("yes", "stop")


@pytest.mark.parametrize(
    "constraint",
    [
        Grammar("root ::= ("),
        Grammar('start ::= "a"'),
        Grammar("root ::= missing"),
        Grammar('root ::= root "a"' + " " + "(" * 5000),
        Regex("(((a{500}){500}){500}"),
        Regex("["),
        JsonSchema({"type": "nonsense"}),
        JsonSchema({"$ref": "#/nowhere"}),
        Choice(()),
    ],
)
async def test_what_is_no_constraint_is_refused_and_the_engine_lives(
    opened: Opened, constraint: Grammar | Regex | JsonSchema | Choice
) -> None:
    async with opened() as engine:
        with pytest.raises(InvalidRequest):
            await answer(engine, asking(constraint=constraint))
        assert (await answer(engine, asking())).ids


async def test_resumed_tokens_against_the_constraint_are_an_error(opened: Opened) -> None:
    async with opened() as engine:
        with pytest.raises(InvalidRequest, match="breaks the constraint"):
            await answer(engine, asking(constraint=Choice(("yes",)), resume_token_ids=(700,)))
        assert (await answer(engine, asking())).ids
