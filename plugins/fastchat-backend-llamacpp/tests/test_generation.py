"""What is generated: the same alone and among others, from one run and from two."""

from __future__ import annotations

import asyncio
import random

import pytest
from llamacpp_answers import Answer, Opened, answer, asking, saying

from fastchat_serve import (
    ContextOverflow,
    DeadlineExceeded,
    GenerateRequest,
    InvalidRequest,
    TextPrompt,
    TokenPrompt,
)
from fastchat_serve.stepping import SteppingEngine

pytestmark = pytest.mark.anyio

QUESTIONS = (
    "Hello!",
    "What is the capital of France?",
    "Count from one to ten.",
    "Say: naïve café 🙂",
    "Tell me a story about a lighthouse.",
    "你好！",
)


def random_prompt(rng: random.Random, longest: int = 200) -> list[int]:
    return [rng.randrange(4, 2000) for _ in range(rng.randint(1, longest))]


async def all_answers(engine: SteppingEngine, requests: list[GenerateRequest]) -> list[Answer]:
    return await asyncio.gather(*(answer(engine, request) for request in requests))


async def test_the_demonstration_model_answers_its_question(opened: Opened) -> None:
    async with opened() as engine:
        said = await answer(engine, asking(saying("What is the capital of France?"), max_tokens=30))
    assert said.text == "The capital of France is Paris."
    assert said.last.finish_reason == "stop"
    assert said.last.usage is not None
    assert said.last.usage.completion_tokens == len(said.ids)


@pytest.mark.parametrize(
    "options",
    [{"kv_cache_tokens": 4096}, {"kv_cache_tokens": 512, "context_length": 512}, {"prefill_tokens": 16}],
    ids=["all fit", "put back when the cache is full", "prompts in small blocks"],
)
async def test_greedy_answers_are_the_same_alone_and_among_others(opened: Opened, options: dict[str, int]) -> None:
    rng = random.Random(3)
    requests = [asking(random_prompt(rng), max_tokens=40, ignore_eos=True) for _ in range(12)]
    async with opened(prefix_cache=False) as engine:
        alone = [(await answer(engine, request)).ids for request in requests]
    async with opened(prefix_cache=False, **options) as engine:
        together = [said.ids for said in await all_answers(engine, requests)]
    assert together == alone


async def test_a_seed_gives_the_same_answer_alone_and_among_others(opened: Opened) -> None:
    requests = [
        asking(saying(question), temperature=1.2, top_p=0.95, seed=seed, max_tokens=24)
        for seed, question in enumerate(QUESTIONS)
    ]
    async with opened() as engine:
        alone = [(await answer(engine, request)).text for request in requests]
        together = [said.text for said in await all_answers(engine, requests)]
        varied = {(await answer(engine, asking(temperature=1.2, seed=seed))).text for seed in range(5)}
    assert together == alone
    assert len(varied) > 1


@pytest.mark.parametrize("temperature", [0.0, 1.5])
async def test_an_answer_goes_on_after_any_of_its_tokens(opened: Opened, temperature: float) -> None:
    settings = {"temperature": temperature, "seed": 11, "max_tokens": 20, "stop": ("zzz",), "presence_penalty": 0.4}
    prompt = saying("Say: naïve café 🙂")
    async with opened() as engine:
        whole = await answer(engine, asking(prompt, **settings))
        for index in range(len(whole.ids) + 1):
            rest = await answer(engine, asking(prompt, resume_token_ids=tuple(whole.ids[:index]), **settings))
            assert rest.ids == whole.ids[index:]
            assert whole.text.endswith(rest.text)
            assert rest.last.usage is not None
            assert whole.last.usage is not None
            assert rest.last.usage.completion_tokens == whole.last.usage.completion_tokens


async def test_a_character_that_the_prompt_began_belongs_to_the_answer(opened: Opened) -> None:
    async with opened() as engine:
        ids = await engine.tokenize(TextPrompt("🪿"))
        assert len(ids) > 1
        bias = dict.fromkeys(ids[-1:], 100.0)
        said = await answer(engine, asking(ids[:-1], max_tokens=1, logit_bias=bias))
    assert said.text == "🪿"


async def test_incomplete_characters_wait_and_become_a_replacement_at_the_end(opened: Opened) -> None:
    async with opened() as engine:
        first = (await engine.tokenize(TextPrompt("🪿")))[0]
        said = await answer(engine, asking(max_tokens=3, logit_bias={first: 100.0}))
    assert said.ids == [first] * 3
    assert said.text.endswith("\N{REPLACEMENT CHARACTER}")


async def test_a_stop_string_ends_the_answer_and_is_not_sent(opened: Opened) -> None:
    async with opened() as engine:
        said = await answer(engine, asking(saying("What is the capital of France?"), max_tokens=30, stop=("nce is",)))
    assert said.text == "The capital of Fra"
    assert (said.last.finish_reason, said.last.stop_match) == ("stop", "nce is")


async def test_the_context_bounds_prompt_and_answer_together(opened: Opened) -> None:
    async with opened(context_length=64) as engine:
        said = await answer(engine, asking([5] * 60, max_tokens=None, ignore_eos=True))
        assert (len(said.ids), said.last.finish_reason) == (4, "length")
        with pytest.raises(ContextOverflow, match="64 tokens, but the request needs 65"):
            await answer(engine, asking([5] * 60, max_tokens=5))
        with pytest.raises(ContextOverflow):
            await answer(engine, asking([5] * 64, max_tokens=None))
        with pytest.raises(ContextOverflow):
            await answer(engine, asking(TextPrompt("word " * 1_000_000)))


async def test_log_probabilities_are_those_before_temperature_and_filters(opened: Opened) -> None:
    async with opened() as engine:
        said = await answer(engine, asking(saying("Hello!"), max_tokens=5, logprobs=3, temperature=0.7, top_k=1))
    for chunk in said.chunks:
        assert chunk.logprobs is not None
        (entry,) = chunk.logprobs
        assert entry.token_id == chunk.token_ids[0] == entry.top[0].token_id
        assert entry.logprob == entry.top[0].logprob
        values = [other.logprob for other in entry.top]
        assert values == sorted(values, key=lambda value: -(value or 0.0))


async def test_a_prompt_is_echoed_with_its_log_probabilities(opened: Opened) -> None:
    """Those of a token in the prompt are those of the same token in an answer."""
    async with opened(prefill_tokens=16) as engine:
        prompt = await engine.tokenize(saying("Tell me a story about a lighthouse."))
        said = await answer(engine, asking(prompt, max_tokens=40, ignore_eos=True, logprobs=0))
        whole = (*prompt, *said.ids)
        scored = await answer(engine, asking(whole, max_tokens=0, echo=True, prompt_logprobs=2))
    echo = scored.last.prompt
    assert echo is not None
    assert echo.logprobs is not None
    assert (echo.token_ids, len(echo.logprobs), echo.logprobs[0].logprob) == (whole, len(whole), None)
    drawn = [entry.logprob for chunk in said.chunks for entry in chunk.logprobs or ()]
    assert [entry.logprob for entry in echo.logprobs[len(prompt) :]] == pytest.approx(drawn, abs=1e-3)


async def test_min_tokens_keeps_stop_tokens_away(opened: Opened) -> None:
    async with opened() as engine:
        short = await answer(engine, asking(saying("Hello!"), max_tokens=60))
        least = len(short.ids) + 5
        said = await answer(engine, asking(saying("Hello!"), max_tokens=60, min_tokens=least))
    assert short.last.finish_reason == "stop"
    assert len(said.ids) > least


async def test_lower_priority_numbers_go_first(opened: Opened) -> None:
    async with opened(max_batch=1) as engine:
        done: list[str] = []

        async def run(name: str, priority: int) -> None:
            await answer(engine, asking(id=name, priority=priority, ignore_eos=True))
            done.append(name)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run("first", 0))
            tasks.create_task(run("late", 5))
            tasks.create_task(run("early", -5))
    assert done.index("early") < done.index("late")


async def test_a_deadline_ends_an_answer(opened: Opened) -> None:
    async with opened() as engine:
        with pytest.raises(DeadlineExceeded):
            await answer(engine, asking(max_tokens=None, ignore_eos=True, timeout_s=0.05))
        assert (await answer(engine, asking())).ids


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (asking([99_999]), "prompt"),
        (asking(logit_bias={-1: 1.0}), "logit_bias"),
        (asking(stop_token_ids=(2048,)), "stop_token_ids"),
        (asking(resume_token_ids=(99_999,)), "resume_token_ids"),
        (asking(TextPrompt("half \ud800")), "prompt"),
        (asking(TokenPrompt(())), "prompt"),
        (asking(stop=("",)), "stop"),
        (asking(adapter="none"), "model"),
    ],
)
async def test_what_cannot_be_is_refused_and_others_go_on(
    opened: Opened, request_: GenerateRequest, param: str
) -> None:
    async with opened() as engine:
        with pytest.raises(InvalidRequest) as caught:
            await answer(engine, request_)
        assert caught.value.param == param
        assert (await answer(engine, asking())).ids
