"""Answers of the real engine."""

from __future__ import annotations

import asyncio
import json
import math
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sglang_answers import ENDLESS, answer, asking, greedy_ids, read, until

from fastchat_backend_sglang.engine import SglangEngine
from fastchat_serve import (
    Choice,
    ContextOverflow,
    GenerateRequest,
    Grammar,
    InvalidRequest,
    JsonObject,
    JsonSchema,
    Regex,
    TextPrompt,
    TokenPrompt,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

PROMPTS = ("What is 3 + 4?", "Hello!", "What is the weather in Oslo?", "Tell me a story about a lighthouse.")

PERSON = JsonSchema(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)

PENALISED: dict[str, Any] = {
    "presence_penalty": 1.5,
    "frequency_penalty": 1.0,
    "repetition_penalty": 1.3,
    "min_tokens": 20,
    "max_tokens": 24,
}


async def test_greedy_answers_are_those_of_transformers(engine: SglangEngine, demo: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(demo, dtype=torch.float32)
    for text in PROMPTS:
        prompt = list(await engine.tokenize(asking(text).prompt))  # type: ignore[arg-type]
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :].tolist()
        assert await greedy_ids(engine, prompt, 24) == expected, text


async def test_answers_at_once_are_those_alone(engine: SglangEngine) -> None:
    alone = [(await answer(engine, asking(text))).token_ids for text in PROMPTS]
    at_once = await asyncio.gather(*(answer(engine, asking(text)) for text in PROMPTS * 3))
    assert [each.token_ids for each in at_once] == alone * 3


async def test_usage_says_what_was_found_in_the_cache_but_to_no_other_tenant(engine: SglangEngine) -> None:
    def asked(tenant: str) -> GenerateRequest:
        return asking("Whose lighthouse is it, and who says so?", tenant=tenant)

    first, again, other = [(await answer(engine, asked(name))).usage for name in ("one", "one", "two")]
    assert (first.cached_tokens, other.cached_tokens) == (0, 0)
    assert again.cached_tokens == again.prompt_tokens - 1


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
async def test_a_stream_that_is_closed_leaves_nothing_behind(engine: SglangEngine, count: int) -> None:
    async with aclosing(engine.generate_stream(asking(**ENDLESS))) as chunks:
        for _ in range(count):
            await anext(chunks)
        await until(lambda: engine.current_load().kv_used_fraction > 0)
        assert engine.current_load().running == 1
    load = engine.current_load()
    assert (load.running, load.waiting) == (0, 0)
    await until(lambda: engine.current_load().kv_used_fraction == 0)


async def test_one_that_is_given_up_does_not_take_others_along(engine: SglangEngine) -> None:
    """SGLang aborts by the beginnings of names."""
    whole = [asyncio.create_task(answer(engine, asking(max_tokens=200, ignore_eos=True))) for _ in range(12)]
    for _ in range(4):
        await read(engine, asking(**ENDLESS), 2)
    assert [len((await each).token_ids) for each in whole] == [200] * 12


async def test_load_tells_running_answers_and_the_cache_they_take(engine: SglangEngine) -> None:
    reading = [asyncio.create_task(answer(engine, asking(**ENDLESS))) for _ in range(3)]
    await until(lambda: engine.current_load().running == 3)
    await until(lambda: engine.current_load().kv_used_fraction > 0)
    for task in reading:
        task.cancel()
    await asyncio.wait(reading)
    await until(lambda: engine.current_load().kv_used_fraction == 0)


# ------------------------------------------------------------------------------------------ resuming


@pytest.mark.parametrize("cut", [1, 2, 5, 11, 23])
async def test_penalties_and_minimum_go_on_where_an_answer_was_cut(engine: SglangEngine, cut: int) -> None:
    whole = await answer(engine, asking(**PENALISED))
    resumed = await answer(engine, asking(**PENALISED, resume_token_ids=whole.token_ids[:cut]))
    assert resumed.token_ids == whole.token_ids[cut:]
    assert whole.text.endswith(resumed.text)
    assert resumed.usage.completion_tokens == whole.usage.completion_tokens


@pytest.mark.parametrize("cut", [1, 3, 6])
async def test_a_constraint_goes_on_where_an_answer_was_cut(engine: SglangEngine, cut: int) -> None:
    whole = await answer(engine, asking(constraint=PERSON, max_tokens=60))
    resumed = await answer(engine, asking(constraint=PERSON, max_tokens=60, resume_token_ids=whole.token_ids[:cut]))
    assert resumed.token_ids == whole.token_ids[cut:]


async def test_what_disobeys_its_constraint_cannot_be_resumed(engine: SglangEngine) -> None:
    with pytest.raises(InvalidRequest, match="does not obey"):
        await answer(engine, asking(constraint=Choice(("yes", "no")), resume_token_ids=(5, 5, 5)))
    assert (await answer(engine, asking())).finish_reason == "stop"


# --------------------------------------------------------------------------------- log-probabilities


async def test_logprobs_are_the_models_whatever_was_done_to_them(engine: SglangEngine) -> None:
    """Penalties, bias, temperature and a constraint change what is drawn, not what is reported."""
    plain = await answer(engine, asking(logprobs=3, max_tokens=1))
    best = plain.logprobs[0].top
    for changes in (
        {"logit_bias": {best[0].token_id: -100.0}},
        {"repetition_penalty": 1.9},
        {"temperature": 3.0},
        {"constraint": Choice(("zebra",))},
    ):
        changed = await answer(engine, asking(logprobs=3, max_tokens=1, **changes))
        told = {entry.token_id: entry.logprob for entry in changed.logprobs[0].top}
        assert told == pytest.approx({entry.token_id: entry.logprob for entry in best}, abs=1e-4), changes


async def test_the_repetition_penalty_counts_the_prompt(engine: SglangEngine) -> None:
    """Of two tokens with almost the same chance, it takes the one that the prompt has not."""
    prompt = TextPrompt("the cat and the cat and the cat and the")
    seen = set(await engine.tokenize(prompt))
    (entry,) = (await answer(engine, asking(prompt=prompt, max_tokens=1, logprobs=500))).logprobs
    ranked = [other.token_id for other in entry.top]
    old, new = next((a, b) for a, b in pairwise(ranked) if a in seen and b not in seen)

    async def drawn(penalty: float) -> int:
        only = {"logit_bias": {old: 100.0, new: 100.0}, "max_tokens": 1, "ignore_eos": True}
        return (await answer(engine, asking(prompt=prompt, repetition_penalty=penalty, **only))).token_ids[0]

    assert (await drawn(1.0), await drawn(2.0)) == (old, new)


async def test_the_prompt_is_scored_even_where_nothing_is_to_be_drawn(engine: SglangEngine) -> None:
    scored = await answer(engine, asking(max_tokens=0, prompt_logprobs=2))
    prompt = scored.chunks[0].prompt
    assert prompt is not None
    assert prompt.logprobs is not None
    first, *others = prompt.logprobs
    assert [entry.token_id for entry in prompt.logprobs] == list(prompt.token_ids)
    assert (first.logprob, first.top) == (None, ())
    assert all(entry.logprob is not None and entry.logprob <= 0 and len(entry.top) == 2 for entry in others)
    assert (scored.text, scored.finish_reason, scored.usage.completion_tokens) == ("", "length", 0)


# ---------------------------------------------------------------------------------------- constraints


@pytest.mark.parametrize("seed", range(5))
async def test_a_schema_holds_at_any_temperature(engine: SglangEngine, seed: int) -> None:
    said = await answer(engine, asking(constraint=PERSON, temperature=1.0, seed=seed, max_tokens=80))
    person = json.loads(said.text)
    assert set(person) == {"name", "age"}
    assert isinstance(person["age"], int)
    assert person["age"] <= 99


async def test_each_kind_of_constraint_holds(engine: SglangEngine) -> None:
    assert isinstance(json.loads((await answer(engine, asking(constraint=JsonObject(), max_tokens=200))).text), dict)
    assert (await answer(engine, asking(constraint=Choice(("(a.b)", "c|d"))))).text in ("(a.b)", "c|d")
    assert (await answer(engine, asking(constraint=Regex("^[0-9]{3}-x$")))).text[3:] == "-x"
    said = await answer(engine, asking(constraint=Grammar('root ::= word " " word\nword ::= "ab" | "cd"')))
    assert said.text.replace("ab", "").replace("cd", "") == " "


@pytest.mark.parametrize(
    "constraint", [Regex("((("), JsonSchema({"type": "no such type"}), Grammar('root ::= "a" |'), Choice(())], ids=repr
)
async def test_a_constraint_that_cannot_be_is_refused_and_the_engine_goes_on(
    engine: SglangEngine, constraint: Regex | JsonSchema | Grammar | Choice
) -> None:
    going_on = asyncio.create_task(answer(engine, asking(max_tokens=300, ignore_eos=True)))
    with pytest.raises(InvalidRequest) as refusal:
        await answer(engine, asking(constraint=constraint))
    assert refusal.value.param is not None
    assert len((await going_on).token_ids) == 300


# ---------------------------------------------------------------------------------------------- edges


async def test_the_whole_context_can_be_used_and_no_token_more(engine: SglangEngine) -> None:
    length = engine.info.context_length
    assert length == 2048
    full = await answer(engine, asking(prompt=TokenPrompt((22,) * (length - 3)), max_tokens=3, ignore_eos=True))
    assert len(full.token_ids) == 3
    one_more = await answer(engine, asking(prompt=TokenPrompt((22,) * (length - 1)), max_tokens=None))
    assert (one_more.usage.prompt_tokens, one_more.usage.completion_tokens) == (length - 1, 1)
    with pytest.raises(ContextOverflow):
        await answer(engine, asking(prompt=TokenPrompt((22,) * length), max_tokens=1))


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (asking(prompt=TokenPrompt((2048,))), "prompt"),
        (asking(prompt=TextPrompt("half a pair: \ud83d")), None),
        (asking(logit_bias={-1: 1.0}), "logit_bias"),
        (asking(repetition_penalty=2.5), "repetition_penalty"),
        (asking(stop=("",)), "stop"),
        (asking(seed=2**70), None),
        (asking(adapter="unheard-of"), "model"),
    ],
    ids=["id", "surrogate", "bias", "penalty", "stop", "seed", "adapter"],
)
async def test_what_cannot_be_is_refused_before_the_engine_hears_of_it(
    engine: SglangEngine, request_: GenerateRequest, param: str | None
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await answer(engine, request_)
    assert refusal.value.param == param


async def test_filters_leave_only_what_they_should(engine: SglangEngine) -> None:
    greedy = (await answer(engine, asking())).token_ids
    for narrow in ({"top_k": 1}, {"top_p": 0.0}, {"top_p": 1e-9}, {"min_p": 1.0}):
        assert (await answer(engine, asking(temperature=1.5, **narrow))).token_ids == greedy, narrow
    hot = {(await answer(engine, asking(temperature=5.0, max_tokens=4))).token_ids for _ in range(8)}
    assert len(hot) > 1


async def test_draws_follow_the_models_probabilities(engine: SglangEngine) -> None:
    """At temperature 2, as often as the square roots of the probabilities say."""
    prompt = TextPrompt("A")
    (entry,) = (await answer(engine, asking(prompt=prompt, max_tokens=1, logprobs=200))).logprobs
    weights = {each.token_id: math.exp((each.logprob or 0.0) / 2) for each in entry.top[:2]}
    drawn = await asyncio.gather(
        *(
            answer(engine, asking(prompt=prompt, max_tokens=1, temperature=2.0, top_k=2, ignore_eos=True))
            for _ in range(400)
        )
    )
    first, second = weights
    share = sum(each.token_ids == (first,) for each in drawn) / len(drawn)
    assert share == pytest.approx(weights[first] / (weights[first] + weights[second]), abs=0.1)
