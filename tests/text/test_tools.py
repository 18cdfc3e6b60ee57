from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastchat_serve.text import TOOL_PARSERS, HermesToolParser, TextDelta, ToolCallDelta, ToolEvent

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo <3", "days": [1, 2]}}\n</tool_call>'
OTHER = '<tool_call>{"arguments":{"a":"\\u00e9 \\" }"},"name":"add"}</tool_call>'
BROKEN = '<tool_call>\n{"name": "weather", "arguments": {\n</tool_call>'
ANSWERS = [
    f"Let me look.\n\n{CALL}\n{OTHER}\n\nDone. \n",
    f"{CALL}\n",
    f"a {BROKEN} b <tool_cal {OTHER} <",
    f"\n {OTHER}{OTHER} \n",
    f"{BROKEN}\n{CALL} x <tool_call>",
    f"never closed {CALL[:-12]}",
    f"half closed {CALL[:-3]}",
    f"cut off {CALL[:40]}",
    "<<tool_call>><</tool_call>",
    " only text,\n with spaces \n",
]


def merged(events: Sequence[ToolEvent]) -> tuple[str, list[ToolCallDelta]]:
    text = "".join([event.text for event in events if isinstance(event, TextDelta)])
    return text, [event for event in events if isinstance(event, ToolCallDelta)]


def parsed(*pieces: str) -> tuple[str, list[ToolCallDelta]]:
    parser = HermesToolParser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    return merged(events + parser.finish())


def test_calls_and_the_text_around_them_are_told_apart() -> None:
    text, calls = parsed(ANSWERS[0])

    assert text == "Let me look.\n\nDone. \n"
    assert calls == [
        ToolCallDelta(0, "weather", '{"city": "Oslo <3", "days": [1, 2]}'),
        ToolCallDelta(1, "add", '{"a":"\\u00e9 \\" }"}'),
    ]
    assert json.loads(calls[1].arguments) == {"a": 'é " }'}


@pytest.mark.parametrize("answer", ANSWERS)
def test_two_cuts_anywhere_change_nothing(answer: str) -> None:
    whole = parsed(answer)

    for first in range(len(answer) + 1):
        for second in range(first, len(answer) + 1, 3):
            assert parsed(answer[:first], answer[first:second], answer[second:]) == whole


@given(
    st.lists(
        st.sampled_from([CALL, OTHER, BROKEN, "<tool_call>", "</tool_call>", "<tool", "text", " ", "\n", "{", "é"]),
        max_size=8,
    ),
    st.lists(st.floats(0, 1), max_size=12),
)
def test_any_cuts_of_any_answer_change_nothing(parts: list[str], places: list[float]) -> None:
    answer = "".join(parts)
    cuts = sorted(round(place * len(answer)) for place in places)
    pieces = [answer[start:end] for start, end in zip([0, *cuts], [*cuts, len(answer)], strict=True)]

    assert parsed(*pieces) == parsed(answer)


@given(st.text("<tol_ca>/ \n{x", max_size=60))
def test_an_answer_without_a_call_comes_back_letter_for_letter(answer: str) -> None:
    assert parsed(*answer) == (answer, [])


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "weather", "arguments": {',
        '{"name": "weather", "arguments": [1]}',
        '{"name": "weather", "arguments": {"a": NaN}}',
        '{"name": "", "arguments": {}}',
        '{"name": 5, "arguments": {}}',
        '{"arguments": {}}',
        '{"name": "f", "arguments": ' + '{"a":' * 5000 + "1" + "}" * 5001,
        "__import__('os')",
        "",
    ],
)
def test_what_is_no_call_is_text(body: str) -> None:
    answer = f"<tool_call>\n{body}\n</tool_call>"

    assert parsed(answer) == (answer, [])


def test_a_message_that_only_calls_has_no_text() -> None:
    assert parsed(f"\n\n{CALL}\n{OTHER}\n")[0] == ""


def test_white_space_next_to_calls_is_not_text() -> None:
    assert parsed(f"\n {CALL}\nDone.")[0] == "Done."
    assert parsed(f"Let me look.\n{CALL}\n{OTHER}\n")[0] == "Let me look."


def test_arguments_may_be_left_out() -> None:
    assert parsed('<tool_call>{"name": "now"}</tool_call>') == ("", [ToolCallDelta(0, "now", "{}")])


def test_numbers_keep_every_digit() -> None:
    _, [call] = parsed('<tool_call>{"name": "f", "arguments": {"x": 0.10000000000000000000001}}</tool_call>')

    assert call.arguments == '{"x": 0.10000000000000000000001}'


def test_a_call_the_answer_ends_in_counts_if_its_json_is_complete() -> None:
    text, [call] = parsed(CALL[:-3])

    assert text == ""
    assert call.name == "weather"


def test_text_goes_out_as_soon_as_it_can_be_no_tag() -> None:
    parser = HermesToolParser()

    assert parser.feed("see a <") == [TextDelta("see a")]
    assert parser.feed("b") == [TextDelta(" <b")]


def test_a_call_goes_out_with_its_closing_tag() -> None:
    parser = HermesToolParser()

    assert parser.feed(CALL[:-1]) == []
    assert [type(event) for event in parser.feed(">")] == [ToolCallDelta]


def test_parsers_are_found_by_name() -> None:
    assert TOOL_PARSERS["hermes"] is HermesToolParser
