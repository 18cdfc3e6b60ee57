"""Tiny models on disk, engines opened on them, and answers read to the end."""

from __future__ import annotations

import asyncio
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two threads on a busy machine stall each other

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from blockbuster import blockbuster_ctx
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from fastchat_backend_hf import HfOptions
from fastchat_backend_hf.engine import HfEngine
from fastchat_serve import Chunk, EngineSetup, GenerateRequest, SamplingParams, TokenPrompt

Folder = Callable[[str], Path]
Opened = Callable[..., AbstractAsyncContextManager[HfEngine]]

transformers_logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """A blocking call of the engine on the event loop fails the test that made it."""
    with blockbuster_ctx("fastchat_backend_hf"):
        yield


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_models.build_tokenizer()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Folder:
    """``folder("llama")``: where the model that `tiny_models.llama` makes was saved."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            tiny_models.save_model(made[name], getattr(tiny_models, name)(), tokenizer)
        return made[name]

    return folder


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """What ``folder("llama")`` holds, for comparison."""
    return tiny_models.llama()


@pytest.fixture
def opened(folder: Folder) -> Opened:
    """``async with opened("llama", max_batch=4) as engine:``; also takes a folder."""

    @asynccontextmanager
    async def opened(model: str | Path = "llama", **options: Any) -> AsyncIterator[HfEngine]:
        path = folder(model) if isinstance(model, str) else model
        settings = {"kv_cache_tokens": 4096, "device": "cpu"} | options
        async with HfEngine(EngineSetup(str(path), HfOptions(**settings), lambda *_: None)) as engine:
            yield engine

    return opened


@dataclass(frozen=True)
class Answer:
    chunks: list[Chunk]

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def ids(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]

    @property
    def last(self) -> Chunk:
        return self.chunks[-1]


async def answer(engine: HfEngine, request: GenerateRequest) -> Answer:
    """The whole answer; checks that it ends once, with its last chunk."""
    async with asyncio.timeout(30):
        chunks = [chunk async for chunk in engine.generate_stream(request)]
    assert [chunk.finish_reason is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage is not None
    return Answer(chunks)


def asking(
    prompt: Sequence[int] = (5, 6, 7), *, id: str = "r", temperature: float = 0.0, max_tokens: int | None = 8, **fields: Any
) -> GenerateRequest:
    """A request with token ids for a prompt; `fields` go where they belong."""
    own = {name: fields.pop(name) for name in list(fields) if name in GenerateRequest.__struct_fields__}
    sampling = SamplingParams(temperature=temperature, max_tokens=max_tokens, **fields)
    return GenerateRequest(id=id, **({"prompt": TokenPrompt(tuple(prompt))} | own), sampling=sampling)
