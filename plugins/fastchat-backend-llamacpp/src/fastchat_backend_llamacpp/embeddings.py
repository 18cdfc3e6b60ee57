"""Texts to vectors: what the model makes of every token, pooled and normalised.

In a context of their own, whose cells are free again after each text. llama.cpp could pool too, but only texts that
fit a single pass.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from fastchat_backend_llamacpp.native import Batch, Context, DecodeFailed
from fastchat_serve.stepping import EmbedJob, as_serve_error

__all__ = ["TEXTS", "Embedder", "Pooling"]

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "cls", "last"]

TEXTS: Final = 32
"""In one batch, at most."""


_LEAST_LENGTH = 1e-12
"""Of a vector that is divided by its length."""


class Embedder:
    """Embeds in `context`. Everything runs on the engine's thread."""

    def __init__(self, context: Context, pooling: Pooling, *, batch_tokens: int) -> None:
        """`context` takes batches of `batch_tokens`, of up to `TEXTS` sequences."""
        self._context, self._pooling, self._batch_tokens = context, pooling, batch_tokens
        self._batch = Batch(batch_tokens)

    def advance(self, job: EmbedJob) -> bool:
        """Embed some texts of `job`; True when the job is over."""
        group = self._next_group(job)
        texts = [job.texts[number] for number in group]
        try:
            vectors = self._together(texts) if len(texts) > 1 else [self._long(texts[0])]
        except DecodeFailed as error:
            if error.is_fatal:
                raise
            logger.exception("embedding failed")
            job.fail(as_serve_error(error, out_of_memory=error.is_out_of_memory))
            return True
        return job.found(dict(zip(group, vectors, strict=True)))

    def _next_group(self, job: EmbedJob) -> list[int]:
        """Take the longest texts left that fit a batch together, or one."""
        group: list[int] = []
        size = 0
        while job.todo and len(group) < TEXTS:
            size += len(job.texts[job.todo[-1]])
            if group and size > self._batch_tokens:
                break
            group.append(job.todo.pop())
        return group

    def _together(self, texts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        self._batch.clear()
        starts = [self._batch.add(text, sequence=place, position=0, outputs=True) for place, text in enumerate(texts)]
        self._decode(len(texts))
        vectors = [
            self._pooled([self._states(start, len(text))], len(text)) for start, text in zip(starts, texts, strict=True)
        ]
        self._forget(len(texts))
        return vectors

    def _long(self, text: Sequence[int]) -> NDArray[np.float32]:
        """A text that may take several batches."""
        parts = []
        for done in range(0, len(text), self._batch_tokens):
            block = text[done : done + self._batch_tokens]
            self._batch.clear()
            self._batch.add(block, sequence=0, position=done, outputs=True)
            self._decode(1)
            parts.append(self._states(0, len(block)))
        self._forget(1)
        return self._pooled(parts, len(text))

    def _decode(self, places: int) -> None:
        try:
            self._context.decode(self._batch)
        except DecodeFailed:
            self._forget(places)
            raise

    def _forget(self, places: int) -> None:
        for place in range(places):
            self._context.forget(place)

    def _states(self, start: int, size: int) -> NDArray[np.float64]:
        """What pooling needs of these tokens: their sum, or the one that counts."""
        wanted = {"mean": range(start, start + size), "cls": (start,), "last": (start + size - 1,)}[self._pooling]
        found: NDArray[np.float64] = np.sum([self._context.embedding(i) for i in wanted], axis=0, dtype=np.float64)
        return found

    def _pooled(self, parts: Sequence[NDArray[np.float64]], size: int) -> NDArray[np.float32]:
        if self._pooling == "mean":
            vector: NDArray[np.float64] = np.sum(parts, axis=0) / size
        else:
            vector = parts[0] if self._pooling == "cls" else parts[-1]
        return np.asarray(vector / max(float(np.linalg.norm(vector)), _LEAST_LENGTH), np.float32)
