"""Who has read the beginning of a prompt: the longest that is shared, by tenant, and within bounds."""

from __future__ import annotations

import pytest

from fastchat_serve import ChatPrompt, GenerateRequest, Message, TextPrompt, TokenPrompt
from fastchat_serve.controller.prefixes import BLOCK, MOST_BLOCKS, Prefixes, marks

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

    assert prefixes.known(text(LONG), ["a", "b", "c"]) == {"a": 8 * BLOCK, "b": 3 * BLOCK, "c": 0}
    assert prefixes.known(text(LONG[: 5 * BLOCK + 7] + "other" * BLOCK), ["a"]) == {"a": 5 * BLOCK}
    assert prefixes.known(text("other" + LONG), ["a"]) == {"a": 0}


def test_the_next_turn_of_a_conversation_knows_the_ones_before() -> None:
    prefixes = Prefixes()
    prefixes.note(chat(LONG, "answer"), "a")
    assert prefixes.known(chat(LONG, "answer", "and then?"), ["a", "b"]) == {"a": 8 * BLOCK, "b": 0}


def test_token_ids_are_known_too() -> None:
    ids = TokenPrompt(tuple(range(BLOCK)))
    prefixes = Prefixes()
    prefixes.note(marks(GenerateRequest(id="r", prompt=ids)), "a")
    assert prefixes.known(marks(GenerateRequest(id="r", prompt=ids)), ["a"]) == {"a": 4 * BLOCK}


@pytest.mark.parametrize("other", [{"tenant": "b"}, {"adapter": "x"}], ids=["tenant", "adapter"])
def test_s21_tenants_and_adapters_have_nothing_in_common(other: dict[str, str]) -> None:
    assert not set(text(LONG)) & set(text(LONG, **other))


def test_a_short_prompt_has_no_marks_and_a_long_one_not_too_many() -> None:
    assert text("short") == []
    assert len(text("x" * BLOCK * MOST_BLOCKS * 3)) == MOST_BLOCKS
    assert len(chat(*["x" * BLOCK] * 10 * MOST_BLOCKS)) == MOST_BLOCKS


def test_the_oldest_beginnings_are_forgotten() -> None:
    prefixes = Prefixes(most=8)
    prefixes.note(text(LONG), "a")
    prefixes.note(text(LONG[::-1][: 4 * BLOCK]), "b")
    assert prefixes.known(text(LONG), ["a"]) == {"a": 0}
    assert prefixes.known(text(LONG[::-1]), ["b"]) == {"b": 4 * BLOCK}
