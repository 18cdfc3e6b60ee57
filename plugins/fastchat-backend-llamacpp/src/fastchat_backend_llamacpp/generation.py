"""One step of all answers: drop who left, admit, read and decode in one batch, draw, accept.

A sequence that has read all its tokens but the last is a row of the batch; one with more to read adds a block of
them. Whose last token is in the batch draws its next one from the logits: so an answer that begins, one that goes on
and one that was put back are all the same.

A failure ends as little as it can: a newcomer that does not fit ends alone, a full cache puts the latest answer
back, any other failure of a batch ends those in it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastchat_backend_llamacpp.native import Batch, Context, DecodeFailed
from fastchat_backend_llamacpp.pace import Pace
from fastchat_backend_llamacpp.places import Places, Salt
from fastchat_backend_llamacpp.sampling import alternatives
from fastchat_backend_llamacpp.scheduler import Scheduler
from fastchat_backend_llamacpp.sequences import TokenSequence
from fastchat_serve import Chunk, EngineError, ServeError
from fastchat_serve.stepping import News, as_serve_error
from fastchat_serve.text import Vocabulary

__all__ = ["SCORED_TOKENS", "Generation"]

logger = logging.getLogger(__name__)

SCORED_TOKENS: Final = 32
"""Of a prompt whose log-probabilities are wanted, in one batch: each takes a row of logits."""


class _Block(NamedTuple):
    """Tokens of one sequence in a batch, the first of them at index `start`."""

    sequence: TokenSequence
    start: int
    size: int


class Generation:
    """The answers under way in one context. Everything runs on the engine's thread."""

    def __init__(
        self,
        context: Context,
        vocabulary: Vocabulary,
        *,
        adapters: Mapping[str, Any],
        max_batch: int,
        prefill_tokens: int,
        keeps_prefixes: bool,
    ) -> None:
        """`context` takes batches of ``max_batch + prefill_tokens``, with ``max_batch + SCORED_TOKENS`` outputs."""
        self._context, self._vocabulary, self._adapters = context, vocabulary, adapters
        self._batch = Batch(max_batch + prefill_tokens)
        self._pace = Pace(prefill_tokens)
        self._places = Places(context, max_batch, keeps=keeps_prefixes)
        self._scheduler = Scheduler(cells=context.cells, max_batch=max_batch)
        self._adapter: str | None = None
        """In use by the context."""
        self._news: list[News] = []

    @property
    def running(self) -> int:
        """Answers under way, those whose prompt is being read included."""
        return len(self._scheduler.admitted)

    @property
    def used_fraction(self) -> float:
        return min(self._scheduler.used_tokens / self._context.cells, 1.0)

    def release(self) -> None:
        """The context goes with the model, which closes it."""

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return len(self._scheduler) > 0

    def add(self, sequence: TokenSequence) -> None:
        self._scheduler.add(sequence)

    def step(self) -> list[News]:
        """Bring every answer under way one token further, and the prompts of the others a block."""
        self._news = []
        self._drop_unwanted()
        self._finish_complete()
        while (sequence := self._scheduler.surplus()) is not None:
            self._put_back(sequence)
        self._admit()
        self._make_room()
        for adapter, parts in self._parts().items():
            self._run(adapter, parts)
        return self._news

    # ------------------------------------------------------------------------------ the parts of a step

    def _drop_unwanted(self) -> None:
        """End what nobody waits for any more."""
        now = time.monotonic()

        def unwanted(sequence: TokenSequence) -> bool:
            return sequence.is_unwanted(now)

        leaving = [sequence for sequence in self._scheduler.admitted if unwanted(sequence)]
        for sequence in leaving:
            self._leave(sequence)
        self._news += [sequence.leave() for sequence in [*leaving, *self._scheduler.remove_waiting(unwanted)]]

    def _finish_complete(self) -> None:
        """End what needs no token: ``max_tokens = 0``, or resumed after its last one."""
        for sequence in self._scheduler.remove_waiting(
            lambda sequence: sequence.scored and sequence.finish_reason is not None
        ):
            self._news.append(News(sequence.stream, sequence.finish(), ended=True))

    def _admit(self) -> None:
        while (sequence := self._scheduler.next_in()) is not None:
            reuse = sequence.prompt_logprobs is None
            sequence.place, sequence.read = self._places.take(sequence.tokens, _salt(sequence), reuse=reuse)
            if sequence.cached_tokens is None:
                sequence.cached_tokens = min(sequence.read, len(sequence.prompt))
            self._scheduler.admitted.append(sequence)

    def _make_room(self) -> None:
        """Take the cells that answers need from those that earlier ones left."""
        while self._scheduler.used_tokens + self._places.left_tokens > self._context.cells:
            if not self._places.make_room():
                return

    def _parts(self) -> dict[str | None, list[tuple[TokenSequence, int]]]:
        """Who reads how many tokens in this step, by adapter: a batch has one."""
        parts: dict[str | None, list[tuple[TokenSequence, int]]] = {}
        admitted = list(self._scheduler.admitted)
        readers = [sequence for sequence in admitted if sequence.unread > 1 or not sequence.scored]
        left = self._pace.block(beside_answers=len(readers) < len(admitted))
        outputs = SCORED_TOKENS
        for sequence in admitted:
            size = 1
            if sequence.unread > 1 or not sequence.scored:
                size = min(sequence.unread, left)
                if not sequence.scored:
                    size = min(size, outputs)
                    outputs -= size
                if size <= 0:
                    continue
                left -= size
                self._scheduler.end_turn(sequence)
            parts.setdefault(sequence.request.adapter, []).append((sequence, size))
        return parts

    def _run(self, adapter: str | None, parts: Sequence[tuple[TokenSequence, int]]) -> None:
        """Decode one batch, and go on with those who are in it."""
        if adapter != self._adapter:
            self._context.use_adapter(None if adapter is None else self._adapters[adapter])
            self._adapter = adapter
        self._batch.clear()
        blocks = [_Block(sequence, self._add(sequence, size), size) for sequence, size in parts]
        began = time.perf_counter()
        try:
            self._context.decode(self._batch)
        except DecodeFailed as error:
            self._blame(error, [sequence for sequence, _ in parts])
            return
        prompt_tokens = sum(block.size for block in blocks if block.size > 1)
        rows = sum(block.size == 1 for block in blocks)
        self._pace.took(time.perf_counter() - began, rows=rows, prompt_tokens=prompt_tokens)
        for block in blocks:
            try:
                self._advance(block)
            except Exception as error:  # of one answer: the others go on
                self._fail(block.sequence, error)

    def _add(self, sequence: TokenSequence, size: int) -> int:
        end = sequence.read + size
        outputs = True if not sequence.scored else None if end == len(sequence.tokens) else False
        assert sequence.place is not None
        tokens = sequence.tokens[sequence.read : end]
        return self._batch.add(tokens, sequence=sequence.place, position=sequence.read, outputs=outputs)

    def _advance(self, block: _Block) -> None:
        """The tokens of `block` are read."""
        sequence = block.sequence
        if not sequence.scored:
            self._score(block)
        sequence.read += block.size
        if sequence.unread:
            return
        if sequence.finish_reason is None:
            chunk = self._draw(sequence, self._context.logits(block.start + block.size - 1))
        else:  # only its prompt was of interest
            chunk = sequence.finish()
        ended = chunk.finish_reason is not None
        self._news.append(News(sequence.stream, chunk, ended))
        if ended:
            self._leave(sequence)

    def _score(self, block: _Block) -> None:
        """Note the log-probabilities of the prompt that follow from this block."""
        sequence = block.sequence
        scored, count = sequence.prompt_logprobs, sequence.request.prompt_logprobs
        assert scored is not None
        assert count is not None
        if not scored:
            scored.append(self._vocabulary.logprob(sequence.tokens[0], None))
        for offset in range(block.size):
            place = sequence.read + offset + 1
            if len(scored) <= place < len(sequence.prompt):  # not before: one that was put back
                token = sequence.tokens[place]
                entry = alternatives(self._context.logits(block.start + offset), token, count)
                scored.append(entry.of(token, self._vocabulary))
        if len(scored) == len(sequence.prompt):
            sequence.end_scoring(scored)

    def _draw(self, sequence: TokenSequence, raw: NDArray[np.float32]) -> Chunk:
        mask, position = self._allowed(sequence), len(sequence.drawn)
        forbidden = sequence.forbidden if mask is None else ()
        token = sequence.sampler.draw(raw.copy(), position, forbidden=forbidden, mask=mask)
        if token is None:
            raise EngineError("The model's output for this request is not a number (NaN or infinite).")
        logprob = None
        if sequence.request.logprobs is not None:
            logprob = alternatives(raw, token, sequence.request.logprobs).of(token, self._vocabulary)
        return sequence.accept(token, logprob)

    def _allowed(self, sequence: TokenSequence) -> NDArray[np.bool_] | None:
        """What the constraint lets come next; None if there is none."""
        if sequence.constraint is None or sequence.mask is None:
            return None
        sequence.constraint.write_mask(sequence.mask, without=sequence.forbidden)
        bits = np.unpackbits(sequence.mask.view(np.uint8), count=self._vocabulary.size, bitorder="little")
        return bits.view(np.bool_)

    # ------------------------------------------------------------------------------------------ details

    def _leave(self, sequence: TokenSequence) -> None:
        """Take it out of the batch; what it has read stays for others."""
        assert sequence.place is not None
        self._scheduler.admitted.remove(sequence)
        self._places.give_back(sequence.place, sequence.tokens[: sequence.read], _salt(sequence))
        sequence.place, sequence.read = None, 0

    def _put_back(self, sequence: TokenSequence) -> None:
        """It goes on later, from its own tokens."""
        assert sequence.place is not None
        self._scheduler.admitted.remove(sequence)
        self._places.clear(sequence.place)
        sequence.place, sequence.read = None, 0
        self._scheduler.add(sequence)

    def _blame(self, error: DecodeFailed, sequences: Sequence[TokenSequence]) -> None:
        """The batch of `sequences` failed: make room for the next try, or end them."""
        if error.is_fatal:
            raise error
        for sequence in sequences:
            self._take_back(sequence)
        if not error.is_out_of_memory:
            for sequence in sequences:
                self._fail(sequence, error)
        elif self._places.left_tokens:
            while self._places.make_room():
                pass
        elif len(self._scheduler.admitted) > 1:
            self._put_back(self._scheduler.latest())
        else:
            self._fail(sequences[0], MemoryError())

    def _take_back(self, sequence: TokenSequence) -> None:
        """Some of the failed batch may be in the cache: go back to what was there before."""
        assert sequence.place is not None
        if not self._context.forget(sequence.place, sequence.read):
            self._context.forget(sequence.place)
            sequence.read = 0

    def _fail(self, sequence: TokenSequence, error: Exception) -> None:
        assert sequence.place is not None
        if not isinstance(error, ServeError):
            logger.error("request %s failed", sequence.request.id, exc_info=error)
        self._scheduler.admitted.remove(sequence)
        self._places.clear(sequence.place)
        self._news.append(News(sequence.stream, ended=True, error=as_serve_error(error)))


def _salt(sequence: TokenSequence) -> Salt:
    return (sequence.request.tenant, sequence.request.adapter or "")
