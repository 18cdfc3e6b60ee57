"""One step of all answers: drop who left, let others in, read and decode, accept what was drawn.

mlx-lm's `BatchGenerator` holds the batch: it reads prompts beside the answers under way, and draws with what each row
was given (`sampling.py`). It is told to end nothing, so that an answer ends in one place, here. How many it holds, and
who comes first, is decided here too.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache

from fastchat_backend_mlx.failures import as_serve_error
from fastchat_backend_mlx.prefixes import Prefixes
from fastchat_backend_mlx.sampling import Drawing, most_likely
from fastchat_backend_mlx.scoring import Scoring
from fastchat_serve import Chunk, EngineError
from fastchat_serve.stepping import Answer, News
from fastchat_serve.text import Vocabulary

__all__ = ["Generation"]

logger = logging.getLogger(__name__)

_NEVER = 2**31 - 1
"""Tokens after which mlx-lm may end a row."""

_MOST_FAILURES = 3
"""In a row, of steps of different batches: then it is not the requests' fault."""


class _Row(NamedTuple):
    answer: Answer
    drawing: Drawing


class Generation:
    """The answers under way on one model. Everything runs on the engine's thread."""

    def __init__(
        self,
        model: Any,
        vocabulary: Vocabulary,
        *,
        context_length: int,
        max_batch: int,
        prefill_batch: int,
        prefill_tokens: int,
        prefixes: Prefixes,
    ) -> None:
        self._model, self._vocabulary = model, vocabulary
        self._max_batch, self._most_tokens, self._prefixes = max_batch, max_batch * context_length, prefixes
        self._make_batch: Callable[[], BatchGenerator] = lambda: BatchGenerator(
            _Float32Logits(model),
            completion_batch_size=max_batch,
            prefill_batch_size=min(prefill_batch, max_batch),
            prefill_step_size=prefill_tokens,
        )
        self._batch = self._make_batch()
        self._rows: dict[int, _Row] = {}
        """By mlx-lm's number."""
        self._scoring: list[Scoring] = []
        self._waiting: list[tuple[tuple[int, int], Answer]] = []
        self._failures = 0
        self._news: list[News] = []

    @property
    def running(self) -> int:
        """Answers under way, those whose prompt is being read included."""
        return len(self._rows) + len(self._scoring)

    @property
    def used_fraction(self) -> float:
        """Of the tokens that as many contexts as there may be can have."""
        answers = [row.answer for row in list(self._rows.values())]
        return sum(len(answer.prompt) + len(answer.drawn) for answer in answers) / self._most_tokens

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._rows or self._scoring or self._waiting)

    def add(self, answer: Answer) -> None:
        heapq.heappush(self._waiting, (answer.order, answer))

    def step(self) -> list[News]:
        """Bring every running answer one token further, and the prompts of the others a block."""
        self._news = []
        self._drop_unwanted()
        self._admit()
        self._score()
        if self._rows:
            try:
                _, responses = self._batch.next()
            except Exception as error:  # mlx raises no narrower types
                self._fail_all(error)
            else:
                self._failures = 0 if responses else self._failures
                self._accept(responses)
        return self._news

    def release(self) -> None:
        """Let go of all memory; nothing can follow."""
        self._batch.close()
        del self._batch, self._model, self._make_batch, self._prefixes
        self._rows.clear()
        self._scoring.clear()
        self._waiting.clear()

    # ------------------------------------------------------------------------------ the parts of a step

    def _drop_unwanted(self) -> None:
        """End what nobody waits for any more."""
        now = time.monotonic()
        gone = {uid: row.answer for uid, row in self._rows.items() if row.answer.is_unwanted(now)}
        self._leave(gone, keep=False)
        ended = {*gone.values(), *(job.answer for job in self._scoring if job.answer.is_unwanted(now))}
        ended.update(answer for _, answer in self._waiting if answer.is_unwanted(now))
        if not ended:
            return
        self._scoring = [job for job in self._scoring if job.answer not in ended]
        self._waiting = [entry for entry in self._waiting if entry[1] not in ended]
        heapq.heapify(self._waiting)
        self._news += [answer.leave() for answer in ended]

    def _admit(self) -> None:
        while self._waiting and self.running < self._max_batch:
            _, answer = heapq.heappop(self._waiting)
            try:
                if not answer.scored:
                    self._scoring.append(Scoring(answer, self._model, self._vocabulary))
                else:
                    self._begin(answer)
            except Exception as error:
                self._fail(answer, error)

    def _score(self) -> None:
        """Read a block of a prompt whose log-probabilities are wanted; they take turns."""
        if not self._scoring:
            return
        job = self._scoring.pop(0)
        try:
            with mx.stream(self._batch.stream):
                done = job.advance()
            if done:
                self._begin(job.answer, job.cache)
            else:
                self._scoring.append(job)
        except Exception as error:
            self._fail(job.answer, error)

    def _begin(self, answer: Answer, cache: list[Any] | None = None) -> None:
        """Make a row of it, unless nothing is to be drawn. `cache` holds all of its context but the last token."""
        if answer.finish_reason is not None:  # ``max_tokens = 0``, or resumed after its last token
            self._news.append(News(answer.stream, answer.finish(), ended=True))
            return
        context = answer.context
        known = len(context) - 1
        if cache is None:
            cache, known = self._prefixes.find(answer.request.tenant, context[:-1])
            answer.cached_tokens = min(known, len(answer.prompt))
        drawing = Drawing(answer)
        (uid,) = self._batch.insert(
            [context[known:]],
            max_tokens=[_NEVER],
            caches=[cache or make_prompt_cache(self._model)],
            all_tokens=[context[:known]],
            samplers=[drawing.sampler()],
            logits_processors=[drawing.processors()],
        )
        self._rows[uid] = _Row(answer, drawing)

    def _accept(self, responses: Iterable[BatchGenerator]) -> None:
        ended: list[int] = []
        for response in responses:
            answer, drawing = self._rows[response.uid]
            try:
                chunk = self._chunk(answer, drawing, response.token, response.logprobs)
            except Exception as error:
                self._fail(answer, error)
                self._leave([response.uid], keep=False)
                continue
            self._news.append(News(answer.stream, chunk, ended=chunk.finish_reason is not None))
            if chunk.finish_reason is not None:
                ended.append(response.uid)
        self._leave(ended, keep=bool(self._prefixes))

    # ------------------------------------------------------------------------------------------ details

    def _chunk(self, answer: Answer, drawing: Drawing, token: int, logprobs: mx.array) -> Chunk:
        if drawing.failure is not None:
            raise drawing.failure
        if not np.isfinite(np.asarray(logprobs)[token]):
            raise EngineError("The model's output for this request is not a number (NaN or infinite).")
        wanted = answer.request.logprobs
        if wanted is None:
            return answer.accept(token, None)
        raw = drawing.raw_logprobs(logprobs)
        return answer.accept(token, self._vocabulary.logprob(token, float(raw[token]), most_likely(raw, wanted)))

    def _leave(self, uids: Iterable[int], *, keep: bool) -> None:
        """Take rows out of the batch."""
        gone = {uid: self._rows.pop(uid) for uid in uids}
        if not gone:
            return
        caches = self._batch.remove(list(gone), return_prompt_caches=keep)
        for uid, (cache, tokens) in caches.items():
            self._prefixes.keep(gone[uid].answer.request.tenant, tokens, cache)

    def _fail_all(self, error: Exception) -> None:
        """A step failed, and left the batch in no known state: its rows end, and those that wait are served."""
        self._failures += 1
        if self._failures == _MOST_FAILURES:
            raise error
        for row in self._rows.values():
            self._fail(row.answer, error)
        self._rows.clear()
        self._batch.close()
        self._batch = self._make_batch()

    def _fail(self, answer: Answer, error: Exception) -> None:
        logger.error("request %s failed", answer.request.id, exc_info=error)
        self._news.append(News(answer.stream, ended=True, error=as_serve_error(error)))


class _Float32Logits:
    """A model whose logits are float32, so that no rounding to a half precision makes ties, before or after a draw."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        logits: mx.array = self._model(tokens, cache=cache).astype(mx.float32)
        return logits
