"""Our workers at an unmodified controller of FastChat's, and its controller behind us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.fastchat_real.conftest import Ours, client_of, listed, until
from tests.fastchat_real.processes import controller, free_port, model_worker, output_of

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]


def models_at(url: str) -> list[str]:
    try:
        models: list[str] = httpx.post(f"{url}/list_models").json()["models"]
    except httpx.HTTPError:
        return []
    return models


async def test_our_model_is_called_through_it(ours: Ours, tmp_path: Path) -> None:
    """After a refresh as well, which takes those out that do not answer at the address that they registered."""
    with controller(tmp_path) as url:
        async with ours(f'beat_s = 1\ncontrollers = ["{url}"]'):
            await until(lambda: models_at(url) == ["vicuna-echo"])
            arguments = ("--controller-address", url, "--model-name", "vicuna-echo", "--max-new-tokens", "5")
            printed = await anyio.to_thread.run_sync(output_of, tmp_path, "test_message", *arguments)
    assert printed.splitlines()[-1] == "ASSISTANT: A cha"


async def test_it_may_be_started_later_and_anew(ours: Ours, tmp_path: Path) -> None:
    port = free_port()
    async with ours(f'beat_s = 0.2\ncontrollers = ["http://127.0.0.1:{port}"]'):
        for _ in range(2):
            with controller(tmp_path, port) as url:
                await until(lambda: models_at(url) == ["vicuna-echo"])


async def test_beats_keep_us_beyond_its_lease(ours: Ours, tmp_path: Path) -> None:
    with controller(tmp_path) as url:
        async with ours(f'beat_s = 1\ncontrollers = ["{url}"]'):
            await until(lambda: models_at(url) == ["vicuna-echo"])
            await anyio.sleep(9)  # more than two of its leases of four seconds
            assert models_at(url) == ["vicuna-echo"]


async def test_its_controller_behind_us_serves_its_worker(ours: Ours, tmp_path: Path) -> None:
    hello: Any = [{"role": "user", "content": "Tell me a story."}]
    with controller(tmp_path) as url, model_worker(tmp_path, url):
        async with ours(f'upstreams = ["{url}"]') as server, client_of(server.url) as client:
            await listed(server, "tiny")
            answer = await client.chat.completions.create(model="tiny", messages=hello, temperature=0, max_tokens=8)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 60, "its template has a long system message"


async def test_ours_behind_its_controller_behind_ours(ours: Ours, tmp_path: Path) -> None:
    """Stacked: texts go through all, conversations by the template of the lowest."""
    hello: Any = [{"role": "user", "content": "Hello you"}]
    with controller(tmp_path) as url:
        async with ours(f'beat_s = 1\ncontrollers = ["{url}"]') as lowest:
            await until(lambda: models_at(url) == ["vicuna-echo"])
            async with ours(f'upstreams = ["{url}"]') as highest, client_of(highest.url) as client:
                await until(lambda: len(highest.application.registry.serving("vicuna-echo")) == 2)
                for _ in range(4):
                    answer = await client.chat.completions.create(model="vicuna-echo", messages=hello)
                    assert answer.choices[0].message.content == "Hello you"
                assert lowest.url != highest.url
