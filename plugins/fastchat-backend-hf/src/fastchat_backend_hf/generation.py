"""One step of all answers: drop who left, read a block of the waiting prompts, decode, draw, accept.

A prompt is read up to its last token, which the row's first decoding step reads: so every logit that is
drawn from comes out of one pass, whether an answer begins or goes on.

A failure ends as little as it can: a newcomer that does not fit ends alone; memory that runs out in a shared pass ends
the longest answer; any other failure of a shared pass ends its rows, and the next ones are served.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from fastchat_backend_hf.failures import as_serve_error, is_fatal, is_out_of_memory
from fastchat_backend_hf.masks import MaskWriter
from fastchat_backend_hf.pace import STEP_TOKENS, Pace
from fastchat_backend_hf.reading import Reading
from fastchat_backend_hf.runners import Block, Context, RowFailed, Runner
from fastchat_backend_hf.sampling import Draw, Sampler
from fastchat_backend_hf.scheduler import Scheduler
from fastchat_backend_hf.scoring import end_scoring, score_block
from fastchat_backend_hf.sequences import TokenSequence
from fastchat_serve import Chunk, EngineError
from fastchat_serve.stepping import News
from fastchat_serve.text import Vocabulary

__all__ = ["Generation"]

logger = logging.getLogger(__name__)


class Generation:
    """The answers under way on one runner. Everything runs on the engine's thread."""

    def __init__(
        self, runner: Runner, vocabulary: Vocabulary, device: torch.device, *, max_batch: int, prefill_tokens: int
    ) -> None:
        """`device` is where tokens are drawn."""
        self._runner, self._vocabulary, self._device = runner, vocabulary, device
        self._scheduler: Scheduler[TokenSequence] = Scheduler(runner.fits, max_batch=max_batch)
        self._pace = Pace(prefill_tokens)
        self._masks = MaskWriter()
        self._sampler: Sampler | None = None
        self._changed = True
        """Since the sampler was built, rows have joined or left."""
        self._has_warned = False
        """Of passes that fail only with blocks beside the rows."""
        self._news: list[News] = []

    @property
    def running(self) -> int:
        """Answers under way, those whose prompt is being read included."""
        return len(self._scheduler.running) + len(self._scheduler.reading)

    @property
    def used_fraction(self) -> float:
        return self._runner.used_fraction

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return len(self._scheduler) > 0

    def add(self, sequence: TokenSequence) -> None:
        self._scheduler.add(sequence)

    @torch.inference_mode()
    def step(self) -> list[News]:
        """Bring every running answer one token further, and the prompts of the others a block."""
        self._news = []
        self._drop_unwanted()
        self._finish_complete()
        self._put_back()
        self._admit()
        self._join_complete()
        if not self._scheduler.running:
            self._read_alone()
        blocks = self._next_blocks()
        offered = len(blocks)
        began = time.perf_counter()
        logits = self._decode(blocks)
        self._masks.wait()
        if logits is not None:
            try:
                draws = self._draw(logits)
            except Exception as error:
                self._fail_all(error)
            else:
                self._accept(draws)
                self._masks.begin(self._scheduler.running)
                if len(blocks) == offered:
                    self._pace.took_beside(sum(block.most for block in blocks.values()), time.perf_counter() - began)
        return self._news

    def release(self) -> None:
        self._masks.close()
        self._runner.release()

    # ------------------------------------------------------------------------------ the parts of a step

    def _drop_unwanted(self) -> None:
        """End what nobody waits for any more."""
        now = time.monotonic()

        def unwanted(sequence: TokenSequence) -> bool:
            return sequence.is_unwanted(now)

        for sequence in filter(unwanted, [*self._scheduler.running, *self._scheduler.reading]):
            self._remove(sequence)
            self._news.append(sequence.leave())
        self._news += [sequence.leave() for sequence in self._scheduler.remove_waiting(unwanted)]

    def _finish_complete(self) -> None:
        """End what needs no token: ``max_tokens = 0``, or resumed after its last one."""
        for sequence in self._scheduler.remove_waiting(
            lambda sequence: sequence.scored and sequence.finish_reason is not None
        ):
            self._news.append(News(sequence.stream, sequence.finish(), ended=True))

    def _put_back(self) -> None:
        while (sequence := self._scheduler.surplus()) is not None:
            self._remove(sequence)
            self._scheduler.add(sequence)

    def _admit(self) -> None:
        for sequence in self._scheduler.admit():
            salt = (sequence.request.tenant, sequence.request.adapter or "") if sequence.scored else None
            sequence.reading = self._runner.open(
                Context(sequence.prompt, sequence.drawn, salt, sequence.request.adapter)
            )
            sequence.prompt_logprobs.clear()
            self._scheduler.reading.append(sequence)

    def _read_alone(self) -> None:
        """Read a step's worth of prompts while no answer is under way. Those at their end become rows."""
        most, spent, began = self._pace.alone(), 0, time.perf_counter()
        while self._scheduler.reading and most - spent >= STEP_TOKENS:
            group, count = self._scheduler.next_block((most - spent) // STEP_TOKENS * STEP_TOKENS)
            spent += len(group) * min(count, max(sequence.unread for sequence in group))
            self._read_block(group, count)
            self._join_complete()
        if spent:
            self._runner.synchronize()
            self._pace.took_alone(spent, time.perf_counter() - began)

    def _next_blocks(self) -> dict[TokenSequence, Block]:
        """What is read beside the answers under way. A prompt to be scored has passes of its own."""
        running, reading = len(self._scheduler.running), len(self._scheduler.reading)
        left = self._pace.beside(crowded=reading > running) if running else 0
        blocks: dict[TokenSequence, Block] = {}
        for sequence in list(self._scheduler.reading):
            if left < STEP_TOKENS:
                break
            if not sequence.scored:
                self._read_block([sequence], left)
                break
            count = min(left // STEP_TOKENS * STEP_TOKENS, sequence.unread)
            blocks[sequence] = Block(_reading(sequence), count)
            left -= count
        return blocks

    def _read_block(self, group: Sequence[TokenSequence], count: int) -> None:
        """Read at most `count` tokens of each in one pass, and end the turn of those in `group`."""
        try:
            if group[0].scored:
                self._runner.read([_reading(sequence) for sequence in group], count)
            else:
                score_block(self._runner, self._vocabulary, group[0], count)
        except Exception as error:
            if is_out_of_memory(error) and self._runner.shrink():
                self._read_block(group, count)
            elif len(group) > 1:  # whose fault is it?
                for sequence in group:
                    if sequence.unread:  # or it was read before the failing one
                        self._read_block([sequence], count)
            else:
                self._give_up(group[0], error)
        else:
            for sequence in group:
                self._scheduler.end_turn(sequence)

    def _join_complete(self) -> None:
        """Take over what others have read by now, and make rows of those that have nothing left to read."""
        for sequence in list(self._scheduler.reading):
            try:
                self._runner.recall(_reading(sequence))
                if not sequence.unread:
                    self._join(sequence)
            except Exception as error:
                if is_out_of_memory(error) and self._runner.shrink():
                    return self._join_complete()
                self._give_up(sequence, error)
        return None

    def _join(self, sequence: TokenSequence) -> None:
        reading = _reading(sequence)
        if not sequence.scored:
            end_scoring(self._vocabulary, sequence)
        if sequence.finish_reason is not None:  # only its prompt was of interest
            self._remove(sequence)
            self._news.append(News(sequence.stream, sequence.finish(), ended=True))
            return
        self._runner.join(reading)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = min(reading.cached, len(sequence.prompt))
        sequence.reading = None
        self._scheduler.reading.remove(sequence)
        self._scheduler.running.append(sequence)
        self._changed = True

    def _decode(self, blocks: dict[TokenSequence, Block]) -> Tensor | None:
        """Next-token logits of the rows under way, ``[rows, vocabulary]``. Reads `blocks` as well.

        Afterwards `blocks` is empty if they had to be read apart from the rows.
        """
        while running := self._scheduler.running:
            try:
                logits = self._runner.decode([sequence.last for sequence in running], list(blocks.values()))
            except Exception as error:
                if is_out_of_memory(error) and self._runner.shrink():
                    continue
                if not blocks:
                    self._blame(error)
                elif not is_out_of_memory(error) and not self._has_warned:
                    self._has_warned = True
                    logger.warning("a pass with blocks of prompts failed; they are read apart", exc_info=error)
                for sequence, block in blocks.items():  # whose fault is it?
                    if sequence.unread:
                        self._read_block([sequence], block.most)
                blocks.clear()
            else:
                for sequence in blocks:
                    self._scheduler.end_turn(sequence)
                return logits
        return None

    def _blame(self, error: Exception) -> None:
        """A decoding pass failed: end a row, or all, so that the next may do."""
        running = self._scheduler.running
        if isinstance(error, RowFailed):
            self._fail_row(error.row, error.__cause__ or error)
        elif is_out_of_memory(error):
            self._fail_row(max(range(len(running)), key=lambda row: len(running[row])), error)
        else:
            self._fail_all(error)

    def _draw(self, logits: Tensor) -> list[Draw]:
        if self._changed:
            self._sampler = Sampler(list(self._scheduler.running), self._device, self._sampler)
            self._changed = False
        assert self._sampler is not None
        return self._sampler.draw(logits)

    def _accept(self, draws: Sequence[Draw]) -> None:
        for row in reversed(range(len(draws))):
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
                self._runner.keep(row, sequence.context)
                self._drop(row)

    # ------------------------------------------------------------------------------------------ details

    def _chunk(self, sequence: TokenSequence, draw: Draw) -> Chunk:
        if draw.token is None:
            raise EngineError("The model's output for this request is not a number (NaN or infinite).")
        logprob = None if draw.alternatives is None else draw.alternatives.of(draw.token, self._vocabulary)
        return sequence.accept(draw.token, logprob)

    def _remove(self, sequence: TokenSequence) -> None:
        """Take it out of the batch, wherever it is."""
        if sequence.reading is None:
            self._drop(self._scheduler.running.index(sequence))
        else:
            self._runner.close(sequence.reading)
            self._scheduler.reading.remove(sequence)
            sequence.reading = None

    def _give_up(self, sequence: TokenSequence, error: BaseException) -> None:
        self._remove(sequence)
        self._fail(sequence, error)

    def _drop(self, row: int) -> TokenSequence:
        self._runner.drop(row)
        self._changed = True
        return self._scheduler.remove_row(row)

    def _fail_row(self, row: int, error: BaseException) -> None:
        self._fail(self._drop(row), error)

    def _fail_all(self, error: BaseException) -> None:
        for row in reversed(range(len(self._scheduler.running))):
            self._fail_row(row, error)

    def _fail(self, sequence: TokenSequence, error: BaseException) -> None:
        if is_fatal(error):
            raise error
        logger.error("request %s failed", sequence.request.id, exc_info=error)
        self._news.append(News(sequence.stream, ended=True, error=as_serve_error(error)))


def _reading(sequence: TokenSequence) -> Reading:
    assert sequence.reading is not None
    return sequence.reading
