"""Draws depend on the seed and the position alone: alone or among others, in one go or resumed."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("mlx_lm", reason="mlx is not installed here")

from mlx_answers import PROMPTS, Opened, answer, answers, asking

from fastchat_serve import JsonObject, TextPrompt

pytestmark = pytest.mark.anyio

SAMPLED: dict[str, Any] = {"temperature": 2.0, "ignore_eos": True, "max_tokens": 16}
FULL: dict[str, Any] = SAMPLED | {
    "seed": 2**63 + 11,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.001,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.3,
    "frequency_penalty": 0.4,
    "min_tokens": 6,
    "logit_bias": {300: 1.5},
}


async def test_a_seed_gives_the_same_answer_alone_and_among_others(opened: Opened) -> None:
    requests = [asking(said, seed=seed, **SAMPLED) for said in PROMPTS for seed in (1, 2)]
    async with opened() as engine:
        together = [got.token_ids for got in await answers(engine, requests)]
        alone = [(await answer(engine, request)).token_ids for request in requests]

    assert together == alone
    assert len(set(together)) > len(PROMPTS)


@pytest.mark.parametrize("fields", [{"max_tokens": 16, "min_tokens": 4}, FULL], ids=["greedy", "sampled"])
async def test_an_answer_can_be_resumed_after_any_of_its_tokens(opened: Opened, fields: dict[str, Any]) -> None:
    async with opened() as engine:
        whole = await answer(engine, asking(**fields))
        for index in range(1, len(whole.token_ids) + 1):
            resumed = await answer(engine, asking(resume_token_ids=whole.token_ids[:index], **fields))
            sent = "".join(chunk.text for chunk in whole.chunks[:index])
            assert whole.token_ids[:index] + resumed.token_ids == whole.token_ids
            assert sent + resumed.text == whole.text or index == len(whole.token_ids)
            assert resumed.last.usage == whole.last.usage
            assert resumed.last.finish_reason == whole.last.finish_reason


async def test_a_constrained_answer_can_be_resumed(opened: Opened) -> None:
    request = asking(constraint=JsonObject(), **SAMPLED | {"ignore_eos": False, "max_tokens": 40, "seed": 3})
    async with opened() as engine:
        whole = await answer(engine, request)
        for index in range(1, len(whole.token_ids), 5):
            resumed = await answer(
                engine,
                asking(
                    constraint=JsonObject(),
                    resume_token_ids=whole.token_ids[:index],
                    **SAMPLED | {"ignore_eos": False, "max_tokens": 40, "seed": 3},
                ),
            )
            assert whole.token_ids[:index] + resumed.token_ids == whole.token_ids


async def test_a_stop_string_is_found_across_the_point_of_resumption(opened: Opened) -> None:
    async with opened() as engine:
        free = await answer(engine, asking(TextPrompt("Once upon a time")))
        stop = free.text[10:18]
        whole = await answer(engine, asking(TextPrompt("Once upon a time"), stop=(stop,)))
        for index in range(1, len(whole.token_ids)):
            resumed = await answer(
                engine, asking(TextPrompt("Once upon a time"), stop=(stop,), resume_token_ids=whole.token_ids[:index])
            )
            assert "".join(chunk.text for chunk in whole.chunks[:index]) + resumed.text == whole.text
