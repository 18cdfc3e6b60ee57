"""Who has read the beginning of a prompt: the longest that is shared, by tenant, and within bounds."""

from __future__ import annotations

import pytest

from fastchat_serve import ChatPrompt, GenerateRequest, Message, TextPrompt, TokenPrompt
from fastchat_serve.controller.prefixes import BLOCK, MOST_BLOCKS, MOST_READERS, Prefixes, marks

LONG = "".join(f"{number:08}" for number in range(BLOCK))
"""Eight blocks, all different."""


def text(prompt: str, **more: str) -> list[int]:
    return marks(GenerateRequest(id="r", prompt=TextPrompt(prompt), **more))  # type: ignore[arg-type]


def chat(*turns: str) -> list[int]:
    messages = tuple(Message(role="user", content=turn) for turn in turns)
    return marks(GenerateRequest(id="r", prompt=ChatPrompt(messages)))


def test_what_two_prompts_share_is_known_by_whole_blocks() -> None:
    prefixes = Prefixes()
    prefixes.note(text(LONG), "a")
    prefixes.note(text(LONG[: 3 * BLOCK]), "b")

    assert list(prefixes.known(text(LONG)).items()) == [("a", 8 * BLOCK), ("b", 3 * BLOCK)]
    assert prefixes.known(text(LONG[: 5 * BLOCK + 7] + "other" * BLOCK)) == {"a": 5 * BLOCK, "b": 3 * BLOCK}
    assert prefixes.known(text("other" + LONG)) == {}


def test_the_next_turn_of_a_conversation_knows_the_ones_before() -> None:
    prefixes = Prefixes()
    prefixes.note(chat(LONG, "answer"), "a")
    assert prefixes.known(chat(LONG, "answer", "and then?")) == {"a": 8 * BLOCK}


def test_token_ids_are_known_too() -> None:
    ids = TokenPrompt(tuple(range(BLOCK)))
    prefixes = Prefixes()
    prefixes.note(marks(GenerateRequest(id="r", prompt=ids)), "a")
    assert prefixes.known(marks(GenerateRequest(id="r", prompt=ids))) == {"a": 4 * BLOCK}


@pytest.mark.parametrize("other", [{"tenant": "b"}, {"adapter": "x"}], ids=["tenant", "adapter"])
def test_s21_tenants_and_adapters_have_nothing_in_common(other: dict[str, str]) -> None:
    assert not set(text(LONG)) & set(text(LONG, **other))


def test_a_short_prompt_has_no_marks_and_a_long_one_not_too_many() -> None:
    assert text("short") == []
    assert len(text("x" * BLOCK * MOST_BLOCKS * 3)) == MOST_BLOCKS
    assert len(chat(*["x" * BLOCK] * 10 * MOST_BLOCKS)) == MOST_BLOCKS


def test_the_oldest_beginnings_are_forgotten_from_their_ends_on() -> None:
    prefixes = Prefixes(most=8)
    prefixes.note(text(LONG), "a")
    prefixes.note(text(LONG[::-1][: 4 * BLOCK]), "b")
    assert prefixes.known(text(LONG)) == {"a": 4 * BLOCK}
    assert prefixes.known(text(LONG[::-1])) == {"b": 4 * BLOCK}
    prefixes.note(text("x" * 8 * BLOCK), "c")
    assert prefixes.known(text(LONG)) == {}


def test_of_a_beginning_that_everybody_has_read_the_newest_readers_are_known() -> None:
    prefixes = Prefixes()
    for number in range(3 * MOST_READERS):
        prefixes.note(text(LONG), f"worker {number}")
    assert set(prefixes.known(text(LONG))) == {f"worker {2 * MOST_READERS + number}" for number in range(MOST_READERS)}

    prefixes.note(text(LONG), f"worker {2 * MOST_READERS}")
    prefixes.note(text(LONG), "new")
    assert f"worker {2 * MOST_READERS}" in prefixes.known(text(LONG)), "it has read it again meanwhile"


def test_those_that_have_read_more_are_known_though_many_have_read_less() -> None:
    prefixes = Prefixes()
    prefixes.note(text(LONG), "all of it")
    for number in range(9 * MOST_READERS):
        prefixes.note(text(LONG[:BLOCK]), f"worker {number}")
    assert next(iter(prefixes.known(text(LONG)).items())) == ("all of it", 8 * BLOCK)
