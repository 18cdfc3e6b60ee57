"""One answer of the upstream: its events become chunks. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

from fastchat_backend_openai.events import Choice, Event, Logprobs, TokenEntry, ToolCallPart, TopEntry, UsageCounts
from fastchat_serve import Chunk, EngineError, FinishReason, TokenLogprob, ToolCall, Usage
from fastchat_serve.text import StopStrings

__all__ = ["FINISH_REASONS", "MAX_TOOL_CALL_CHARS", "UpstreamAnswer"]

MAX_TOOL_CALL_CHARS = 8 * 1024 * 1024
"""Of all calls of one answer: they are held back until they are complete."""

FINISH_REASONS: MappingProxyType[str, FinishReason] = MappingProxyType(
    {
        "stop": "stop",
        "eos": "stop",
        "eos_token": "stop",
        "stop_sequence": "stop",
        "tool_calls": "stop",
        "function_call": "stop",
        "length": "length",
        "max_tokens": "length",
    }
)

_Rated = tuple[str, bytes, float | None, list[tuple[float, str, bytes]]]
"""A token, its bytes, its log-probability, and the alternatives with theirs first."""


class UpstreamAnswer:
    """Takes events in; `news` is what has come since it was asked before, and `last` the end.

    Servers cut stop strings off themselves; those that leave them in are corrected here.

    Args:
        stop: Stop strings of the request.
        alternatives: Most likely tokens to report at each position; some servers send one more.
        estimate: Count events where the server does not count tokens.
    """

    def __init__(self, stop: tuple[str, ...] = (), *, alternatives: int = 0, estimate: bool = False) -> None:
        self.finish_reason: FinishReason | None = None
        self.begun = False
        """A chunk was made."""
        self._stop = StopStrings(stop) if stop else None
        self._stop_match: str | int | None = None
        self._calls = _ToolCalls()
        self._usage: UsageCounts | None = None
        self._alternatives = alternatives
        self._estimate, self._pieces = estimate, 0
        self._clear()

    @property
    def complete(self) -> bool:
        """There is nothing to wait for any more."""
        return self.finish_reason is not None and (self._usage is not None or self._estimate)

    def take(self, event: Event) -> None:
        """Raises `EngineError` for what is not to be understood."""
        if event.usage is not None:
            self._usage = event.usage
        for choice in event.choices:
            if choice.index == 0:
                self._take_choice(choice)

    def news(self) -> Chunk | None:
        """What has come; None for nothing."""
        if not (self._text or self._reasoning or self._token_ids or self._logprobs or self._whole_calls):
            return None
        chunk = Chunk(
            text=self._text,
            reasoning=self._reasoning,
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs) or None,
            tool_calls=tuple(self._whole_calls),
        )
        self.begun = True
        self._clear()
        return chunk

    def last(self) -> Chunk:
        """The last chunk. Raises `EngineError` if the answer is not whole."""
        if self.finish_reason is None:
            raise EngineError("The upstream's answer was cut off.", code="upstream_cut_off")
        self._whole_calls += self._calls.finish()
        if self._stop is not None:
            self._text += self._stop.flush()
            if self._stop.matched is not None:
                self._stop_match, self.finish_reason = self._stop.matched, "stop"
        return Chunk(
            text=self._text,
            reasoning=self._reasoning,
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs) or None,
            tool_calls=tuple(self._whole_calls),
            finish_reason=self.finish_reason,
            stop_match=self._stop_match,
            usage=self._counts(),
        )

    def _clear(self) -> None:
        self._text = self._reasoning = ""
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._whole_calls: list[ToolCall] = []

    def _take_choice(self, choice: Choice) -> None:
        self._pieces += 1
        delta = choice.delta
        text = choice.text
        if delta is not None:
            text = delta.content
            if reasoning := delta.reasoning_content or delta.reasoning:
                self._reasoning += reasoning
            if delta.tool_calls:
                self._whole_calls += self._calls.feed(delta.tool_calls)
        if text:
            self._text += text if self._stop is None else self._stop.feed(text)
        if choice.token_ids:
            self._token_ids += choice.token_ids
        if choice.logprobs is not None:
            self._logprobs += _token_logprobs(choice.logprobs, choice.token_ids, self._alternatives)
        if choice.finish_reason is not None:
            self.finish_reason = _finish_reason(choice.finish_reason)
            self._stop_match = choice.stop_reason if choice.stop_reason is not None else choice.matched_stop

    def _counts(self) -> Usage:
        counts = self._usage
        if counts is None:
            if not self._estimate:
                raise EngineError("The upstream did not count the answer's tokens.", code="upstream_no_usage")
            return Usage(0, self._pieces)
        if counts.prompt_tokens < 0 or counts.completion_tokens < 0:
            raise EngineError("The upstream counted less than no tokens.")
        details = counts.prompt_tokens_details
        cached = (details.cached_tokens or 0) if details is not None else 0
        return Usage(counts.prompt_tokens, counts.completion_tokens, min(max(cached, 0), counts.prompt_tokens))


class _ToolCalls:
    """Puts calls together from their pieces. A call is whole when the next one begins, or the answer ends."""

    def __init__(self) -> None:
        self._index: int | None = None
        self._id = self._name = ""
        self._arguments: list[str] = []
        self._open = False
        self._size = 0

    def feed(self, parts: Iterable[ToolCallPart]) -> list[ToolCall]:
        """The calls that `parts` complete."""
        whole: list[ToolCall] = []
        for part in parts:
            if self._open and self._begins_another(part):
                whole += self.finish()
            self._open, self._index = True, part.index
            self._id = part.id or self._id
            if part.function is not None:
                self._name = part.function.name or self._name
                if part.function.arguments:
                    self._arguments.append(part.function.arguments)
                    self._size += len(part.function.arguments)
            if self._size > MAX_TOOL_CALL_CHARS:
                raise EngineError("The tool calls of the upstream's answer are too long.")
        return whole

    def finish(self) -> list[ToolCall]:
        """The call under way, if there is one."""
        if not self._open:
            return []
        if not self._name:
            raise EngineError("The upstream sent a tool call without a name.")
        call = ToolCall(self._id, self._name, "".join(self._arguments) or "{}")
        self._id = self._name = ""
        self._arguments, self._open = [], False
        return [call]

    def _begins_another(self, part: ToolCallPart) -> bool:
        """By its index; by its id where all have index 0; by its name where there is no index."""
        if part.index != self._index or (part.id and self._id and part.id != self._id):
            return True
        return part.index is None and part.function is not None and bool(part.function.name and self._name)


def _token_logprobs(found: Logprobs, token_ids: list[int] | None, alternatives: int) -> list[TokenLogprob]:
    """In the contract's form, from either of OpenAI's. Ids are known where the server tells those of all tokens."""
    if found.content is not None:
        rated: list[_Rated] = [
            (
                entry.token,
                _data(entry),
                entry.logprob,
                [(top.logprob, top.token, _data(top)) for top in entry.top_logprobs or ()],
            )
            for entry in found.content
        ]
    else:
        rated = _legacy(found)
    ids = token_ids if token_ids is not None and len(token_ids) == len(rated) else [-1] * len(rated)
    return [
        TokenLogprob(token_id, text, data, logprob, _best(tops, alternatives))
        for token_id, (text, data, logprob, tops) in zip(ids, rated, strict=True)
    ]


def _legacy(found: Logprobs) -> list[_Rated]:
    """Of completions: parallel lists, without bytes."""
    tokens, values = found.tokens or [], found.token_logprobs or []
    tops = found.top_logprobs or [None] * len(tokens)
    if not len(tokens) == len(values) == len(tops):
        raise EngineError("The upstream's log-probabilities do not fit together.")
    return [
        (token, token.encode(), value, [(logprob, text, text.encode()) for text, logprob in (top or {}).items()])
        for token, value, top in zip(tokens, values, tops, strict=True)
    ]


def _best(tops: list[tuple[float, str, bytes]], count: int) -> tuple[TokenLogprob, ...]:
    """The most likely. Some servers put the drawn token before them, however unlikely it was."""
    best_first = sorted(tops, key=lambda top: -top[0])
    return tuple(TokenLogprob(-1, text, data, logprob) for logprob, text, data in best_first[:count])


def _data(entry: TokenEntry | TopEntry) -> bytes:
    if entry.bytes is None:
        return entry.token.encode()
    try:
        return bytes(entry.bytes)
    except ValueError:
        raise EngineError("The upstream sent bytes that are none.") from None


def _finish_reason(reason: str) -> FinishReason:
    if reason == "content_filter":
        raise EngineError("The upstream's content filter ended the answer.", code="content_filter")
    if reason not in FINISH_REASONS:
        raise EngineError("The upstream ended the answer, and says neither by a stop nor for its length.")
    return FINISH_REASONS[reason]
