"""FastChat's side of an API process, whose workers are in other processes."""

from __future__ import annotations

import httpx
import pytest

from tests.conftest import Serving
from tests.fastchat.conftest import until

pytestmark = pytest.mark.anyio

WORKER = """
[controller]
[cluster]
token = "secret"
[[worker]]
backend = "echo"
names = ["echo"]
options = { split = "byte" }
"""
API = """
[api]
controllers = ["%s"]
[cluster]
token = "secret"
[fastchat]
enabled = true
"""


async def test_it_offers_what_its_controllers_list(serving: Serving) -> None:
    async with serving(WORKER) as worker, serving(API % worker.url) as api:
        await until(lambda: api.application.registry.ready)
        async with httpx.AsyncClient(base_url=api.url, timeout=20) as http:
            models = (await http.post("/list_models")).json()
            address = (await http.post("/get_worker_address", json={"model": "echo"})).json()
            params = {"model": "echo", "prompt": "to be", "echo": False}
            answer = (await http.post("/worker_generate", json=params)).json()
            count = (await http.post("/count_token", json=params)).json()

    assert models == {"models": ["echo"]}
    assert address["address"].startswith("http://127.0.0.1:")
    assert answer["text"] == "to be"
    assert count["count"] == 5
