"""What is generated: that of mlx-lm itself, whoever else is in the batch, cut and counted as the contract says."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest

pytest.importorskip("mlx_lm", reason="mlx is not installed here")

import mlx.core as mx
import mlx_lm
import numpy as np
from mlx_answers import PROMPTS, WEIGHTS, Opened, answer, answers, asking, until

from fastchat_serve import ChatPrompt, ContextOverflow, InvalidRequest, Message, TextPrompt, TokenPrompt, Usage

pytestmark = pytest.mark.anyio


class Reference:
    """mlx-lm's own way, one prompt at a time."""

    def __init__(self) -> None:
        self.model, self.tokenizer = mlx_lm.load(str(WEIGHTS), lazy=True)
        self.model.set_dtype(mx.float32)

    def prompt(self, said: str) -> list[int]:
        return list(self.tokenizer.apply_chat_template([{"role": "user", "content": said}], add_generation_prompt=True))

    def answer(self, prompt: Sequence[int], max_tokens: int) -> list[Any]:
        """mlx-lm's responses, one for every token."""
        return list(mlx_lm.stream_generate(self.model, self.tokenizer, list(prompt), max_tokens=max_tokens))


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


async def test_greedy_answers_are_those_of_mlx_lm_for_all_in_a_batch(opened: Opened, reference: Reference) -> None:
    async with opened() as engine:
        found = await answers(engine, [asking(said) for said in PROMPTS])

    for said, got in zip(PROMPTS, found, strict=True):
        assert list(got.token_ids) == [response.token for response in reference.answer(reference.prompt(said), 24)]


async def test_who_joins_and_leaves_meanwhile_changes_nothing(opened: Opened) -> None:
    requests = [asking(said, max_tokens=5 * number) for number, said in enumerate(PROMPTS, 1)]
    async with opened(prefill_tokens=4) as engine:
        alone = [(await answer(engine, request)).token_ids for request in requests]
        late: list[asyncio.Task[Any]] = []
        async for _ in engine.generate_stream(asking(max_tokens=60, ignore_eos=True)):
            if len(late) < len(requests):
                late.append(asyncio.create_task(answer(engine, requests[len(late)])))
        assert [(await task).token_ids for task in late] == alone


async def test_who_has_no_room_in_the_batch_waits_and_the_lower_priority_number_comes_first(opened: Opened) -> None:
    async with opened(max_batch=1) as engine, aclosing(engine.generate_stream(asking(max_tokens=None))) as first:
        await anext(first)
        ended: list[str] = []

        async def run(id: str, priority: int) -> None:
            await answer(engine, asking(id=id, priority=priority, max_tokens=2))
            ended.append(id)

        tasks = [asyncio.create_task(run(id, priority)) for id, priority in (("late", 5), ("soon", 1))]
        await until(lambda: engine.current_load().waiting == 2)
        assert engine.current_load().running == 1
        await first.aclose()
        await asyncio.gather(*tasks)

    assert ended == ["soon", "late"]


async def test_usage_and_ids_count_every_token_and_the_stop_token(opened: Opened, reference: Reference) -> None:
    async with opened() as engine:
        got = await answer(engine, asking(PROMPTS[0], max_tokens=None))

    assert got.last.finish_reason == "stop"
    assert got.last.stop_match == got.token_ids[-1] == reference.tokenizer.eos_token_id
    assert got.last.usage == Usage(len(reference.prompt(PROMPTS[0])), len(got.token_ids))
    assert got.text == reference.tokenizer.decode(list(got.token_ids[:-1]))


async def test_an_answer_ends_at_max_tokens(opened: Opened) -> None:
    async with opened() as engine:
        for count in (1, 2, 7):
            got = await answer(engine, asking(max_tokens=count))
            assert (len(got.token_ids), got.last.finish_reason) == (count, "length")
        nothing = await answer(engine, asking(max_tokens=0))
        assert (nothing.token_ids, nothing.text, nothing.last.finish_reason) == ((), "", "length")


async def test_nothing_of_a_stop_string_is_sent(opened: Opened) -> None:
    async with opened() as engine:
        whole = (await answer(engine, asking())).text
        stop = whole[8:14]
        got = await answer(engine, asking(stop=(stop,)))

    assert got.text == whole[: whole.index(stop)]
    assert (got.last.finish_reason, got.last.stop_match) == ("stop", stop)


async def test_stop_tokens_end_an_answer_but_not_before_min_tokens(opened: Opened) -> None:
    async with opened() as engine:
        free = await answer(engine, asking())
        token = free.token_ids[3]
        first = free.token_ids.index(token)
        stopped = await answer(engine, asking(stop_token_ids=(token,)))
        later = await answer(engine, asking(stop_token_ids=(token,), min_tokens=first + 2))

    assert stopped.token_ids == free.token_ids[: first + 1]
    assert stopped.last.stop_match == token
    assert later.token_ids[:first] == free.token_ids[:first]
    assert token not in later.token_ids[: first + 2]


async def test_ignore_eos_goes_on_to_the_limit(opened: Opened) -> None:
    async with opened() as engine:
        got = await answer(engine, asking(PROMPTS[0], ignore_eos=True, max_tokens=40))

    assert (len(got.token_ids), got.last.finish_reason) == (40, "length")


async def test_what_does_not_fit_the_context_is_refused_with_both_counts(opened: Opened) -> None:
    async with opened(context_length=32) as engine:
        full = await answer(engine, asking(TokenPrompt((300,) * 20), max_tokens=None, ignore_eos=True))
        assert len(full.token_ids) == 12
        with pytest.raises(ContextOverflow, match=r"32 tokens.* needs 33: 20 in the prompt and 13 for the answer"):
            await answer(engine, asking(TokenPrompt((300,) * 20), max_tokens=13))
        with pytest.raises(ContextOverflow):
            await answer(engine, asking(TextPrompt("word " * 1000)))


async def test_ids_that_are_none_of_the_models_are_refused(opened: Opened) -> None:
    async with opened() as engine:
        for fields in ({"logit_bias": {5000: 1.0}}, {"stop_token_ids": (-1,)}, {"resume_token_ids": (2048,)}):
            with pytest.raises(InvalidRequest, match="none of this model's 2048"):
                await answer(engine, asking(**fields))
        with pytest.raises(InvalidRequest, match="none of this model's 2048"):
            await engine.detokenize((2**63,))


async def test_a_conversation_without_a_message_is_refused(opened: Opened) -> None:
    async with opened() as engine:
        with pytest.raises(InvalidRequest, match="at least one message"):
            await answer(engine, asking(ChatPrompt(())))


async def test_log_probabilities_are_those_before_any_change(opened: Opened, reference: Reference) -> None:
    changes = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "logit_bias": {7: 3.0}, "min_tokens": 3, "top_k": 4}
    async with opened() as engine:
        got = await answer(engine, asking(logprobs=3, max_tokens=8))
        changed = await answer(engine, asking(logprobs=3, max_tokens=1, temperature=0.7, **changes))

    expected = reference.answer(reference.prompt(PROMPTS[3]), 8)
    for chunk, response in zip(got.chunks, expected, strict=True):
        assert chunk.logprobs is not None
        (entry,), row = chunk.logprobs, np.asarray(response.logprobs)
        assert entry.logprob == pytest.approx(row[entry.token_id], abs=1e-4)
        assert [other.token_id for other in entry.top] == np.argsort(-row)[:3].tolist()
        assert entry.data.decode() == entry.text
    first = changed.chunks[0].logprobs
    assert first is not None
    row = np.asarray(expected[0].logprobs)
    assert first[0].logprob == pytest.approx(row[first[0].token_id], abs=1e-4)


async def test_a_prompts_log_probabilities_are_those_its_tokens_would_have_as_answers(opened: Opened) -> None:
    said = "Once upon a time there was a lighthouse. " * 12  # more than a block
    async with opened() as engine:
        ids = await engine.tokenize(TextPrompt(said))
        got = await answer(engine, asking(TokenPrompt(ids), prompt_logprobs=2, max_tokens=4))
        plain = await answer(engine, asking(TokenPrompt(ids), max_tokens=4))
        forced = await answer(
            engine,
            asking(TokenPrompt(ids[:-4]), logit_bias={ids[-4]: 100.0}, max_tokens=1, logprobs=2),
        )

    echo = got.chunks[0].prompt
    assert echo is not None
    assert echo.logprobs is not None
    assert [entry.token_id for entry in echo.logprobs] == list(ids)
    assert echo.logprobs[0].logprob is None
    assert all(math.isfinite(entry.logprob) and len(entry.top) == 2 for entry in echo.logprobs[1:] if entry.logprob)
    assert forced.chunks[0].logprobs is not None
    assert echo.logprobs[-4].logprob == pytest.approx(forced.chunks[0].logprobs[0].logprob, abs=1e-3)
    assert got.token_ids == plain.token_ids


async def test_echo_shows_the_prompt_and_only_once(opened: Opened) -> None:
    async with opened() as engine:
        got = await answer(engine, asking(TextPrompt("Once upon a time"), echo=True, max_tokens=3))
        nothing = await answer(engine, asking(TextPrompt("Once upon"), echo=True, max_tokens=0, prompt_logprobs=0))

    echo = got.chunks[0].prompt
    assert echo is not None
    assert (echo.text, echo.logprobs) == ("Once upon a time", None)
    assert not any(chunk.prompt for chunk in got.chunks[1:])
    assert nothing.last.prompt is not None
    assert nothing.last.prompt.logprobs is not None


async def test_prompts_are_rendered_and_tokenised_as_the_model_reads_them(opened: Opened, reference: Reference) -> None:
    prompt = ChatPrompt((Message(role="user", content=PROMPTS[4]),))
    async with opened() as engine:
        ids = await engine.tokenize(prompt)
        rendered = await engine.render(prompt)
        assert await engine.detokenize(ids) == rendered

    assert list(ids) == reference.prompt(PROMPTS[4])


async def test_characters_are_never_cut(opened: Opened) -> None:
    async with opened() as engine:
        got = await answer(engine, asking(PROMPTS[4], max_tokens=None))

    assert "café 🙂" in got.text
    assert not any("\N{REPLACEMENT CHARACTER}" in chunk.text for chunk in got.chunks)
