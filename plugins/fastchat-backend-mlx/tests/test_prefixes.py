"""What was computed once serves the next request of the same client, and of no other."""

from __future__ import annotations

import pytest

pytest.importorskip("mlx_lm", reason="mlx is not installed here")

import mlx.core as mx
from mlx_answers import Opened, answer, answers, asking
from mlx_lm.models.cache import KVCache

from fastchat_backend_mlx.prefixes import Prefixes
from fastchat_serve import TextPrompt, TokenPrompt

pytestmark = pytest.mark.anyio

STORY = "Once upon a time there was a small lighthouse on a grey rock in the sea, and its keeper was called Ada."


def cached(found: object) -> int:
    usage = found.last.usage  # type: ignore[attr-defined]
    return int(usage.cached_tokens)


async def test_a_prompt_that_begins_like_an_earlier_one_is_read_from_where_they_differ(opened: Opened) -> None:
    first, second = (asking(TextPrompt(f"{STORY} {end}")) for end in ("She was", "It stood"))
    async with opened() as engine:
        fresh = [await answer(engine, request) for request in (first, second)]
    async with opened(prefix_cache_bytes="64MiB") as engine:
        shared = len(await engine.tokenize(TextPrompt(STORY)))
        found = [await answer(engine, request) for request in (first, second, second)]

    assert [got.token_ids for got in found] == [fresh[0].token_ids, fresh[1].token_ids, fresh[1].token_ids]
    assert [cached(got) for got in fresh] == [0, 0]
    assert cached(found[0]) == 0
    assert shared - 1 <= cached(found[1]) < found[1].last.usage.prompt_tokens
    assert cached(found[2]) == found[2].last.usage.prompt_tokens - 1


async def test_a_conversation_goes_on_from_its_own_answer(opened: Opened) -> None:
    async with opened(prefix_cache_bytes="64MiB") as engine:
        prompt = await engine.tokenize(TextPrompt(STORY))
        got = await answer(engine, asking(TokenPrompt(prompt)))
        on = (*prompt, *got.token_ids, 300, 301)
        assert cached(await answer(engine, asking(TokenPrompt(on)))) == len(on) - 2


async def test_nothing_is_shared_between_clients(opened: Opened) -> None:
    async with opened(prefix_cache_bytes="64MiB") as engine:
        await answer(engine, asking(TextPrompt(STORY), tenant="one"))
        other = await answer(engine, asking(TextPrompt(STORY), tenant="two"))
        own = await answer(engine, asking(TextPrompt(STORY), tenant="one"))

    assert cached(other) == 0
    assert cached(own) > 0


async def test_rows_from_the_cache_and_others_share_a_batch(opened: Opened) -> None:
    requests = [asking(TextPrompt(text)) for text in (STORY, f"{STORY} It was", "Hello", STORY[:40])]
    async with opened() as engine:
        fresh = [(await answer(engine, request)).token_ids for request in requests]
    async with opened(prefix_cache_bytes="64MiB") as engine:
        for _ in range(2):
            assert [got.token_ids for got in await answers(engine, requests)] == fresh


def cache_of(length: int) -> list[KVCache]:
    layer = KVCache()
    layer.update_and_fetch(mx.zeros((1, 1, length, 8)), mx.zeros((1, 1, length, 8)))
    return [layer]


def test_the_least_recently_used_goes_first_and_the_bound_holds() -> None:
    size = sum(layer.nbytes for layer in cache_of(32))
    prefixes = Prefixes(2 * size)
    for number in range(2):
        prefixes.keep("", [number] * 32, cache_of(32))
    prefixes.find("", [0] * 32)
    prefixes.keep("", [2] * 32, cache_of(32))

    assert [prefixes.find("", [number] * 32)[1] for number in range(3)] == [32, 0, 32]


def test_a_context_replaces_those_it_goes_on_from() -> None:
    prefixes = Prefixes(2**30)
    prefixes.keep("", [1] * 32, cache_of(32))
    prefixes.keep("", [1] * 40, cache_of(40))
    cache, usable = prefixes.find("", [1] * 20)

    assert len(prefixes._kept) == 1
    assert usable == 20
    assert cache is not None
    assert cache[0].offset == 20


def test_what_cannot_be_shortened_serves_only_those_it_is_the_whole_beginning_of() -> None:
    class Recurrent(KVCache):
        def is_trimmable(self) -> bool:
            return False

    layer = Recurrent()
    layer.update_and_fetch(mx.zeros((1, 1, 32, 8)), mx.zeros((1, 1, 32, 8)))
    prefixes = Prefixes(2**30)
    prefixes.keep("", [1] * 32, [layer])

    assert prefixes.find("", [1] * 31) == (None, 0)
    assert prefixes.find("", [1] * 33)[1] == 32
