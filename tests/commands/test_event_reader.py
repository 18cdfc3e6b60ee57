"""Server-sent events are read as the standard says, however they are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastchat_serve.commands import sse
from fastchat_serve.commands.sse import EventReader

STREAM = (
    "\ufeffdata: first\r\n\r\n"
    ": a comment\n"
    "event: name\nid: 7\nretry: 10\ndata:second\ndata:  line\n\n"
    "\n\n"
    "data: line\u2028separator and next\x85line\r\r"
    "data\n\n"
    "data: 你好 👩‍👧\n\n"
    "data: broken off"
).encode()
EVENTS = ["first", "second\n line", "line\u2028separator and next\x85line", "", "你好 👩‍👧"]


def test_every_kind_of_line_is_understood():
    assert EventReader().feed(STREAM) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_the_cuts_do_not_matter(cuts):
    reader = EventReader()
    edges = [0, *sorted(cuts), len(STREAM)]
    assert [event for a, b in pairwise(edges) for event in reader.feed(STREAM[a:b])] == EVENTS


def test_an_event_without_end_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(sse, "MAX_EVENT_CHARS", 100)
    reader = EventReader()
    reader.feed(b"data: " + b"x" * 90)
    with pytest.raises(ValueError, match="longer than 100"):
        reader.feed(b"x" * 90)
