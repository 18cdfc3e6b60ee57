"""One answer in the making: what was asked, what was drawn, and when it ends. Plain Python, no arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastchat_serve import Chunk, FinishReason, GenerateRequest, PromptEcho, SamplingParams, TokenLogprob, Usage
from fastchat_serve.text import AnswerText, Matcher

__all__ = ["Answer", "Stream"]


class Stream(Protocol):
    """The caller's end of an answer, as the engine's thread sees it."""

    @property
    def aborted(self) -> bool:
        """Set on the event loop's thread; the answer is dropped before the next step."""
        ...


@dataclass(eq=False)
class Answer:
    """The state of one answer."""

    request: GenerateRequest
    stream: Stream
    prompt: Sequence[int]
    text: AnswerText
    limit: int
    """The most tokens of the whole answer."""
    order: tuple[int, int]
    """Lower is served earlier: priority, then arrival."""
    deadline: float | None
    """In seconds of `time.monotonic`."""
    stop_ids: frozenset[int]
    constraint: Matcher | None
    """Has accepted the resumed tokens."""
    mask: NDArray[np.uint32] | None
    """Room for what `constraint` allows."""
    echo: PromptEcho | None = None
    """To be sent with the first chunk."""
    scored: bool = True
    """The prompt's log-probabilities are in `echo`, or nobody wants them."""
    cached_tokens: int = 0
    drawn: list[int] = field(init=False)
    """The tokens of the answer, resumed ones included."""

    def __post_init__(self) -> None:
        self.drawn = list(self.request.resume_token_ids)
        self._stopped = bool(self.drawn) and self.drawn[-1] in self.stop_ids
        self.text.resume(self.drawn[:-1] if self._stopped else self.drawn)

    @property
    def params(self) -> SamplingParams:
        return self.request.sampling

    @property
    def context(self) -> list[int]:
        """All that the model has to have read before the next token is drawn."""
        return [*self.prompt, *self.drawn]

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer is complete; None if it is not."""
        if self._stopped or self.text.matched is not None:
            return "stop"
        if self.constraint is not None and self.constraint.complete:
            return "stop"
        return "length" if len(self.drawn) >= self.limit else None

    def accept(self, token: int, logprob: TokenLogprob | None) -> Chunk:
        """Add a drawn token, which `constraint` knows of. The chunk has a `finish_reason` if that completes it."""
        self.drawn.append(token)
        self._stopped = token in self.stop_ids
        text = "" if self._stopped else self.text.feed(token)
        logprobs = None if logprob is None else (logprob,)
        if self.finish_reason is not None:
            return self.finish(text, (token,), logprobs)
        return Chunk(text=text, token_ids=(token,), logprobs=logprobs, prompt=self._take_echo())

    def finish(
        self, text: str = "", token_ids: tuple[int, ...] = (), logprobs: tuple[TokenLogprob, ...] | None = None
    ) -> Chunk:
        """The last chunk of a complete answer: `text`, what was held back, and the count."""
        if self.text.matched is None:
            text += self.text.finish()  # may complete a stop string after all
        return Chunk(
            text=text,
            token_ids=token_ids,
            logprobs=logprobs,
            prompt=self._take_echo(),
            finish_reason=self.finish_reason,
            stop_match=self.text.matched or (self.drawn[-1] if self._stopped else None),
            usage=Usage(len(self.prompt), len(self.drawn), self.cached_tokens),
        )

    def _take_echo(self) -> PromptEcho | None:
        echo, self.echo = self.echo, None
        return echo
