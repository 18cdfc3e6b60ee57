"""Record anew what the ordinary suite replays: ``python -m tests.fastchat_real.record``, where fschat is installed.

Each transcript is JSON lines of `recording.Exchange`.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
from openai import AsyncOpenAI, OpenAIError

from tests.fastchat.calls import CALLS
from tests.fastchat_real.processes import PATIENCE_S, api_server, controller, free_port, model_worker, output_of
from tests.fastchat_real.recording import Exchange, Recorder

TRANSCRIPTS = Path(__file__).parents[1] / "fastchat" / "transcripts"
ECHO = "vicuna-echo"
"""FastChat's test_message takes the template from the name."""


def write(name: str, exchanges: list[Exchange]) -> None:
    lines = [msgspec.json.encode(exchange) for exchange in exchanges]
    (TRANSCRIPTS / f"{name}.jsonl").write_bytes(b"\n".join(lines) + b"\n")


@asynccontextmanager
async def ours(folder: Path, port: int, rest: str) -> AsyncIterator[None]:
    """A server of ours."""
    config = folder / "ours.toml"
    config.write_text(f"[server]\nport = {port}\n[controller]\n[api]\n[fastchat]\nenabled = true\n{rest}")
    process = await asyncio.create_subprocess_exec("fastchat-serve", "--config", str(config))
    try:
        yield
    finally:
        process.kill()
        await process.wait()


async def worker_at_controller(folder: Path) -> None:
    """What a worker says to its controller."""
    to_controller = Recorder()
    behind, before = free_port(), free_port()
    with controller(folder, behind):
        async with to_controller.between(before, behind):
            with model_worker(folder, f"http://127.0.0.1:{before}"):
                await until(lambda: len(to_controller.exchanges) >= 3)
    write("worker_to_controller", to_controller.exchanges[:3])


async def worker_behind_us(folder: Path) -> None:
    """What we say to a worker, for an OpenAI client, and what it answers."""
    to_worker = Recorder()
    port, behind, before = free_port(), free_port(), free_port()
    upstream = f'upstreams = ["http://127.0.0.1:{before}"]\n[[worker]]\nbackend = "echo"\n'
    with model_worker(folder, "http://127.0.0.1:1", "--no-register", port=behind):
        async with (
            to_worker.between(before, behind),
            ours(folder, port, upstream),
            AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x") as client,
        ):
            await listed(client, "tiny")
            answers = {name: await call(client) for name, call in CALLS.items()}
    write("worker", to_worker.exchanges)
    (TRANSCRIPTS / "worker_answers.json").write_bytes(msgspec.json.format(msgspec.json.encode(answers)) + b"\n")


async def listed(client: AsyncOpenAI, model: str) -> None:
    """Return once `model` is listed."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(OpenAIError):
                if model in {card.id for card in (await client.models.list()).data}:
                    return
            await asyncio.sleep(0.2)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.1)


async def front_ends(folder: Path) -> None:
    """What the API server and test_message say to a controller and a worker that are reached at one address: ours."""
    to_all = Recorder()
    before, behind = free_port(), free_port()
    echo = f'[[worker]]\nbackend = "echo"\nnames = ["{ECHO}"]\noptions = {{ split = "byte" }}\n'
    async with ours(folder, behind, echo), to_all.between(before, behind), httpx.AsyncClient(timeout=60) as http:
        url = f"http://127.0.0.1:{before}"
        with api_server(folder, url) as api:
            await http.get(f"{api}/v1/models")
            chat = {"model": ECHO, "messages": [{"role": "user", "content": "to be"}], "max_tokens": 3}
            await http.post(f"{api}/v1/chat/completions", json=chat)
            await http.post(f"{api}/v1/completions", json={"model": ECHO, "prompt": "to be", "max_tokens": 3})
            await http.post(f"{api}/v1/embeddings", json={"model": ECHO, "input": "to be"})
        arguments = ("--controller-address", url, "--model-name", ECHO, "--max-new-tokens", "5")
        await asyncio.to_thread(output_of, folder, "test_message", *arguments)
    write("front_ends", to_all.exchanges)


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        await worker_at_controller(Path(name))
        await worker_behind_us(Path(name))
        await front_ends(Path(name))


if __name__ == "__main__":
    asyncio.run(main())
