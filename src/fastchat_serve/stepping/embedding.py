"""Texts on their way to vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from fastchat_serve.engine import Embeddings
from fastchat_serve.errors import ServeError

__all__ = ["EmbedJob"]


class EmbedJob:
    """One request's texts.

    Attributes:
        texts: Their token ids.
        todo: The numbers of those without vectors, the longest last: texts of like length share a pass best. An
            `Embedder` takes from its end.
        future: Gets the vectors; cancelling it ends the job.
    """

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self.texts = texts
        self.todo = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        self.future: Future[Embeddings] = Future()
        self._rows: dict[int, bytes] = {}
        self._dimensions = 0

    def found(self, vectors: Mapping[int, Any]) -> bool:
        """Note the `vectors` of texts, by their numbers, of length 1. True: that was all, and the job is over."""
        import numpy as np  # comes with the engine

        for number, vector in vectors.items():
            row = np.asarray(vector, dtype="<f4")
            self._rows[number], self._dimensions = row.tobytes(), row.size
        if len(self._rows) < len(self.texts):
            return False
        data = b"".join(self._rows[number] for number in range(len(self.texts)))
        if self._may_settle():
            self.future.set_result(Embeddings(data, self._dimensions, sum(map(len, self.texts))))
        return True

    def fail(self, error: ServeError) -> None:
        """There will be no vectors."""
        if self._may_settle():
            self.future.set_exception(error)

    def _may_settle(self) -> bool:
        return not self.future.done() and self.future.set_running_or_notify_cancel()
