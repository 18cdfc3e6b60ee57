"""F35: stop strings across pieces, overlapping, one the beginning of another, huge, many, empty, inside an emoji."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastchat_serve.errors import InvalidRequest
from fastchat_serve.text import StopStrings

ALPHABETS = st.sampled_from(["ab", "abc", "aé😀", "\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}"])


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Stop strings, and a text cut anywhere."""
    alphabet = draw(ALPHABETS)
    stops = draw(st.lists(st.text(alphabet, min_size=1, max_size=6), max_size=6))
    pieces = draw(st.lists(st.text(alphabet, max_size=7), max_size=12))
    return stops, pieces


def expected(stops: Sequence[str], text: str) -> tuple[str, str | None]:
    """The rule, as plainly as it can be written: first start, then shortest."""
    for start in range(len(text)):
        for stop in sorted(stops, key=len):
            if text.startswith(stop, start):
                return text[:start], stop
    return text, None


def held_back(stops: Sequence[str], text: str) -> str:
    """The longest end of `text` that is a proper beginning of a stop string."""
    for start in range(len(text)):
        if any(stop != text[start:] and stop.startswith(text[start:]) for stop in stops):
            return text[start:]
    return ""


@given(cases())
def test_the_first_match_ends_the_text_however_it_is_cut(case: tuple[list[str], list[str]]) -> None:
    stops, pieces = case
    search = StopStrings(stops)

    text = "".join([search.feed(piece) for piece in pieces]) + search.flush()

    assert (text, search.matched) == expected(stops, "".join(pieces))


@given(cases())
def test_exactly_the_text_that_may_become_a_stop_string_is_held_back(case: tuple[list[str], list[str]]) -> None:
    stops, pieces = case
    search = StopStrings(stops)
    fed = released = ""

    for piece in pieces:
        fed += piece
        released += search.feed(piece)
        if search.matched is not None:
            return
        assert released + held_back(stops, fed) == fed


@given(cases())
def test_the_remainder_is_what_came_after_the_match(case: tuple[list[str], list[str]]) -> None:
    stops, pieces = case
    search = StopStrings(stops)
    fed = released = ""

    for piece in pieces:
        fed += piece
        released += search.feed(piece)
        if search.matched is not None:
            assert released + search.matched + search.remainder == fed
            return


def test_a_match_waits_for_one_that_started_earlier() -> None:
    search = StopStrings(["abcd", "bc"])

    assert search.feed("xabc") == "x"
    assert search.matched is None
    assert search.feed("!") == "a"
    assert search.matched == "bc"
    assert search.remainder == "!"


def test_an_answer_that_ends_while_a_match_waits_ends_with_that_match() -> None:
    search = StopStrings(["abcd", "bc"])

    assert search.feed("xabc") + search.flush() == "xa"
    assert search.matched == "bc"


def test_after_a_match_nothing_comes_out_any_more() -> None:
    search = StopStrings(["."])

    assert search.feed("end. And") == "end"
    assert search.feed("more") == ""
    assert search.flush() == ""
    assert search.matched == "."


def test_without_stop_strings_all_text_goes_through() -> None:
    search = StopStrings([])

    assert search.feed("some text") == "some text"
    assert search.flush() == ""
    assert search.matched is None


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="empty") as raised:
        StopStrings(["ok", ""])
    assert raised.value.param == "stop"


def seconds_for(stops: Sequence[str], pieces: Sequence[str]) -> float:
    started = time.process_time()
    search = StopStrings(stops)
    for piece in pieces:
        search.feed(piece)
    search.flush()
    return time.process_time() - started


def test_a_stop_string_of_a_megabyte_costs_nothing_until_it_is_met() -> None:
    assert seconds_for(["a" * 1_000_000], ["some text without that letter"] * 100) < 0.1


@pytest.mark.parametrize(
    ("stops", "text"),
    [
        pytest.param(["a" * 1_000_000 + "!"], "a" * 200_000, id="a megabyte that the text follows all the way"),
        pytest.param(["a" * 1000 + "!"], ("a" * 999 + "b") * 200, id="a near miss over and over"),
        pytest.param([f"{i:x}stop" for i in range(10_000)], "0123456789abcdef" * 12_500, id="ten thousand stops"),
        pytest.param(["a" * n + "!" for n in range(1, 600)], "a" * 200_000, id="stops that begin like each other"),
    ],
)
def test_cost_grows_with_the_text_alone(stops: list[str], text: str) -> None:
    """A quadratic search takes minutes for these 200 000 characters; a linear one, half a second."""
    pieces = [text[i : i + 4] for i in range(0, len(text), 4)]

    assert seconds_for(stops, pieces) < 5
