"""Answers that are held to a form, beside others that are not."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

pytest.importorskip("mlx_lm", reason="mlx is not installed here")

from mlx_answers import PROMPTS, Opened, answer, answers, asking

from fastchat_serve import (
    ChatPrompt,
    Choice,
    Constraint,
    EngineError,
    Grammar,
    InvalidRequest,
    JsonObject,
    JsonSchema,
    Message,
    Regex,
    ToolSpec,
)
from fastchat_serve.text import Matcher

pytestmark = pytest.mark.anyio

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "hot": {"type": "boolean"}},
    "required": ["city", "hot"],
    "additionalProperties": False,
}


WEATHER = ToolSpec(
    "weather",
    "What the weather is like",
    {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
)


def is_city(text: str) -> bool:
    found = json.loads(text)
    return found.keys() == {"city", "hot"} and found["city"] in ("Paris", "Rome") and type(found["hot"]) is bool


@pytest.mark.parametrize(
    ("constraint", "holds"),
    [
        (Choice(("yes", "no", "maybe so")), lambda text: text in ("yes", "no", "maybe so")),
        (JsonObject(), lambda text: type(json.loads(text)) is dict),
        (JsonSchema(CITY), is_city),
        (Regex("[a-c]{3}-[0-9]{2,4}"), lambda text: re.fullmatch("[a-c]{3}-[0-9]{2,4}", text)),
        (Grammar('root ::= "<" [0-9]{2} ">"'), lambda text: re.fullmatch("<[0-9]{2}>", text)),
    ],
    ids=["choice", "object", "schema", "regex", "grammar"],
)
async def test_every_answer_satisfies_its_constraint(opened: Opened, constraint: Constraint, holds: object) -> None:
    assert callable(holds)
    requests = [
        asking(said, constraint=constraint, temperature=1.0, seed=seed, max_tokens=200)
        for said in PROMPTS[:2]
        for seed in range(4)
    ]
    async with opened() as engine:
        found = [got for got in await answers(engine, requests) if got.last.finish_reason == "stop"]

    assert found
    assert all(holds(got.text) for got in found)


async def test_an_answer_can_be_made_to_call_a_tool(opened: Opened) -> None:
    prompt = ChatPrompt((Message(role="user", content="Hello!"),), tools=(WEATHER,), tool_choice="weather")
    async with opened() as engine:
        got = await answer(engine, asking(prompt, temperature=1.0, max_tokens=200))
        with pytest.raises(InvalidRequest, match="no other form"):
            await answer(engine, asking(prompt, constraint=JsonObject()))

    call = json.loads(got.text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert call["name"] == "weather"
    assert call["arguments"].keys() == {"city"}


async def test_others_in_the_batch_are_not_held_to_it(opened: Opened) -> None:
    async with opened() as engine:
        alone = await answer(engine, asking())
        held, free = await answers(engine, [asking(constraint=Choice(("yes",))), asking()])

    assert (held.text, free.token_ids) == ("yes", alone.token_ids)


async def test_an_answer_does_not_end_before_min_tokens_if_it_can_go_on(opened: Opened) -> None:
    digits = Regex("[0-9]{1,30}")
    async with opened() as engine:
        got = await answer(engine, asking(constraint=digits, min_tokens=8, temperature=1.0))
        short = await answer(engine, asking(constraint=Choice(("yes",)), min_tokens=8))

    assert len(got.token_ids) >= 8
    assert short.text == "yes"


async def test_a_constraint_that_is_wrong_is_refused(opened: Opened) -> None:
    async with opened() as engine:
        for constraint in (Regex("(["), Grammar("no rule"), JsonSchema({"type": "nonsense"}), Choice(())):
            with pytest.raises(InvalidRequest):
                await answer(engine, asking(constraint=constraint))


async def test_a_constraint_that_fails_ends_its_own_answer_only(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Matcher.write_mask

    def fail(self: Matcher, row: Any, **options: Any) -> None:
        if options:  # not while it is compiled
            raise EngineError("The answer cannot go on under its constraint.")
        write(self, row)

    async with opened() as engine:
        alone = await answer(engine, asking(min_tokens=4))
        monkeypatch.setattr(Matcher, "write_mask", fail)
        broken = engine.generate_stream(asking(constraint=JsonObject(), min_tokens=4))
        neighbour = engine.generate_stream(asking(min_tokens=4))
        first = await anext(neighbour)
        with pytest.raises(EngineError, match="cannot go on"):
            await anext(broken)
        rest = [chunk async for chunk in neighbour]

    assert tuple(token for chunk in (first, *rest) for token in chunk.token_ids) == alone.token_ids
