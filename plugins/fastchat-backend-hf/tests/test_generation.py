"""What is generated: the tokens of `generate()`, whatever else is in the batch."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
import tiny_models
import torch
from hf_answers import Answer, Opened, RecordingSink, answer, asking, until
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fastchat_backend_hf.batch_runner import BatchRunner
from fastchat_backend_hf.reading import Reading
from fastchat_backend_hf.runners import Context
from fastchat_serve import (
    ChatPrompt,
    Choice,
    ContextOverflow,
    DeadlineExceeded,
    GenerateRequest,
    InvalidRequest,
    Message,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
)
from fastchat_serve.stepping import SteppingEngine

pytestmark = pytest.mark.anyio


def random_prompt(rng: random.Random, longest: int = 60) -> list[int]:
    return [rng.randrange(4, 1000) for _ in range(rng.randint(1, longest))]


def generated(model: PreTrainedModel, prompt: list[int], max_tokens: int) -> list[int]:
    """What `generate()` answers greedily, its stop token included."""
    out: Tensor = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=max_tokens
    )
    return [int(token) for token in out[0, len(prompt) :]]


async def all_answers(engine: SteppingEngine, requests: list[GenerateRequest], gaps: random.Random) -> list[Answer]:
    """Answers to requests that arrive while others are under way: each waits for some chunks of the one before."""
    started = [asyncio.Event() for _ in requests]

    async def run(i: int) -> Answer:
        if i:
            await started[i - 1].wait()
        wait_for = gaps.randint(0, 4)
        chunks = []
        async with asyncio.timeout(60):
            if wait_for == 0:
                started[i].set()
            async for chunk in engine.generate_stream(requests[i]):
                chunks.append(chunk)
                if len(chunks) >= wait_for:
                    started[i].set()
        started[i].set()
        return Answer(requests[i], chunks)

    return await asyncio.gather(*map(run, range(len(requests))))


@pytest.mark.parametrize(
    ("kv_cache_tokens", "put_back"), [(160, True), (4096, False)], ids=["put back when memory is short", "all fit"]
)
async def test_greedy_answers_equal_generate_for_32_requests_that_join_and_leave(
    opened: Opened, llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, kv_cache_tokens: int, put_back: bool
) -> None:
    again = 0
    open_context = BatchRunner.open

    def counted(self: BatchRunner, context: Context) -> Reading:
        nonlocal again
        again += bool(context.answer)
        return open_context(self, context)

    monkeypatch.setattr(BatchRunner, "open", counted)
    rng = random.Random(1)
    prompts = [random_prompt(rng) for _ in range(32)]
    lengths = [rng.randint(1, 40) for _ in prompts]
    requests = [
        asking(prompt, id=str(i), max_tokens=n) for i, (prompt, n) in enumerate(zip(prompts, lengths, strict=True))
    ]
    async with opened(max_batch=12, kv_cache_tokens=kv_cache_tokens) as engine:
        answers = await all_answers(engine, requests, rng)

    assert (again > 0) == put_back
    for prompt, length, got in zip(prompts, lengths, answers, strict=True):
        assert got.ids == generated(llama, prompt, length)
        assert got.last.usage is not None
        assert (got.last.usage.prompt_tokens, got.last.usage.completion_tokens) == (len(prompt), len(got.ids))


@pytest.mark.parametrize("model", ["gpt2", "bloom", "opt"])
async def test_other_families_share_a_batch_too(opened: Opened, model: str) -> None:
    reference = getattr(tiny_models, model)()
    rng = random.Random(2)
    prompts = [random_prompt(rng, 20) for _ in range(6)]
    async with opened(model) as engine:
        assert engine.info.notes == () or "no context length" in engine.info.notes[0]
        answers = await all_answers(engine, [asking(prompt, max_tokens=12) for prompt in prompts], rng)
    assert [got.ids for got in answers] == [generated(reference, prompt, 12) for prompt in prompts]


async def test_a_model_whose_attention_cannot_be_exchanged_shares_a_batch_all_the_same(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, llama: PreTrainedModel
) -> None:
    monkeypatch.setattr("fastchat_backend_hf.batching.use_own_attention", lambda model: True)  # which is not so
    rng = random.Random(4)
    prompts = [random_prompt(rng, 200) for _ in range(6)]
    async with opened() as engine:
        assert engine.info.notes == ()
        generation = engine._loaded.generation
        assert generation is not None
        assert isinstance(generation._runner, BatchRunner)
        assert not generation._runner._rows.attends
        answers = await all_answers(engine, [asking(prompt, max_tokens=12) for prompt in prompts], rng)
    assert [got.ids for got in answers] == [generated(llama, prompt, 12) for prompt in prompts]


async def test_a_seeded_request_draws_the_same_alone_and_among_15_others(opened: Opened) -> None:
    rng = random.Random(3)

    def request(seed: int) -> GenerateRequest:
        return asking(
            random_prompt(random.Random(seed)),
            id=str(seed),
            seed=seed,
            temperature=0.5 + seed % 3 / 2,
            max_tokens=16,
            top_p=0.9 if seed % 2 else 1.0,
            top_k=40 if seed % 5 == 0 else 0,
            min_p=0.05 if seed % 7 == 0 else 0.0,
            ignore_eos=True,
        )

    async with opened(max_batch=16) as engine:
        alone = [await answer(engine, request(seed)) for seed in range(48)]
        together: list[Answer] = []
        for first in range(0, 48, 16):
            together += await all_answers(engine, [request(seed) for seed in range(first, first + 16)], rng)
    assert [a.ids for a in alone] == [a.ids for a in together]
    assert len({tuple(a.ids) for a in alone}) == 48


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_a_resumed_answer_goes_on_as_if_nothing_had_happened(opened: Opened, temperature: float) -> None:
    prompt = (5, 99, 7)
    settings: dict[str, Any] = {
        "temperature": temperature,
        "seed": 4,
        "max_tokens": 12,
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.4,
        "ignore_eos": True,
    }
    async with opened() as engine:
        whole = await answer(engine, asking(prompt, **settings))
        for cut in range(1, 13):
            before = "".join(chunk.text for chunk in whole.chunks[:cut])
            rest = await answer(engine, asking(prompt, resume_token_ids=tuple(whole.ids[:cut]), **settings))
            assert rest.ids == whole.ids[cut:]
            assert before + rest.text == whole.text or cut == 12
            assert rest.last.usage == whole.last.usage
            assert rest.last.finish_reason == "length"


async def test_the_answer_ends_before_a_stop_string(opened: Opened) -> None:
    async with opened() as engine:
        whole = await answer(engine, asking(max_tokens=24, ignore_eos=True))
        stop = whole.text[len(whole.text) // 2 :][:3]
        cut = await answer(engine, asking(max_tokens=24, ignore_eos=True, stop=(stop,)))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.last.finish_reason, cut.last.stop_match) == ("stop", stop)
    assert cut.last.usage is not None
    assert cut.last.usage.completion_tokens == len(cut.ids) < 24


async def test_a_stop_token_ends_the_answer_and_is_not_text(opened: Opened, tokenizer: PreTrainedTokenizerFast) -> None:
    async with opened() as engine:
        whole = await answer(engine, asking(max_tokens=24, ignore_eos=True))
        stop = whole.ids[10]
        at = whole.ids.index(stop)
        cut = await answer(engine, asking(max_tokens=24, ignore_eos=True, stop_token_ids=(stop,)))
        later = await answer(engine, asking(max_tokens=24, ignore_eos=True, stop_token_ids=(stop,), min_tokens=at + 2))
    assert cut.ids == whole.ids[: at + 1]
    assert cut.text == tokenizer.decode(whole.ids[:at])
    assert (cut.last.finish_reason, cut.last.stop_match) == ("stop", stop)
    assert len(later.ids) >= at + 2
    assert stop not in later.ids[: at + 2]


async def test_max_tokens_none_means_the_rest_of_the_context(opened: Opened) -> None:
    async with opened(context_length=40) as engine:
        got = await answer(engine, asking(range(10, 40), max_tokens=None, ignore_eos=True))
    assert len(got.ids) == 10
    assert got.last.finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "max_tokens"), [(range(10, 60), None), (range(10, 40), 11), (range(10, 50), 1), (range(10, 51), 0)]
)
async def test_what_does_not_fit_the_context_is_refused_with_both_counts(
    opened: Opened, prompt: range, max_tokens: int | None
) -> None:
    needed = len(prompt) + (1 if max_tokens is None else max_tokens)
    async with opened(context_length=40) as engine:
        with pytest.raises(ContextOverflow, match=rf"40 tokens.* {needed}: {len(prompt)} in the prompt"):
            await answer(engine, asking(prompt, max_tokens=max_tokens))


async def test_a_huge_text_is_refused_without_being_read(opened: Opened) -> None:
    async with opened() as engine, asyncio.timeout(2):
        with pytest.raises(ContextOverflow):
            await answer(engine, asking(prompt=TextPrompt("a" * 50_000_000)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": TokenPrompt(())},
        {"prompt": TokenPrompt((5, 1024))},
        {"prompt": TokenPrompt((-1,))},
        {"prompt": TextPrompt("half a pair: \ud83d")},
        {"constraint": Choice(("\ud83d",))},
        {"logit_bias": {4000: 1.0}},
        {"stop_token_ids": (5000,)},
        {"resume_token_ids": (5000,)},
        {"stop": ("",)},
    ],
    ids=str,
)
async def test_a_wrong_request_is_refused_and_the_next_one_served(opened: Opened, wrong: dict[str, Any]) -> None:
    async with opened() as engine:
        with pytest.raises(InvalidRequest):
            await answer(engine, asking(**wrong))
        assert (await answer(engine, asking())).ids


async def test_an_empty_text_stands_for_the_bos_token(opened: Opened) -> None:
    async with opened() as engine:
        empty = await answer(engine, asking(prompt=TextPrompt("")))
        assert empty.ids == (await answer(engine, asking((0,)))).ids


async def test_a_conversation_is_rendered_with_the_models_template(opened: Opened) -> None:
    chat = ChatPrompt((Message(role="user", content="Hello"),))
    async with opened() as engine:
        text = await engine.render(chat)
        assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        ids = await engine.tokenize(chat)
        assert ids[0] == 1, "the template's special tokens are tokens"
        assert await engine.detokenize(ids) == text
        assert (await answer(engine, asking(prompt=chat))).ids == (await answer(engine, asking(ids))).ids


async def test_log_probabilities_are_those_of_the_raw_logits(opened: Opened, llama: PreTrainedModel) -> None:
    request = asking((5, 6, 7), max_tokens=6, temperature=0.7, seed=3, top_k=5, logprobs=3, ignore_eos=True)
    async with opened() as engine:
        got, _ = await asyncio.gather(answer(engine, request), answer(engine, asking((9, 9), id="other")))
    with torch.inference_mode():
        logits = llama(torch.tensor([[5, 6, 7, *got.ids]])).logits[0, 2:-1].log_softmax(-1)
    for chunk, expected in zip(got.chunks, logits, strict=True):
        assert chunk.logprobs is not None
        (entry,) = chunk.logprobs
        assert entry.token_id == chunk.token_ids[0]
        assert entry.logprob == pytest.approx(float(expected[entry.token_id]), abs=1e-3)
        best = expected.topk(3)
        assert [alternative.token_id for alternative in entry.top] == best.indices.tolist()
        assert [alternative.logprob for alternative in entry.top] == pytest.approx(best.values.tolist(), abs=1e-3)
        assert entry.data.decode(errors="replace") == entry.text


async def test_prompt_log_probabilities_come_with_the_first_chunk(opened: Opened, llama: PreTrainedModel) -> None:
    prompt = [random.Random(5).randrange(4, 1000) for _ in range(300)]  # longer than a block of positions
    async with opened() as engine:
        got = await answer(engine, asking(prompt, prompt_logprobs=2, echo=True, max_tokens=5))
        plain = await answer(engine, asking(prompt, max_tokens=5))
        nothing = await answer(engine, asking(prompt, prompt_logprobs=2, max_tokens=0))
    assert got.ids == plain.ids
    echo = got.chunks[0].prompt
    assert echo is not None
    assert echo.token_ids == tuple(prompt)
    assert all(chunk.prompt is None for chunk in got.chunks[1:])
    assert echo.logprobs is not None
    assert echo.logprobs[0].logprob is None
    with torch.inference_mode():
        expected = llama(torch.tensor([prompt])).logits[0].log_softmax(-1)
    for position, entry in enumerate(echo.logprobs[1:]):
        assert entry is not None
        assert entry.token_id == prompt[position + 1]
        assert entry.logprob == pytest.approx(float(expected[position, entry.token_id]), abs=1e-3)
        assert len(entry.top) == 2
    assert nothing.ids == []
    assert nothing.last.finish_reason == "length"
    assert nothing.last.prompt is not None
    assert nothing.last.prompt.logprobs is not None
    assert len(nothing.last.prompt.logprobs) == 300


async def test_echo_repeats_the_text_as_it_was_given(opened: Opened) -> None:
    async with opened() as engine:
        got = await answer(engine, asking(prompt=TextPrompt("naïve 👩‍👩‍👧 text"), echo=True, max_tokens=1))
    assert got.last.prompt is not None
    assert got.last.prompt.text == "naïve 👩‍👩‍👧 text"
    assert got.last.prompt.logprobs is None


async def test_a_choice_gives_exactly_one_option(opened: Opened) -> None:
    options = ("yes", "no", "no way", "👍")
    async with opened() as engine:
        requests = [
            asking((5, i), id=str(i), temperature=1.5, seed=i, max_tokens=None, constraint=Choice(options))
            for i in range(24)
        ]
        answers = await asyncio.gather(*(answer(engine, request) for request in requests))
        free = await answer(engine, asking(max_tokens=4))
    assert {got.text for got in answers} == set(options)
    assert {got.last.finish_reason for got in answers} == {"stop"}
    assert free.text not in options


async def test_a_request_past_its_time_limit_ends_with_an_error(opened: Opened) -> None:
    async with opened() as engine:
        with pytest.raises(DeadlineExceeded):
            await answer(engine, asking(max_tokens=None, ignore_eos=True, timeout_s=1e-6))
        assert (await answer(engine, asking(timeout_s=20))).ids


async def test_lower_priority_values_are_served_first(opened: Opened) -> None:
    order: list[str] = []

    async with opened(max_batch=1) as engine:

        async def run(name: str, priority: int) -> None:
            await answer(engine, asking(id=name, priority=priority, max_tokens=20, ignore_eos=True))
            order.append(name)

        first = engine.start(asking(id="first", priority=5, max_tokens=None, ignore_eos=True), RecordingSink())
        await until(lambda: engine.current_load().running == 1)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run("late", 2))
            tasks.create_task(run("urgent", -1))
            await until(lambda: engine.current_load().waiting == 2)
            await engine.tokenize(TextPrompt("who is prepared after both"))
            first.abort()
    assert order == ["urgent", "late"]


async def test_text_streams_in_whole_characters(opened: Opened, tokenizer: PreTrainedTokenizerFast) -> None:
    """Reliability F34: random tokens of a byte-level vocabulary cut characters everywhere."""
    sampling = SamplingParams(
        temperature=2.0, seed=1, max_tokens=200, ignore_eos=True, logit_bias={0: -100, 1: -100, 2: -100, 3: -100}
    )
    async with opened() as engine:
        got = await answer(engine, GenerateRequest(id="r", prompt=TokenPrompt((5, 6)), sampling=sampling))
    assert got.text == tokenizer.decode(got.ids)
