"""The embedded model as FastChat's front ends use it: the same answers as by our API, by the model's own template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from fastchat_serve import Message
from fastchat_serve.fastchat.conversation import render
from fastchat_serve.protocol.fastchat import Conversation
from tests.conftest import Serving

pytest.importorskip("fastchat_backend_hf", reason="needs the hf backend")
pytest.importorskip("fastchat_model_demo", reason="needs the demonstration model")

pytestmark = pytest.mark.anyio

LOCAL = (Path(__file__).parents[2] / "conf/local.toml").read_text() + "\n[fastchat]\nenabled = true\n"
TALK = [("user", "My name is Anna."), ("assistant", "Hello, Anna!"), ("user", "Hello!")]


async def test_a_conversation_that_a_front_end_wrote_is_answered_as_the_same_by_our_api(serving: Serving) -> None:
    async with serving(LOCAL) as server, httpx.AsyncClient(base_url=server.url, timeout=60) as http:

        async def call(path: str, **body: Any) -> Any:
            return (await http.post(path, json={"model": "demo"} | body)).json()

        conv = (await call("/worker_get_conv_template"))["conv"]
        prompt = render(Conversation(**conv), [Message(role=role, content=text) for role, text in TALK])
        count = (await call("/count_token", prompt=prompt))["count"]
        context = (await call("/model_details"))["context_length"]
        # As FastChat's API server asks where its client sets no limit.
        theirs = await call(
            "/worker_generate", prompt=prompt, temperature=0.0, echo=False, max_new_tokens=context - count
        )
        messages = [{"role": role, "content": text} for role, text in TALK]
        ours = await call("/v1/chat/completions", messages=messages, temperature=0)

    assert theirs["text"] == ours["choices"][0]["message"]["content"]
    assert theirs["usage"]["prompt_tokens"] == ours["usage"]["prompt_tokens"] == count
    assert theirs["finish_reason"] == "stop"
