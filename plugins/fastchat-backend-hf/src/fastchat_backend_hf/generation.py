"""One step of all answers: drop who left, decode, let newcomers join, draw, accept.

A failure ends as little as it can: a newcomer that does not fit ends alone; memory that runs out in a shared pass ends
the longest answer; any other failure of a shared pass ends its rows, and the next ones are served.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from msgspec.structs import replace
from torch import Tensor

from fastchat_backend_hf.failures import as_serve_error, is_fatal, is_out_of_memory
from fastchat_backend_hf.runners import Context, RowFailed, Runner
from fastchat_backend_hf.sampling import Draw, Sampler, raw_logprobs
from fastchat_backend_hf.scheduler import Scheduler
from fastchat_backend_hf.sequences import Stream, TokenSequence
from fastchat_backend_hf.vocabulary import Vocabulary
from fastchat_serve import Chunk, DeadlineExceeded, EngineError, ServeError

__all__ = ["Generation", "News"]

logger = logging.getLogger(__name__)


class News(NamedTuple):
    """What a step brought for one stream: a chunk, the end, or both."""

    stream: Stream
    chunk: Chunk | None = None
    ended: bool = False
    error: ServeError | None = None


class Generation:
    """The answers under way on one runner. Everything runs on the engine's thread."""

    def __init__(
        self, runner: Runner, vocabulary: Vocabulary, device: torch.device, *, max_batch: int, prefill_tokens: int
    ) -> None:
        """`device` is where tokens are drawn."""
        self._runner, self._vocabulary, self._device = runner, vocabulary, device
        self._scheduler: Scheduler[TokenSequence] = Scheduler(
            runner.fits, max_batch=max_batch, prefill_tokens=prefill_tokens
        )
        self._sampler: Sampler | None = None
        self._news: list[News] = []

    @property
    def running(self) -> int:
        return len(self._scheduler.running)

    @property
    def used_fraction(self) -> float:
        return self._runner.used_fraction

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return len(self._scheduler) > 0

    def add(self, sequence: TokenSequence) -> None:
        self._scheduler.add(sequence)

    def step(self) -> list[News]:
        """Bring every answer one token further."""
        self._news = []
        self._drop_unwanted()
        self._finish_complete()
        parts = [logits for logits in (self._decode(), self._join()) if logits is not None]
        if parts:
            try:
                draws = self._draw(parts[0] if len(parts) == 1 else torch.cat(parts))
            except Exception as error:
                self._fail_all(error)
            else:
                self._accept(draws)
        return self._news

    def release(self) -> None:
        self._runner.release()

    # ------------------------------------------------------------------------------ the parts of a step

    def _drop_unwanted(self) -> None:
        """End what nobody waits for any more."""
        now = time.monotonic()

        def unwanted(sequence: TokenSequence) -> bool:
            return sequence.stream.aborted or (sequence.deadline is not None and now >= sequence.deadline)

        for row in reversed(range(self.running)):
            if unwanted(self._scheduler.running[row]):
                self._end_early(self._drop(row))
        for sequence in self._scheduler.remove_waiting(unwanted):
            self._end_early(sequence)

    def _finish_complete(self) -> None:
        """End what needs no token: ``max_tokens = 0``, or resumed after its last one."""
        for sequence in self._scheduler.remove_waiting(
            lambda sequence: sequence.scored and sequence.finish_reason is not None
        ):
            self._news.append(News(sequence.stream, sequence.finish(), ended=True))

    def _decode(self) -> Tensor | None:
        """Next-token logits of the rows under way, ``[rows, vocabulary]``."""
        while (row := self._scheduler.surplus()) is not None:
            self._scheduler.add(self._drop(row))
        while running := self._scheduler.running:
            try:
                return self._runner.decode([sequence.last for sequence in running])
            except RowFailed as failure:
                self._fail_row(failure.row, failure.__cause__ or failure)
            except Exception as error:
                if not is_out_of_memory(error):
                    self._fail_all(error)
                elif not self._runner.shrink():
                    self._fail_row(max(range(len(running)), key=lambda row: len(running[row])), error)
        return None

    def _join(self) -> Tensor | None:
        """First logits of the newcomers, ``[newcomers, vocabulary]``."""
        joining = self._scheduler.admissible()
        parts = []
        groups = [joining] if joining else []
        while groups:
            group = groups.pop(0)
            try:
                parts.append(self._begin(group))
            except Exception as error:
                if is_out_of_memory(error) and self._runner.shrink():
                    groups.insert(0, group)
                elif len(group) > 1:  # whose fault is it?
                    groups = [[sequence] for sequence in group]
                else:
                    self._fail(group[0], error)
            else:
                self._scheduler.running += group
                self._sampler = None
        return torch.cat(parts) if parts else None

    def _draw(self, logits: Tensor) -> list[Draw]:
        if self._sampler is None:
            self._sampler = Sampler(list(self._scheduler.running), self._device)
        return self._sampler.draw(logits)

    def _accept(self, draws: Sequence[Draw]) -> None:
        for row in reversed(range(self.running)):
            sequence = self._scheduler.running[row]
            try:
                chunk = self._chunk(sequence, draws[row])
            except Exception as error:
                self._runner.scrub(row)
                self._fail_row(row, error)
                continue
            ended = chunk.finish_reason is not None
            self._news.append(News(sequence.stream, chunk, ended))
            if ended:
                self._drop(row)

    # ------------------------------------------------------------------------------------------ details

    def _begin(self, group: Sequence[TokenSequence]) -> Tensor:
        if len(group) == 1 and not group[0].scored:
            return self._score(group[0])
        return self._runner.prefill([Context(sequence.prompt, sequence.answer) for sequence in group])

    def _score(self, sequence: TokenSequence) -> Tensor:
        """Begin a row and attach the log-probabilities of its prompt to its echo."""
        assert sequence.echo is not None
        entries = [self._vocabulary.unpredicted(token) for token in sequence.prompt[:1]]
        after = sequence.prompt[1:]
        block = torch.empty(0)
        for block in self._runner.score(Context(sequence.prompt, sequence.answer)):
            predicted, after = after[: len(block)], after[len(block) :]
            if predicted:
                logprobs = block[: len(predicted)].float().log_softmax(-1)
                tokens = torch.tensor(predicted, device=block.device)
                counts = [sequence.request.prompt_logprobs or 0] * len(predicted)
                found = raw_logprobs(logprobs, tokens, counts)
                entries += map(self._vocabulary.logprob, predicted, found)
        sequence.echo = replace(sequence.echo, logprobs=tuple(entries))
        sequence.scored = True
        return block[-1:]

    def _chunk(self, sequence: TokenSequence, draw: Draw) -> Chunk:
        if sequence.finish_reason is not None:  # it joined only to have its prompt scored
            return sequence.finish()
        if draw.token is None:
            raise EngineError("The model's output for this request is not a number (NaN or infinite).")
        logprob = None if draw.alternatives is None else self._vocabulary.logprob(draw.token, draw.alternatives)
        return sequence.accept(draw.token, logprob)

    def _drop(self, row: int) -> TokenSequence:
        self._runner.drop(row)
        self._sampler = None
        return self._scheduler.remove_row(row)

    def _fail_row(self, row: int, error: BaseException) -> None:
        self._fail(self._drop(row), error)

    def _fail_all(self, error: BaseException) -> None:
        for row in reversed(range(self.running)):
            self._fail_row(row, error)

    def _fail(self, sequence: TokenSequence, error: BaseException) -> None:
        if is_fatal(error):
            raise error
        logger.error("request %s failed", sequence.request.id, exc_info=error)
        self._news.append(News(sequence.stream, ended=True, error=as_serve_error(error)))

    def _end_early(self, sequence: TokenSequence) -> None:
        late = None if sequence.stream.aborted else DeadlineExceeded("The answer took longer than its time limit.")
        self._news.append(News(sequence.stream, ended=True, error=late))
