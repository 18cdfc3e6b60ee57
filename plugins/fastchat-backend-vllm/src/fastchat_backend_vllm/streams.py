"""One request on the event loop's side: a sink for vLLM's outputs, and the caller's handle."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

from fastchat_backend_vllm.answer import Answer
from fastchat_backend_vllm.failures import as_serve_error
from fastchat_serve import Chunk, ServeError, Sink

__all__ = ["Stream"]


class Stream:
    """Takes outputs from vLLM's own task, without one of its own to be woken for each.

    Attributes:
        answer: Once the request is prepared.
        aborted: Nobody waits for the answer any more.
        over: Set when nothing more is to be taken: at the last chunk, at a failure, after an abort.
        done: vLLM has finished by itself, so that there is nothing to abort.
        error: What went wrong.
    """

    def __init__(self, request_id: str, sink: Sink) -> None:
        self.answer: Answer | None = None
        self.aborted = False
        self.over = asyncio.Event()
        self.done = False
        self.error: ServeError | None = None
        self.preparation: Future[Any] | None = None
        self._id, self._sink = request_id, sink
        self._only_scores = False
        self._ended = False

    def abort(self) -> None:
        if not (self.aborted or self._ended):
            self.aborted = True
            self.over.set()
            if self.preparation is not None:
                self.preparation.cancel()

    def begin(self, answer: Answer, *, only_scores: bool) -> None:
        """From now on outputs may come. With `only_scores`, their tokens are not wanted."""
        self.answer, self._only_scores = answer, only_scores

    def put(self, output: Any) -> None:
        """What vLLM calls for every output, or for its failure. Never raises: that would end vLLM's task."""
        if self.over.is_set():
            return
        try:
            if isinstance(output, BaseException):
                raise output
            assert self.answer is not None
            chunk = self.answer.end(output.prompt_logprobs) if self._only_scores else self.answer.take(output)
        except Exception as error:  # whatever it was, the caller is told
            self.fail(as_serve_error(error, self._id))
        else:
            self.done = output.finished
            if chunk is not None:
                self.push(chunk)

    def push(self, chunk: Chunk) -> None:
        self._sink.push(chunk)
        if chunk.finish_reason is not None:
            self.over.set()

    def fail(self, error: ServeError) -> None:
        self.error = self.error or error
        self.over.set()

    def end(self) -> None:
        """Nothing is held for the request any more."""
        if not self._ended:
            self._ended = True
            self.over.set()
            self._sink.end(None if self.aborted else self.error)
