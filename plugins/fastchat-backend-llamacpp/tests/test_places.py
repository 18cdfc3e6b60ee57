"""Places in the cache, and what is left there."""

from __future__ import annotations

import pytest

from fastchat_backend_llamacpp.places import Places

MINE, YOURS = ("me", ""), ("you", "")


class Cache:
    """Tokens by place, as llama.cpp would have them."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}

    def forget(self, sequence: int, start: int = 0) -> bool:
        self.sizes[sequence] = min(self.sizes.get(sequence, 0), start)
        return True

    def share(self, source: int, target: int, end: int) -> None:
        assert self.sizes.get(target, 0) == 0, "it holds something already"
        assert self.sizes[source] >= end
        self.sizes[target] = end


@pytest.fixture
def cache() -> Cache:
    return Cache()


@pytest.fixture
def places(cache: Cache) -> Places:
    return Places(cache, 2, keeps=True)


def leave(places: Places, cache: Cache, tokens: list[int], salt: tuple[str, str] = MINE) -> int:
    place, _ = places.take(tokens, salt, reuse=True)
    cache.sizes[place] = len(tokens)
    places.give_back(place, tokens, salt)
    return place


def test_a_conversation_goes_on_in_its_place(places: Places, cache: Cache) -> None:
    place = leave(places, cache, [1, 2, 3])
    assert places.take([1, 2, 3, 4], MINE, reuse=True) == (place, 3)
    assert places.left_tokens == 0


def test_a_beginning_is_shared_and_the_rest_stays(places: Places, cache: Cache) -> None:
    place = leave(places, cache, [1, 2, 3, 4, 5])
    other, found = places.take([1, 2, 9], MINE, reuse=True)
    assert (other != place, found, cache.sizes[other], cache.sizes[place]) == (True, 2, 2, 5)


def test_the_last_token_is_always_read(places: Places, cache: Cache) -> None:
    leave(places, cache, [1, 2, 3])
    assert places.take([1, 2, 3], MINE, reuse=True)[1] == 2


def test_nobody_finds_what_another_left(places: Places, cache: Cache) -> None:
    leave(places, cache, [1, 2, 3])
    assert places.take([1, 2, 3, 4], YOURS, reuse=True)[1] == 0


def test_who_must_read_all_finds_nothing(places: Places, cache: Cache) -> None:
    leave(places, cache, [1, 2, 3])
    assert places.take([1, 2, 3, 4], MINE, reuse=False)[1] == 0


def test_the_least_recently_used_makes_room(places: Places, cache: Cache) -> None:
    first, second = leave(places, cache, [1, 2]), leave(places, cache, [5, 6])
    assert places.take([8, 9], MINE, reuse=True) == (first, 0)
    assert cache.sizes == {first: 0, second: 2}


def test_nothing_is_left_where_nothing_may_be_kept(cache: Cache) -> None:
    places = Places(cache, 1, keeps=False)
    leave(places, cache, [1, 2, 3])
    assert (places.left_tokens, places.make_room()) == (0, False)
    assert cache.sizes == {0: 0}
