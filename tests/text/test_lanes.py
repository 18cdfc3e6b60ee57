"""What is quick to prepare waits for nothing that is slow."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from fastchat_serve import ChatPrompt, EmbedRequest, Message, Regex, TextPart, TextPrompt, TokenPrompt, ToolSpec
from fastchat_serve.text import Lanes, is_slow
from tests.sinks import a_request

LONG = "x" * 40_000


def test_what_is_quick_overtakes_what_is_slow() -> None:
    lanes, go_on = Lanes("test"), threading.Event()
    slow = [lanes.submit(lambda: go_on.wait(10), slow=True) for _ in range(5)]

    assert lanes.submit(lambda: "done", slow=False).result(10) == "done"
    assert not any(future.done() for future in slow)
    go_on.set()
    assert all(future.result(10) for future in slow)
    lanes.close()


def test_what_has_not_begun_when_the_lanes_close_is_cancelled() -> None:
    lanes, held, go_on = Lanes("test"), threading.Event(), threading.Event()

    def hold() -> bool:
        held.set()
        return go_on.wait(10)

    first = lanes.submit(hold, slow=False)
    assert held.wait(10)
    second = lanes.submit(hold, slow=False)
    lanes.close()
    go_on.set()
    assert first.result(10)
    assert second.cancelled()


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        (TextPrompt("abc"), False),
        (TextPrompt(LONG), True),
        (TokenPrompt((1,) * 40_000), True),
        (ChatPrompt((Message(role="user", content="x"), Message(role="user", content=(TextPart(LONG),)))), True),
        (ChatPrompt((Message(role="user", content="x"),), tools=(ToolSpec("f"),), tool_choice="f"), True),
        (a_request("abc"), False),
        (a_request(LONG), True),
        (a_request("abc", constraint=Regex("a+")), True),
        (EmbedRequest(id="e", inputs=(TextPrompt(LONG[:20_000]),) * 2), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_long_texts_and_constraints_are_slow(about: Any, expected: bool) -> None:
    assert is_slow(about) is expected
