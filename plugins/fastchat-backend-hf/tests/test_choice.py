"""The choice constraint follows every way to cut its options into tokens, and no other."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastchat_backend_hf.choice import ChoiceConstraint
from fastchat_serve import InvalidRequest, Unsupported

END = 99
WORDS = [b"a", b"b", b"ab", b"ba", b"abba", b" ", "é".encode()[:1], "é".encode()[1:], b"abc"]
TOKENS = {word: [id] for id, word in enumerate(WORDS)} | {b"a": [0, 50]}


@given(st.lists(st.text("ab é", max_size=6), min_size=1, max_size=5), st.integers())
def test_any_walk_ends_at_an_option(options: list[str], seed: int) -> None:
    choice = ChoiceConstraint(options, TOKENS, [END])
    rng = random.Random(seed)
    written = b""
    by_id = {id: word for word, ids in TOKENS.items() for id in ids}
    while not choice.complete:
        allowed = choice.allowed()
        assert allowed
        assert len(set(allowed)) == len(allowed)
        token = rng.choice(allowed)
        choice.accept(token)
        written += by_id.get(token, b"")
    assert written.decode() in options


@given(st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4))
def test_every_option_can_be_written_letter_by_letter(options: list[str]) -> None:
    for option in options:
        choice = ChoiceConstraint(options, TOKENS, [END])
        for letter in option:
            assert TOKENS[letter.encode()][0] in choice.allowed()
            choice.accept(TOKENS[letter.encode()][0])
        assert choice.complete or END in choice.allowed()


def test_a_token_that_leads_nowhere_is_not_allowed() -> None:
    choice = ChoiceConstraint(["abX"], {b"a": [0], b"ab": [1], b"bX": [2]}, [END])
    assert choice.allowed() == [0]


def test_an_option_that_no_tokens_can_write_is_refused() -> None:
    with pytest.raises(Unsupported, match="option 1"):
        ChoiceConstraint(["a", "xyz"], TOKENS, [END])


@pytest.mark.parametrize("options", [[], ["a" * 20_000]], ids=["none", "too long"])
def test_options_that_cannot_be_served_are_refused(options: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        ChoiceConstraint(options, TOKENS, [END])
