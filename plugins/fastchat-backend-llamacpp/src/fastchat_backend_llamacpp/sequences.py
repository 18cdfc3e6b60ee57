"""One answer in the making: what was asked, what was drawn, how far it is read, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fastchat_backend_llamacpp.answer_text import AnswerText
from fastchat_backend_llamacpp.sampling import Sampler
from fastchat_serve import Chunk, FinishReason, GenerateRequest, PromptEcho, TokenLogprob, Usage
from fastchat_serve.text import Matcher

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
        tokens: Prompt and answer.
        limit: The most tokens of the answer.
        order: Unique; lower is served earlier: priority, then arrival.
        deadline: In seconds of `time.monotonic`, or None.
        echo: To be sent with the first chunk.
        place: The sequence number in the context's cache; None while it waits.
        read: How many of `tokens` are in the cache.
        cached_tokens: Of the prompt, found in the cache when it was first admitted; None: it has not been.
        prompt_logprobs: Those of the prompt that are known; None if nobody wants them.
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
        sampler: Sampler,
        constraint: Matcher | None,
    ) -> None:
        """`constraint` has accepted the request's `resume_token_ids`; `text` has not."""
        self.request, self.stream = request, stream
        self.tokens = [*prompt, *request.resume_token_ids]
        self.prompt_size, self.limit = len(prompt), limit
        self.order, self.deadline = order, deadline
        self.stop_ids, self.sampler, self.constraint = stop_ids, sampler, constraint
        self.echo: PromptEcho | None = None
        self.place: int | None = None
        self.read = 0
        self.cached_tokens: int | None = None
        scores = request.prompt_logprobs is not None and not request.resume_token_ids
        self.prompt_logprobs: list[TokenLogprob] | None = [] if scores else None
        self._text = text
        answer = request.resume_token_ids
        self._stopped = bool(answer) and answer[-1] in stop_ids
        text.resume(answer[:-1] if self._stopped else answer)

    @property
    def drawn(self) -> int:
        """Tokens of the answer."""
        return len(self.tokens) - self.prompt_size

    @property
    def unread(self) -> int:
        """Tokens to be read before the next can be drawn: one while the answer is under way."""
        return len(self.tokens) - self.read

    @property
    def scores(self) -> bool:
        """Whether log-probabilities of its prompt are still to be found."""
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < self.prompt_size

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer is complete; None if it is not."""
        if self._stopped or self._text.matched is not None:
            return "stop"
        if self.constraint is not None and self.constraint.complete:
            return "stop"
        return "length" if self.drawn >= self.limit else None

    def accept(self, token: int, logprob: TokenLogprob | None) -> Chunk:
        """Add a drawn token. The chunk carries `finish_reason` if that completes the answer."""
        self.tokens.append(token)
        self.sampler.accept(token)
        if self.constraint is not None:
            self.constraint.accept(token)
        self._stopped = token in self.stop_ids
        text = "" if self._stopped else self._text.feed(token)
        logprobs = None if logprob is None else (logprob,)
        if self.finish_reason is not None:
            return self.finish(text, (token,), logprobs)
        return Chunk(text=text, token_ids=(token,), logprobs=logprobs, prompt=self._take_echo())

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
            stop_match=self._text.matched or (self.tokens[-1] if self._stopped else None),
            usage=Usage(self.prompt_size, self.drawn, self.cached_tokens or 0),
        )

    def _take_echo(self) -> PromptEcho | None:
        echo, self.echo = self.echo, None
        return echo
