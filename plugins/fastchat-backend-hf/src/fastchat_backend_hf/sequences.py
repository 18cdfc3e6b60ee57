"""One answer in the making: what was asked, what was drawn, and when it ends. No tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastchat_backend_hf.reading import Reading
from fastchat_serve import Chunk, FinishReason, GenerateRequest, PromptEcho, ServeError, TokenLogprob, Usage
from fastchat_serve.text import AnswerText, Matcher

__all__ = ["Stream", "TokenSequence"]


class Stream(Protocol):
    """The caller's end of an answer, as the engine's thread sees it."""

    @property
    def aborted(self) -> bool:
        """Set on the event loop's thread; the answer is dropped before the next step."""
        ...


class TokenSequence:
    """The state of one answer.

    Attributes:
        answer: The drawn tokens, resumed ones included.
        limit: The most tokens of `answer`.
        order: Lower is served earlier: priority, then arrival.
        deadline: In seconds of `time.monotonic`, or None.
        echo: To be sent with the first chunk.
        scored: The prompt's log-probabilities are in `echo`, or nobody wants them.
        reading: While the prompt is being read.
        prompt_logprobs: Those of the part of the prompt that has been scored, without its first token.
        cached_tokens: Of the prompt, found in a cache when it was first read; None: it is not read yet.
        mask: What the constraint lets come next; None without a constraint.
    """

    def __init__(
        self,
        request: GenerateRequest,
        stream: Stream,
        *,
        prompt: Sequence[int],
        limit: int,
        order: tuple[int, int],
        deadline: float | None,
        stop_ids: frozenset[int],
        text: AnswerText,
        constraint: Matcher | None,
        mask: NDArray[np.uint32] | None,
    ) -> None:
        """`constraint` has accepted the request's `resume_token_ids`; `text` has not."""
        self.request, self.stream = request, stream
        self.prompt, self.answer = prompt, list(request.resume_token_ids)
        self.limit, self.order, self.deadline = limit, order, deadline
        self.stop_ids, self.constraint, self.mask = stop_ids, constraint, mask
        self.echo: PromptEcho | None = None
        self.scored = request.prompt_logprobs is None or bool(self.answer)
        self.reading: Reading | None = None
        self.prompt_logprobs: list[TokenLogprob] = []
        self.cached_tokens: int | None = None
        self._text = text
        self._lost: ServeError | None = None
        """Why there is no mask for the next token."""
        self._stopped = bool(self.answer) and self.last in stop_ids
        text.resume(self.answer[:-1] if self._stopped else self.answer)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)

    @property
    def last(self) -> int:
        """The token to be read next, once all before it are."""
        return self.answer[-1] if self.answer else self.prompt[-1]

    @property
    def unread(self) -> int:
        """Tokens to be read before the answer goes on."""
        return 0 if self.reading is None else self.reading.left

    @property
    def begun(self) -> bool:
        """Whether any of them are read."""
        return self.reading is not None and self.reading.done > 0

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer is complete; None if it is not."""
        if self._stopped or self._text.matched is not None:
            return "stop"
        if self.constraint is not None and self.constraint.complete:
            return "stop"
        return "length" if len(self.answer) >= self.limit else None

    def accept(self, token: int, logprob: TokenLogprob | None) -> Chunk:
        """Add a drawn token. The chunk carries `finish_reason` if that completes the answer.

        Raises `EngineError` if the constraint could not say what may be drawn.
        """
        if self._lost is not None:
            raise self._lost
        self.answer.append(token)
        if self.constraint is not None:
            self.constraint.accept(token)
        self._stopped = token in self.stop_ids
        text = "" if self._stopped else self._text.feed(token)
        logprobs = None if logprob is None else (logprob,)
        if self.finish_reason is not None:
            return self.finish(text, (token,), logprobs)
        return Chunk(text=text, token_ids=(token,), logprobs=logprobs, prompt=self._take_echo())

    def write_mask(self) -> None:
        """Let `mask` follow the tokens that were accepted. What goes wrong, `accept` will raise."""
        if self.constraint is None or self.mask is None or self.constraint.complete:
            return
        try:
            self.constraint.write_mask(self.mask)
        except ServeError as error:
            self._lost = error
        else:
            if len(self.answer) < self.request.sampling.min_tokens:
                self._forbid_the_end(self.mask)

    def finish(
        self, text: str = "", token_ids: tuple[int, ...] = (), logprobs: tuple[TokenLogprob, ...] | None = None
    ) -> Chunk:
        """The last chunk of a complete answer: `text`, what was held back, and the count."""
        if self._text.matched is None:
            text += self._text.finish()  # may complete a stop string after all
        return Chunk(
            text=text,
            token_ids=token_ids,
            logprobs=logprobs,
            prompt=self._take_echo(),
            finish_reason=self.finish_reason,
            stop_match=self._text.matched or (self.last if self._stopped else None),
            usage=Usage(len(self.prompt), len(self.answer), self.cached_tokens or 0),
        )

    def _forbid_the_end(self, mask: NDArray[np.uint32]) -> None:
        """Take the stop tokens out, unless nothing else may come."""
        ends = np.zeros_like(mask)
        for id in self.stop_ids:
            if id < 32 * len(mask):
                ends[id // 32] |= np.uint32(1 << id % 32)
        if (mask & ~ends).any():
            mask &= ~ends

    def _take_echo(self) -> PromptEcho | None:
        echo, self.echo = self.echo, None
        return echo
