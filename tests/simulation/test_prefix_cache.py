"""What a worker still has of a prompt: the longest beginning, while there is room."""

from __future__ import annotations

from fastchat_serve.simulation.cache import PrefixCache


def test_only_the_beginning_of_a_prompt_can_be_there() -> None:
    cache = PrefixCache(1000)
    assert cache.read((1, 2, 3), 100) == 0
    assert cache.read((1, 2, 9), 100) == 200
    assert cache.read((7, 2, 3), 100) == 0


def test_the_oldest_blocks_make_room_from_their_ends_on() -> None:
    cache = PrefixCache(400)
    cache.read((1, 2, 3), 100)
    cache.read((7, 8), 100)
    assert cache.read((1, 2, 3), 100) == 200
    cache.clear()
    assert cache.read((7, 8), 100) == 0


def test_without_room_nothing_is_kept() -> None:
    cache = PrefixCache(0)
    cache.read((1,), 100)
    assert cache.read((1,), 100) == 0
