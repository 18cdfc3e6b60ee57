"""Texts to vectors: what the model makes of every token, pooled and normalised.

In a context of their own, whose cells are free again after each text. llama.cpp could pool too, but only texts that
fit a single pass.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from fastchat_backend_llamacpp.failures import as_serve_error
from fastchat_backend_llamacpp.native import Batch, Context, DecodeFailed

__all__ = ["TEXTS", "EmbedJob", "Embedder", "Pooling"]

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "cls", "last"]

TEXTS: Final = 32
"""In one batch, at most."""


_LEAST_LENGTH = 1e-12
"""Of a vector that is divided by its length."""


class EmbedJob:
    """Token ids of some texts, and the vectors found so far.

    `future` gets ``[texts, dimensions]`` as float32; cancelling it ends the job.
    """

    def __init__(self, texts: Sequence[list[int]]) -> None:
        self.texts = texts
        self.future: Future[NDArray[np.float32]] = Future()
        self.todo = deque(enumerate(texts))
        self.vectors: dict[int, NDArray[np.float32]] = {}


class Embedder:
    """Embeds in `context`. Everything runs on the engine's thread."""

    def __init__(self, context: Context, pooling: Pooling, *, batch_tokens: int) -> None:
        """`context` takes batches of `batch_tokens`, of up to `TEXTS` sequences."""
        self._context, self._pooling, self._batch_tokens = context, pooling, batch_tokens
        self._batch = Batch(batch_tokens)

    def advance(self, job: EmbedJob) -> bool:
        """Embed some texts of `job`; True when the job is over."""
        if job.future.cancelled():
            return True
        try:
            group = self._next_group(job)
            if len(group) == 1:
                number, text = group[0]
                job.vectors[number] = self._long(text)
            else:
                job.vectors.update(self._together(group))
        except DecodeFailed as error:
            if error.is_fatal:
                raise
            logger.exception("embedding failed")
            _settle(job.future, as_serve_error(MemoryError() if error.is_out_of_memory else error))
            return True
        if job.todo:
            return False
        _settle(job.future, np.stack([job.vectors[number] for number in range(len(job.texts))]))
        return True

    def _next_group(self, job: EmbedJob) -> list[tuple[int, list[int]]]:
        """Take the next texts that fit a batch together, or one."""
        group = [job.todo.popleft()]
        size = len(group[0][1])
        while job.todo and len(group) < TEXTS and size + len(job.todo[0][1]) <= self._batch_tokens:
            group.append(job.todo.popleft())
            size += len(group[-1][1])
        return group

    def _together(self, group: Sequence[tuple[int, list[int]]]) -> dict[int, NDArray[np.float32]]:
        self._batch.clear()
        starts = [
            self._batch.add(text, sequence=place, position=0, outputs=True) for place, (_, text) in enumerate(group)
        ]
        self._decode(len(group))
        vectors = {
            number: self._pooled([self._states(start, len(text))], len(text))
            for start, (number, text) in zip(starts, group, strict=True)
        }
        self._forget(len(group))
        return vectors

    def _long(self, text: list[int]) -> NDArray[np.float32]:
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


def _settle(future: Future[NDArray[np.float32]], outcome: NDArray[np.float32] | Exception) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
