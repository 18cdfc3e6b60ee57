"""An unmodified model_worker among our workers, called through our API."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from tests.fastchat.calls import CALLS
from tests.fastchat_real.conftest import Ours, client_of, listed
from tests.fastchat_real.processes import free_port, model_worker

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]


async def test_it_registers_answers_everything_and_is_gone_when_it_dies(ours: Ours, tmp_path: Path) -> None:
    async with ours() as server, client_of(server.url) as client:
        with model_worker(tmp_path, server.url):
            await listed(server, "tiny")
            for name, call in CALLS.items():
                assert await call(client), name
        await listed(server)  # its lease is over, or somebody asked for it


async def test_it_finds_us_again_after_we_were_away(ours: Ours, tmp_path: Path) -> None:
    """Whoever knew it is gone; the answer to its next beat has it register again."""
    port = free_port()
    with contextlib.ExitStack() as worker:
        async with ours(port=port) as server:
            worker.enter_context(model_worker(tmp_path, server.url))
            await listed(server, "tiny")
        async with ours(port=port) as server:
            await listed(server, "tiny")


async def test_two_names_of_one_worker_are_two_models(ours: Ours, tmp_path: Path) -> None:
    async with ours() as server, client_of(server.url) as client:
        with model_worker(tmp_path, server.url, names="tiny,alias"):
            await listed(server, "tiny", "alias")
            hello: Any = [{"role": "user", "content": "Hello"}]
            answers = [
                await client.chat.completions.create(model=model, messages=hello, temperature=0, max_tokens=8)
                for model in ("tiny", "alias")
            ]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content


async def test_who_leaves_frees_the_workers_slot(ours: Ours, tmp_path: Path) -> None:
    """It has two, and more clients than that leave."""
    async with ours() as server, client_of(server.url) as client:
        with model_worker(tmp_path, server.url, "--limit-worker-concurrency", "2"):
            await listed(server, "tiny")
            hello: Any = [{"role": "user", "content": "Hello"}]
            for _ in range(4):
                stream = await client.chat.completions.create(model="tiny", messages=hello, stream=True)
                await anext(aiter(stream))
                await stream.close()
            answer = await client.chat.completions.create(model="tiny", messages=hello, max_tokens=3, temperature=0)
    assert answer.choices[0].message.content
