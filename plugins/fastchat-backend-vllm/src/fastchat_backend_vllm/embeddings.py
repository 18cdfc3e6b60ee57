"""Texts to vectors: all of a request's texts at once, for vLLM to batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastchat_backend_vllm.failures import as_serve_error
from fastchat_backend_vllm.sampling import cache_salt
from fastchat_serve import Embeddings, EmbedRequest, EngineError

__all__ = ["embed"]


async def embed(llm: Any, request: EmbedRequest, texts: Sequence[list[int]]) -> Embeddings:
    """The vectors of `texts`, token ids each. Raises `ServeError`."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(_vector(llm, f"{request.id}-{number}", ids, request.tenant))
                for number, ids in enumerate(texts)
            ]
    except ExceptionGroup as group:  # the first of what may have gone wrong many times
        error = _first(group)
        raise as_serve_error(error, request.id) from error
    vectors = np.stack([task.result() for task in running])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Embeddings(vectors.astype("<f4").tobytes(), vectors.shape[1], sum(map(len, texts)))


async def _vector(llm: Any, request_id: str, ids: list[int], tenant: str) -> NDArray[np.float64]:
    from vllm import PoolingParams
    from vllm.inputs.engine import tokens_input

    prompt = tokens_input(ids, cache_salt=cache_salt(tenant))
    async for output in llm.encode(prompt, PoolingParams(task="embed"), request_id):
        if output.finished:
            vector: NDArray[np.float64] = output.outputs.data.float().numpy().astype(np.float64)
            return vector
    raise EngineError("vLLM gave no vector for a text.")


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
