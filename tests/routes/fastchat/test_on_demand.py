"""FastChat's front ends and models that are loaded for whoever asks first."""

from __future__ import annotations

import httpx
import pytest

from tests.conftest import Serving
from tests.routes.fastchat.conftest import FASTCHAT

pytestmark = pytest.mark.anyio

LAZY = FASTCHAT.replace("concurrency = 4", 'concurrency = 4\nload = "first_request"')


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/worker_generate", {"prompt": "to be"}),
        ("/worker_generate_stream", {"prompt": "to be"}),
        ("/worker_get_conv_template", {}),
        ("/model_details", {}),
        ("/count_token", {"prompt": "to be"}),
        ("/worker_get_embeddings", {"input": ["to be"]}),
        ("/api/v1/chat/completions", {"messages": "to be"}),
        ("/api/v1/token_check", {"prompts": [{"model": "echo", "prompt": "to be", "max_tokens": 1}]}),
    ],
)
async def test_they_see_it_and_have_it_loaded(serving: Serving, path: str, body: dict[str, object]) -> None:
    async with serving(LAZY) as server, httpx.AsyncClient(base_url=server.url, timeout=20) as http:
        (worker,) = server.application.workers
        assert (await http.post("/list_models")).json() == {"models": ["echo"]}
        assert (await http.post("/get_worker_address", json={"model": "echo"})).json() == {"address": server.url}
        assert worker.state.value == "unloaded"
        reply = await http.post(path, json={"model": "echo"} | body)

        assert reply.status_code == 200
        assert b"50005" not in reply.content
        assert worker.state.value == "ready"
