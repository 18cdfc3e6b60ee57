"""One answer in the making: what was asked, what was drawn, and when it ends. No arrays but the mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from fastchat_serve.engine import Chunk, FinishReason, GenerateRequest, PromptEcho, SamplingParams, TokenLogprob, Usage
from fastchat_serve.errors import DeadlineExceeded
from fastchat_serve.stepping.model import News, Stream
from fastchat_serve.text import AnswerText, Matcher
from fastchat_serve.text.constraints.matcher import Mask

__all__ = ["Answer"]


@dataclass(eq=False, kw_only=True)
class Answer:
    """The state of one answer. An engine whose batch needs more of it has a subclass."""

    request: GenerateRequest
    stream: Stream
    prompt: Sequence[int]
    text: AnswerText
    """Knows nothing yet of resumed tokens."""
    limit: int
    """The most tokens of the whole answer."""
    order: tuple[int, int]
    """Unique; lower is served earlier: priority, then arrival."""
    deadline: float | None
    """In seconds of `time.monotonic`."""
    stop_ids: frozenset[int]
    constraint: Matcher | None
    """Has accepted the resumed tokens."""
    mask: Mask | None
    """Room for what `constraint` lets come next; None without one."""
    echo: PromptEcho | None
    """To be sent with the first chunk."""
    drawn: list[int] = field(init=False)
    """The tokens of the answer, resumed ones included."""
    scored: bool = field(init=False)
    """The prompt's log-probabilities are in `echo`, or nobody wants them."""
    cached_tokens: int | None = None
    """Of the prompt, found in a cache when it was first read; None: it is not read yet."""

    def __post_init__(self) -> None:
        self.drawn = list(self.request.resume_token_ids)
        self.scored = self.request.prompt_logprobs is None or self.echo is None
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

    @property
    def forbidden(self) -> frozenset[int]:
        """Stop tokens that may not come yet."""
        return self.stop_ids if len(self.drawn) < self.params.min_tokens else frozenset()

    def accept(self, token: int, logprob: TokenLogprob | None) -> Chunk:
        """Add a drawn token. The chunk has a `finish_reason` if that completes the answer.

        Raises `EngineError` if the constraint does not allow it.
        """
        self.drawn.append(token)
        if self.constraint is not None:
            self.constraint.accept(token)
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
            usage=Usage(len(self.prompt), len(self.drawn), self.cached_tokens or 0),
        )

    def end_scoring(self, logprobs: Iterable[TokenLogprob]) -> None:
        """All of the prompt's are known; they go out with the first chunk."""
        assert self.echo is not None
        self.echo, self.scored = replace(self.echo, logprobs=tuple(logprobs)), True

    def is_unwanted(self, now: float) -> bool:
        """Whether its caller has left, or its time is over."""
        return self.stream.aborted or (self.deadline is not None and now >= self.deadline)

    def leave(self) -> News:
        """The end of an answer that is unwanted."""
        late = None if self.stream.aborted else DeadlineExceeded("The answer took longer than its time limit.")
        return News(self.stream, ended=True, error=late)

    def _take_echo(self) -> PromptEcho | None:
        echo, self.echo = self.echo, None
        return echo
