"""One answer in the making: from vLLM's outputs to chunks.

vLLM gives token ids and no text, which is made here as for every engine of ours: so stop strings, held-back characters
and resumed answers are what they are elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fastchat_serve import (
    Chunk,
    EngineError,
    FinishReason,
    GenerateRequest,
    InvalidRequest,
    PromptEcho,
    TokenLogprob,
    Usage,
    constraint_param,
)
from fastchat_serve.text import AnswerText, Vocabulary

__all__ = ["Answer"]


_DIVERGED = "The answer cannot be resumed here: this engine draws other tokens than those that were delivered."


class Entry(Protocol):
    """One of vLLM's log-probabilities."""

    @property
    def logprob(self) -> float: ...
    @property
    def rank(self) -> int | None: ...


class Answer:
    """The state of one answer.

    Attributes:
        count: Tokens drawn, resumed ones included.
        finish_reason: Why the answer is complete; None if it is not.
        begun: vLLM has drawn for it.
    """

    def __init__(
        self,
        request: GenerateRequest,
        vocabulary: Vocabulary,
        *,
        prompt: Sequence[int],
        text: AnswerText,
        limit: int,
        end_ids: frozenset[int],
        echo: PromptEcho | None,
        replayed: bool,
    ) -> None:
        """`limit` is the most tokens of the answer, `end_ids` are those that end it; `echo` goes into the first chunk.

        `text` has not seen the request's `resume_token_ids`; with `replayed`, vLLM draws them once more.
        """
        self.finish_reason: FinishReason | None = None
        self.begun = False
        self._request, self._vocabulary, self._text = request, vocabulary, text
        self._prompt, self._limit, self._echo = prompt, limit, echo
        self._cached = 0
        resumed = request.resume_token_ids
        self.count = len(resumed)
        self._again = list(resumed) if replayed else []
        self._stop_id = resumed[-1] if resumed and resumed[-1] in end_ids else None
        text.resume(resumed if self._stop_id is None else resumed[:-1])
        if self._stop_id is not None or text.matched is not None:
            self.finish_reason = "stop"
        elif self.count >= limit:
            self.finish_reason = "length"

    @property
    def tokens_held(self) -> int:
        """In the key-value cache, about."""
        return len(self._prompt) + self.count if self.begun else 0

    def end(self, prompt_logprobs: Sequence[Mapping[int, Entry] | None] | None = None) -> Chunk:
        """The only chunk of an answer that was complete before vLLM drew for it."""
        self._score(prompt_logprobs)
        return self._last("", (), None)

    def take(self, output: Any) -> Chunk | None:
        """What vLLM's `output` adds, None if that is known. Raises `ServeError` if vLLM gave the answer up."""
        (new,) = output.outputs
        if new.finish_reason in ("abort", "error"):
            raise self._given_up(new.finish_reason)
        if not self.begun:
            self.begun = True
            self._cached = min(output.num_cached_tokens or 0, len(self._prompt))
            self._score(output.prompt_logprobs)
        known = self._replay(new.token_ids)
        ids: Sequence[int] = new.token_ids[known:]
        if known and not ids:
            if new.finish_reason is not None:
                raise EngineError(_DIVERGED)
            return None
        if new.finish_reason == "stop":
            self._stop_id = new.stop_reason if new.stop_reason is not None else ids[-1]
        text, used = "", 0
        for token in ids:
            used += 1
            if self._stop_id is None or used < len(ids):
                text += self._text.feed(token)
            if self._text.matched is not None:
                break  # what was drawn after a stop string is nobody's
        self.count += used
        drawn = tuple(ids[:used])
        logprobs = self._logprobs((new.logprobs or ())[known:], used)
        if self._text.matched is not None or new.finish_reason == "stop":
            self.finish_reason = "stop"
        elif new.finish_reason is not None:
            self.finish_reason = "length"
        if self.finish_reason is not None:
            return self._last(text, drawn, logprobs)
        return Chunk(text=text, token_ids=drawn, logprobs=logprobs, prompt=self._take_echo())

    def _replay(self, ids: Sequence[int]) -> int:
        """How many of these tokens an earlier run has delivered."""
        known = min(len(ids), len(self._again))
        if list(ids[:known]) != self._again[:known]:
            raise EngineError(_DIVERGED)
        del self._again[:known]
        return known

    def _last(self, text: str, ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...] | None) -> Chunk:
        if self._text.matched is None:
            text += self._text.finish()  # may complete a stop string after all
            if self._text.matched is not None:
                self.finish_reason = "stop"
        return Chunk(
            text=text,
            token_ids=ids,
            logprobs=logprobs,
            prompt=self._take_echo(),
            finish_reason=self.finish_reason,
            stop_match=self._text.matched if self._text.matched is not None else self._stop_id,
            usage=Usage(len(self._prompt), self.count, self._cached),
        )

    def _logprobs(self, entries: Any, used: int) -> tuple[TokenLogprob, ...] | None:
        wanted = self._request.logprobs
        if wanted is None:
            return None
        return tuple(self._logprob(entry, wanted) for entry in entries[:used])

    def _logprob(self, entries: Mapping[int, Entry], count: int) -> TokenLogprob:
        """vLLM's `entries` begin with the token itself; then come the `count` most likely, which may include it."""
        token = next(iter(entries))
        ranked = list(entries.items())
        if len(ranked) > count:  # it is none of them
            del ranked[0]
        ranked.sort(key=lambda item: item[1].rank or 0)
        return self._vocabulary.logprob(token, entries[token].logprob, [(id, entry.logprob) for id, entry in ranked])

    def _score(self, entries: Sequence[Mapping[int, Entry] | None] | None) -> None:
        """Put the log-probabilities of the prompt into the echo."""
        wanted = self._request.prompt_logprobs
        if wanted is None or self._echo is None or entries is None:
            return
        scored = tuple(
            self._vocabulary.logprob(token, None) if entry is None else self._logprob(entry, wanted)
            for token, entry in zip(self._prompt, entries, strict=True)
        )
        self._echo = PromptEcho(self._echo.text, self._echo.token_ids, scored)

    def _given_up(self, reason: str) -> EngineError | InvalidRequest:
        constraint = self._request.constraint
        if reason == "error" and not self.begun and constraint is not None:
            param = constraint_param(type(constraint))
            return InvalidRequest("The constraint could not be compiled for this model.", param=param)
        return EngineError("vLLM gave this answer up.")

    def _take_echo(self) -> PromptEcho | None:
        echo, self._echo = self._echo, None
        return echo
