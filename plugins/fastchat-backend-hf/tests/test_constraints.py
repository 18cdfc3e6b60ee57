"""Constrained answers: masks follow every token, beside rows that have none, and nothing else changes."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from hf_answers import Opened, answer, asking
from transformers import PreTrainedTokenizerFast

from fastchat_backend_hf.masks import forbid
from fastchat_serve import (
    Capability,
    Choice,
    Constraint,
    EngineError,
    Grammar,
    InvalidRequest,
    JsonObject,
    JsonSchema,
    Regex,
    TextPrompt,
)
from fastchat_serve.text import Matcher

pytestmark = pytest.mark.anyio

POINT = JsonSchema(
    {
        "type": "object",
        "properties": {
            "x": {"type": "integer", "minimum": 0, "maximum": 99},
            "name": {"type": "string", "maxLength": 6},
            "kind": {"enum": ["round", None]},
        },
        "required": ["x", "kind"],
        "additionalProperties": False,
    }
)
NESTED = Grammar('root ::= "(" root ")" | [0-9]{1,3}')


def matches(constraint: Constraint, text: str) -> bool:
    match constraint:
        case JsonSchema():
            value = json.loads(text)
            return 0 <= value["x"] <= 99 and value["kind"] in ("round", None) and len(value.get("name", "")) <= 6
        case Regex(pattern=pattern):
            return bool(re.fullmatch(pattern, text))
        case Choice(options=options):
            return text in options
        case Grammar():
            return bool(re.fullmatch(r"\(*[0-9]{1,3}\)*", text)) and text.count("(") == text.count(")")
    raise AssertionError(constraint)


KINDS = [POINT, Regex("[a-c]{2,4}-?[0-9]é"), Choice(("yes", "no", "no way", "👍")), NESTED]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.8])
async def test_every_kind_holds_beside_free_answers_that_it_does_not_change(opened: Opened, temperature: float) -> None:
    free = [asking((9, i), id=f"free{i}", temperature=temperature, seed=i, max_tokens=30) for i in range(4)]
    async with opened() as engine:
        alone = [await answer(engine, request) for request in free]
        bound = [
            asking((5, i), id=f"{i}", temperature=temperature, seed=i, max_tokens=400, constraint=KINDS[i % len(KINDS)])
            for i in range(16)
        ]
        answers = await asyncio.gather(*(answer(engine, request) for request in [*bound, *free]))

    assert [got.ids for got in answers[len(bound) :]] == [got.ids for got in alone]
    for request, got in zip(bound, answers, strict=False):
        assert request.constraint is not None
        if got.last.finish_reason == "stop" or not isinstance(request.constraint, Grammar):
            assert matches(request.constraint, got.text), got.text


async def test_a_constraint_does_not_depend_on_batch_mates_and_can_be_resumed(opened: Opened) -> None:
    async with opened() as engine:
        request = asking((5, 6), temperature=1.0, seed=3, max_tokens=300, constraint=POINT)
        whole = await answer(engine, request)
        others = [asking((7, i), id=str(i), temperature=1.0, seed=i, constraint=NESTED) for i in range(5)]
        beside, *_ = await asyncio.gather(*(answer(engine, each) for each in (request, *others)))
        assert beside.ids == whole.ids
        for cut in range(1, len(whole.ids)):
            resumed = await answer(
                engine,
                asking(
                    (5, 6),
                    temperature=1.0,
                    seed=3,
                    max_tokens=300,
                    constraint=POINT,
                    resume_token_ids=tuple(whole.ids[:cut]),
                ),
            )
            assert whole.ids[cut:] == resumed.ids
            assert whole.text.endswith(resumed.text)
            assert resumed.last.usage is not None
            assert resumed.last.usage.completion_tokens == len(whole.ids)


async def test_an_answer_that_breaks_its_constraint_is_not_resumed(opened: Opened) -> None:
    async with opened() as engine:
        with pytest.raises(InvalidRequest) as caught:
            await answer(engine, asking(constraint=Choice(("yes",)), resume_token_ids=(9, 9, 9)))
    assert caught.value.param == "resume_token_ids"


async def test_the_end_waits_for_min_tokens_unless_nothing_else_may_come(
    opened: Opened, tokenizer: PreTrainedTokenizerFast
) -> None:
    async with opened() as engine:
        end = tokenizer.eos_token_id
        likely = {end: 100.0}
        free = await answer(engine, asking(constraint=Regex("[a-z ]*"), logit_bias=likely))
        later = await answer(
            engine, asking(constraint=Regex("[a-z ]*"), logit_bias=likely, min_tokens=6, max_tokens=20)
        )
        short = await answer(engine, asking(constraint=Choice(("a", "b")), min_tokens=6, max_tokens=20))
    assert free.text == ""
    assert free.ids == [end]
    assert len(later.ids) == 7
    assert later.ids[-1] == end
    assert short.text in ("a", "b")


async def test_bias_and_penalties_work_within_what_is_allowed(opened: Opened) -> None:
    async with opened() as engine:
        (y,) = await engine.tokenize(TextPrompt("y"))
        got = await answer(engine, asking(constraint=Regex("[xy]{4}"), logit_bias={y: 50.0, 5: 90.0}))
        varied = await answer(engine, asking(constraint=Regex("[xy]{40}"), frequency_penalty=2.0, max_tokens=60))
    assert got.text == "yyyy"
    assert {"x", "y"} == set(varied.text)


@pytest.mark.parametrize(
    "constraint",
    [
        JsonSchema({"type": "array", "uniqueItems": True}),
        Regex("(a"),
        Grammar("root ::= other"),
        Choice(()),
        Choice(("\ud83d",)),
        JsonSchema({"type": "integer", "multipleOf": 99_999_999}),
    ],
    ids=str,
)
async def test_a_constraint_that_cannot_be_served_is_refused_and_others_go_on(
    opened: Opened, constraint: Constraint
) -> None:
    async with opened() as engine:
        free = asyncio.create_task(answer(engine, asking(max_tokens=20)))
        with pytest.raises(InvalidRequest):
            await answer(engine, asking(id="bad", constraint=constraint))
        assert len((await free).ids) == 20


async def test_a_constraint_that_becomes_too_complex_ends_its_own_answer_only(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Matcher.write_mask
    calls = 0

    def failing(self: Matcher, row: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise EngineError("too complex", code="constraint_too_complex")
        write(self, row, **options)

    async with opened() as engine:
        monkeypatch.setattr(Matcher, "write_mask", failing)
        bound = asyncio.create_task(answer(engine, asking(id="bound", constraint=Regex("[a-z ]{100}"), max_tokens=90)))
        free = await answer(engine, asking(max_tokens=40, ignore_eos=True))
        with pytest.raises(EngineError) as caught:
            await bound
    assert caught.value.code == "constraint_too_complex"
    assert len(free.ids) == 40


async def test_all_kinds_are_declared(opened: Opened) -> None:
    async with opened() as engine:
        assert {
            Capability.JSON_OBJECT,
            Capability.JSON_SCHEMA,
            Capability.REGEX,
            Capability.GRAMMAR,
            Capability.CHOICE,
        } <= engine.info.capabilities
        got = await answer(engine, asking(constraint=JsonObject(), max_tokens=5))
    assert got.text.startswith("{")


@pytest.mark.parametrize("rows", [[0, 2], [0, 1, 2]], ids=["some rows", "all rows"])
def test_masks_leave_what_they_allow(rows: list[int]) -> None:
    logits = torch.randn(3, 70)
    before = logits.clone()
    allowed = np.random.default_rng(1).random((3, 96)) < 0.3
    masks = [np.packbits(allowed[row], bitorder="little").view(np.uint32) for row in rows]
    forbid(logits, rows, masks)

    for row in range(3):
        kept = torch.from_numpy(allowed[row, :70]) if row in rows else torch.ones(70, dtype=torch.bool)
        assert torch.equal(logits[row][kept], before[row][kept])
        assert (logits[row][~kept] == -torch.inf).all()
