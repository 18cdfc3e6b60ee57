"""The example on the page for authors of backends is an engine that works."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from fastchat_serve import EngineSetup, NoOptions, TextPrompt
from tests.sinks import Remembering, a_request

pytestmark = pytest.mark.anyio


async def test_the_example_answers_many_at_once() -> None:
    page = (files("fastchat_serve") / "docs" / "backends.md").read_text(encoding="utf-8")
    shown = re.search(r"^```python stepping_example\.py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert shown is not None
    example: dict[str, object] = {}
    exec(shown[1], example)
    setup = EngineSetup("example", NoOptions(), lambda stage, fraction=None: None)
    async with example["open_example"](setup) as engine:  # type: ignore[operator]
        sinks = [Remembering() for _ in range(9)]
        for number, sink in enumerate(sinks):
            engine.start(a_request(f"grüß dich, {number}"), sink)
        for number, sink in enumerate(sinks):
            await sink.ended()
            assert (sink.text, sink.ends) == (f"grüß dich, {number}", [None])
        assert await engine.detokenize(await engine.tokenize(TextPrompt("ab"))) == "ab"
