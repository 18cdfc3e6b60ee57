"""Texts that grow, as FastChat's workers send them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastchat_serve.fastchat.cumulative import Cumulative


def deltas(*texts: str) -> list[str]:
    text = Cumulative()
    return [*(text.feed(whole) for whole in texts), text.finish()]


def test_what_is_new_is_handed_out() -> None:
    assert deltas("to", "to be", "to be") == ["to", " be", "", ""]


def test_a_character_that_is_not_complete_waits() -> None:
    assert deltas("a\ufffd\ufffd", "a\ufffd\ufffd\ufffd", "a😀b") == ["a", "", "😀b", ""]


def test_a_character_that_never_completes_is_handed_out_at_the_end() -> None:
    assert deltas("\ufffd", "\ufffd\ufffdint", "\ufffd\ufffdint\ufffd") == ["", "\ufffd\ufffdint", "", "\ufffd"]


def test_what_the_clean_up_of_a_tokenizer_may_join_waits() -> None:
    assert "".join(deltas("do", "do n", "do n'", "don't", "don't stop ", "don't stop.")) == "don't stop."
    assert "".join(deltas("we", "we '", "we'v", "we've", "we've ", "we've !", "we've!")) != ""


def test_a_space_at_the_end_is_text() -> None:
    assert deltas("a ", "a b ") == ["a", " b", " "]


def test_text_that_was_taken_back_is_noticed_and_what_follows_is_handed_out() -> None:
    text = Cumulative()
    text.feed("abc")

    assert text.feed("axcd") == "d"
    assert text.rewritten


def test_a_text_that_shrinks_hands_out_nothing() -> None:
    text = Cumulative()
    text.feed("abc")

    assert text.feed("ab") == ""
    assert text.feed("abcd") == "d"


@given(st.lists(st.text()))
def test_whatever_grows_arrives_whole(pieces: list[str]) -> None:
    text, whole, out = Cumulative(), "", ""
    for piece in pieces:
        whole += piece
        out += text.feed(whole)

    assert out + text.finish() == whole
    assert not text.rewritten
