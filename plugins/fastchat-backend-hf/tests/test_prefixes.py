"""Prompts that begin alike are computed once: same tokens, exact counts, nothing across tenants or over the budget."""

from __future__ import annotations

import asyncio
import random

import pytest
import torch
from hf_answers import Answer, Opened, answer, asking
from hypothesis import given
from hypothesis import strategies as st

from fastchat_backend_hf.batch_runner import BatchRunner
from fastchat_backend_hf.prefixes import PrefixCache
from fastchat_backend_hf.reading import BLOCK_TOKENS, Reading
from fastchat_serve import EngineError
from fastchat_serve.stepping import SteppingEngine

pytestmark = pytest.mark.anyio

SHARED = [random.Random(1).randrange(4, 1000) for _ in range(100)]
WHOLE = len(SHARED) // BLOCK_TOKENS * BLOCK_TOKENS
"""As much of it as is kept."""


def cached(got: Answer) -> int:
    assert got.last.usage is not None
    return got.last.usage.cached_tokens


def runner(engine: SteppingEngine) -> BatchRunner:
    generation = engine._loaded.generation
    assert generation is not None
    assert isinstance(generation._runner, BatchRunner)
    return generation._runner


def kept_tokens(engine: SteppingEngine) -> int:
    prefixes = runner(engine)._prefixes
    assert prefixes is not None
    return prefixes.tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_an_answer_is_the_same_whether_its_prompt_is_computed_or_found(
    opened: Opened, temperature: float
) -> None:
    requests = [
        asking([*SHARED, *range(10, 10 + 7 * i)], seed=i, temperature=temperature, max_tokens=12) for i in range(6)
    ]
    async with opened(prefix_cache=False) as engine:
        fresh = [await answer(engine, request) for request in requests]
    async with opened() as engine:
        found = [await answer(engine, request) for request in requests]
        again = await answer(engine, requests[-1])
    assert [one.ids for one in found] == [one.ids for one in fresh]
    assert again.ids == fresh[-1].ids
    assert [cached(one) for one in fresh] == [0] * 6
    assert cached(found[0]) == 0
    assert all(cached(one) >= WHOLE for one in found[1:])
    assert cached(again) == 128, "135 tokens, the last of which is never looked for"


async def test_the_last_token_of_a_prompt_is_always_computed(opened: Opened) -> None:
    prompt = SHARED[: 4 * BLOCK_TOKENS]
    async with opened() as engine:
        first, second = [await answer(engine, asking(prompt)) for _ in range(2)]
    assert (cached(first), cached(second)) == (0, 3 * BLOCK_TOKENS)
    assert first.ids == second.ids


async def test_a_conversation_goes_on_from_what_was_answered(opened: Opened) -> None:
    async with opened() as engine:
        first = await answer(engine, asking(SHARED, max_tokens=30, ignore_eos=True))
        follow_up = [*SHARED, *first.ids, 5, 6, 7]
        second = await answer(engine, asking(follow_up))
    async with opened(prefix_cache=False) as engine:
        assert second.ids == (await answer(engine, asking(follow_up))).ids
    assert cached(second) == 128, "of 129 tokens whose keys and values the first answer left"


async def test_prompts_that_come_together_are_read_once(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    advance = BatchRunner._advance

    def counted(self: BatchRunner, reading: Reading, count: int) -> None:
        nonlocal read
        read += min(count, reading.left)
        advance(self, reading, count)

    requests = [asking([*SHARED, 20 + i, 21 + i], id=str(i), max_tokens=4) for i in range(8)]
    async with opened(prefill_tokens=BLOCK_TOKENS) as engine:
        monkeypatch.setattr(BatchRunner, "_advance", counted)
        got = await asyncio.gather(*(answer(engine, request) for request in requests))
    prompt_tokens = sum(102 for _ in requests)
    assert read + sum(map(cached, got)) == prompt_tokens - len(requests), "every token but the last is read or found"
    assert read < prompt_tokens / 3


async def test_what_one_tenant_sent_is_not_found_by_another(opened: Opened) -> None:
    async with opened() as engine:
        for tenant in ("one", "two", ""):
            assert cached(await answer(engine, asking(SHARED, tenant=tenant))) == 0
        for tenant in ("one", "two", ""):
            assert cached(await answer(engine, asking(SHARED, tenant=tenant))) == WHOLE


async def test_prompts_to_be_scored_are_computed_and_leave_nothing(opened: Opened) -> None:
    async with opened() as engine:
        await answer(engine, asking(SHARED, prompt_logprobs=1, max_tokens=1))
        assert kept_tokens(engine) == 0
        plain = await answer(engine, asking(SHARED))
        scored = await answer(engine, asking(SHARED, prompt_logprobs=1))
    assert (cached(plain), cached(scored)) == (0, 0)
    assert scored.ids == plain.ids
    assert scored.chunks[0].prompt is not None
    assert len(scored.chunks[0].prompt.logprobs or ()) == len(SHARED)


async def test_prefixes_give_way_before_anybody_is_put_back(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    opened_contexts = 0
    open_context = BatchRunner.open

    def counted(self: BatchRunner, context: object) -> Reading:
        nonlocal opened_contexts
        opened_contexts += 1
        return open_context(self, context)  # type: ignore[arg-type]

    async with opened(kv_cache_tokens=256) as engine:
        monkeypatch.setattr(BatchRunner, "open", counted)
        await answer(engine, asking(SHARED))
        before = kept_tokens(engine)
        assert before == WHOLE
        others = [asking([7 + i] * 60, id=str(i), max_tokens=50, ignore_eos=True) for i in range(2)]
        await asyncio.gather(*(answer(engine, request) for request in others))
        assert opened_contexts == 3, "nobody had to begin again"
        assert cached(await answer(engine, asking(SHARED))) < before


async def test_rows_readings_and_prefixes_share_one_budget(opened: Opened) -> None:
    rng = random.Random(3)
    async with opened(kv_cache_tokens=512, max_batch=6) as engine:
        held = runner(engine)
        save, most = held._save, 0

        def watched(*args: object) -> None:
            nonlocal most
            save(*args)  # type: ignore[arg-type]
            most = max(most, held._taken + kept_tokens(engine))

        held._save = watched  # type: ignore[method-assign,assignment]
        prompts = [[rng.randrange(4, 1000) for _ in range(rng.randint(1, 120))] for _ in range(30)]
        await asyncio.gather(*(answer(engine, asking(p, id=str(i), max_tokens=20)) for i, p in enumerate(prompts)))
        assert 0 < most <= 512
        assert engine.current_load().kv_used_fraction == 0, "what is kept for others is free to be taken"


async def test_a_poisoned_prefix_is_not_kept(opened: Opened) -> None:
    """Reliability F18: what is not a number must not come back with the next prompt that begins alike."""
    async with opened() as engine:
        well = await answer(engine, asking(SHARED))
        prefixes = runner(engine)._prefixes
        assert prefixes is not None
        with torch.inference_mode():
            for block in prefixes._blocks.values():
                block.part(0)[:] = torch.nan
        with pytest.raises(EngineError, match="not a number"):
            await answer(engine, asking(SHARED))
        after = await answer(engine, asking(SHARED))
    assert (after.ids, cached(after)) == (well.ids, 0)


tokens = st.lists(st.integers(0, 3), max_size=5 * BLOCK_TOKENS)
salts = st.sampled_from([("a", ""), ("b", ""), ("a", "x"), ("", "a"), ("ax", "")])


@given(st.lists(st.tuples(salts, tokens), max_size=12), salts, tokens)
def test_only_what_the_same_tenant_sent_with_the_same_beginning_is_found(
    sent: list[tuple[tuple[str, str], list[int]]], salt: tuple[str, str], wanted: list[int]
) -> None:
    cache: PrefixCache[list[int]] = PrefixCache()
    for owner, context in sent:
        names = cache.names(owner, context)
        held = len(cache.find(names, 0))
        cache.keep(names, held, [context[: (n + 1) * BLOCK_TOKENS] for n in range(held, len(names))])
    found = cache.find(cache.names(salt, wanted), 0)
    expected = max(
        (
            number
            for owner, context in sent
            for number in range(len(wanted) // BLOCK_TOKENS + 1)
            if owner == salt
            and len(context) >= number * BLOCK_TOKENS
            and context[: number * BLOCK_TOKENS] == wanted[: number * BLOCK_TOKENS]
        ),
        default=0,
    )
    assert found == [wanted[: (n + 1) * BLOCK_TOKENS] for n in range(expected)]


def test_names_differ_between_processes() -> None:
    assert PrefixCache[int]().names(("",), SHARED) != PrefixCache[int]().names(("",), SHARED)


def test_names_go_on_from_known_ones() -> None:
    cache: PrefixCache[int] = PrefixCache()
    names = cache.names(("a",), SHARED)
    assert len(names) == len(SHARED) // BLOCK_TOKENS
    assert cache.names(("a",), SHARED, names[:2]) == names


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(0, 96)), max_size=30))
def test_the_end_of_a_prefix_goes_before_its_beginning(todo: list[tuple[int, int, int]]) -> None:
    cache: PrefixCache[bytes] = PrefixCache()
    contexts = [[first] + [7] * (6 * BLOCK_TOKENS) for first in range(4)]
    for number, blocks, most in todo:
        names = cache.names(("a",), contexts[number])[:blocks]
        held = len(cache.find(names, 0))
        cache.keep(names, held, names[held:])
        cache.shrink(most)
        assert cache.tokens <= most
        for context in contexts:
            held_names = [name in cache._blocks for name in cache.names(("a",), context)]
            assert held_names == sorted(held_names, reverse=True), "a block without those before it is of no use"


def test_what_was_used_last_stays_longest() -> None:
    cache: PrefixCache[int] = PrefixCache()
    old, new = (cache.names((owner,), SHARED) for owner in "ab")
    for names in (old, new):
        cache.keep(names, 0, range(len(names)))
    cache.find(old, 0)
    cache.shrink(len(old) * BLOCK_TOKENS)
    assert len(cache.find(old, 0)) == len(old)
    assert not cache.find(new, 0)
