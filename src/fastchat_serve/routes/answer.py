"""The road of every generation request: requests to the dispatcher, sinks that write the reply.

`Reply` is what the two kinds of reply share: one sink per choice, and exactly one end for all of
them. `sse.py` streams, `plain.py` collects. A `Dialect` knows how one API writes either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from fastchat_serve.controller.dispatcher import Dispatcher
from fastchat_serve.engine import (
    Chunk,
    FinishReason,
    GenerateRequest,
    Handle,
    PromptEcho,
    Sink,
    TokenLogprob,
    ToolCall,
    Usage,
)
from fastchat_serve.errors import EngineError, InvalidRequest, ServeError
from fastchat_serve.policy import Policy
from fastchat_serve.routes.errors import reply_error
from fastchat_serve.routes.exchange import Exchange
from fastchat_serve.routes.hot import End
from fastchat_serve.routes.metrics import Observation

__all__ = ["Answer", "Dialect", "Reply", "begin_answer", "total_usage"]


class Answer(Struct):
    """One whole choice."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt: PromptEcho | None = None
    finish_reason: FinishReason = "stop"
    stop_match: str | int | None = None


class Dialect(Protocol):
    """How one API writes answers. Holds what one request needs; every byte is made here."""

    def body(self, answers: Sequence[Answer], total: Usage) -> bytes:
        """The JSON of a plain reply."""
        ...

    def opening(self, index: int) -> bytes:
        """Events before the first token of a choice; may be empty."""
        ...

    def template(self, index: int) -> tuple[bytes, bytes] | None:
        """What stands around the escaped text of an event that has nothing but text.

        None: text events of this request need more, so all go through `events`.
        """
        ...

    def events(self, index: int, chunk: Chunk) -> bytes:
        """The events of any chunk."""
        ...

    def closing(self, total: Usage) -> bytes:
        """Events after the last choice: usage if it was asked for, and the end mark."""
        ...

    def total(self, usages: Sequence[Usage]) -> Usage:
        """The usage of the whole reply."""
        ...


class Reply(ABC):
    """The reply to one request.

    Args:
        count: How many choices it has, and so how many sinks.
    """

    def __init__(self, exchange: Exchange, dialect: Dialect, observation: Observation, count: int) -> None:
        self.exchange, self.dialect, self.observation = exchange, dialect, observation
        self.handles: list[Handle] = []
        self.done = False
        """The reply is written, or given up."""
        self._usages = [Usage(0, 0)] * count
        self._unfinished = count
        self.sinks = [self.sink(index) for index in range(count)]

    @abstractmethod
    def sink(self, index: int) -> Sink:
        """Where choice `index` arrives."""

    @abstractmethod
    def write_error(self, error: ServeError) -> None:
        """End a reply that has begun."""

    def write_refusal(self, error: ServeError) -> None:
        """In place of a reply that has not begun."""
        reply_error(self.exchange, error)

    def finish_choice(self, index: int, usage: Usage | None) -> Usage | None:
        """Note the end of a choice. Returns the usage of the whole reply if it was the last."""
        if usage is not None:
            self._usages[index] = usage
        self._unfinished -= 1
        return None if self._unfinished else self.dialect.total(self._usages)

    def complete(self, total: Usage) -> None:
        """Only the last bytes are still to be written."""
        self.done = True
        self.observation.finish(total)

    def fail(self, error: Exception) -> None:
        """End the whole reply with `error`, once."""
        if self.done:
            return
        self.done = True
        shown = error if isinstance(error, ServeError) else EngineError("The engine failed.")
        self._abort()
        self.observation.finish(None, shown)
        if self.exchange.started:
            self.write_error(shown)
        else:
            self.write_refusal(shown)

    def close(self) -> None:
        """The reply is complete, or nobody wants it any more."""
        if not self.done:
            self.done = True
            self._abort()
            self.observation.finish(None, left=True)
        self.handles.clear()  # they hold their sinks, and those hold us
        self.sinks.clear()

    def _abort(self) -> None:
        for handle in self.handles:
            handle.abort()


def total_usage(usages: Sequence[Usage], choices_per_prompt: int) -> Usage:
    """The usage of a whole reply: each prompt counts once, however many choices were made of it."""
    if len(usages) == 1:
        return usages[0]
    prompts = usages[::choices_per_prompt]
    return Usage(
        sum(usage.prompt_tokens for usage in prompts),
        sum(usage.completion_tokens for usage in usages),
        sum(usage.cached_tokens for usage in prompts),
    )


def begin_answer(
    dispatcher: Dispatcher,
    model: str,
    requests: Sequence[GenerateRequest],
    reply: Reply,
    policy: Policy | None = None,
) -> End:
    """Start all requests, by `policy` if it is not the model's. Returns what gives up the reply if it is not complete.

    Raises:
        ServeError: What `Dispatcher.start` raises, or there are more requests than the model's workers could
            ever hold; nothing was sent and nothing runs.
    """
    try:
        if len(requests) > 1 and len(requests) > (capacity := dispatcher.capacity(model, len(requests))):
            raise InvalidRequest(f"This makes {len(requests)} answers; {model!r} holds at most {capacity}.", param="n")
        for request, sink in zip(requests, tuple(reply.sinks), strict=True):
            if reply.done:  # one of the choices has failed already
                break
            reply.handles.append(dispatcher.start(model, request, sink, policy))
    except ServeError as error:
        reply.observation.finish(None, error)
        reply.close()
        raise
    except BaseException:
        reply.close()
        raise
    return reply.close
