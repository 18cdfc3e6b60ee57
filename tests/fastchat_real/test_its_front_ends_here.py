"""Unmodified front ends of FastChat's at our controller and our workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.fastchat_real.conftest import Ours, client_of, listed
from tests.fastchat_real.processes import api_server, model_worker, output_of

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]


async def test_its_api_server_serves_our_model(ours: Ours, tmp_path: Path) -> None:
    hello: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello you"}]
    async with ours() as server:
        with api_server(tmp_path, server.url) as api:
            async with client_of(api) as client:
                models = await client.models.list()
                answer = await client.chat.completions.create(model="vicuna-echo", messages=hello)
                text = await client.completions.create(model="vicuna-echo", prompt="to be", max_tokens=4)
                vectors = await client.embeddings.create(model="vicuna-echo", input=["to", "be"])
            async with httpx.AsyncClient(base_url=api) as http:
                prompt = {"model": "vicuna-echo", "prompt": "to be", "max_tokens": 1}
                fits = (await http.post("/api/v1/token_check", json={"prompts": [prompt]})).json()

    assert [card.id for card in models.data] == ["vicuna-echo"]
    assert answer.choices[0].message.content == "Hello you"
    assert answer.choices[0].finish_reason == "stop"
    assert text.choices[0].text == "to b"
    assert len(vectors.data) == 2
    assert fits["prompts"][0] == {"fits": True, "tokenCount": 5, "contextLength": 131072}


@pytest.mark.parametrize("model", ["vicuna-echo", "tiny"])
async def test_its_test_message_reads_our_stream(ours: Ours, tmp_path: Path, model: str) -> None:
    """For our own worker, and for one of its workers that is behind us."""
    async with ours() as server:
        url = server.url
        with model_worker(tmp_path, server.url):
            await listed(server, "tiny")
            arguments = ("--controller-address", server.url, "--model-name", model, "--max-new-tokens", "12")
            printed = await anyio.to_thread.run_sync(output_of, tmp_path, "test_message", *arguments)

    lines = printed.splitlines()
    assert lines[0] == "Models: ['tiny', 'vicuna-echo']"
    assert lines[1] == f"worker_addr: {url}"
    assert lines[-1].startswith(("ASSISTANT: ", "Assistant: "))
    assert len(lines[-1]) > len("ASSISTANT: ")
