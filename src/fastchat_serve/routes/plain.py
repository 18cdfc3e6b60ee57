"""A reply in one piece: every choice is collected, and the last one to end writes the body."""

from __future__ import annotations

from fastchat_serve.engine import Chunk, Sink, TokenLogprob, Usage
from fastchat_serve.errors import ServeError
from fastchat_serve.routes.answer import Answer, Reply

__all__ = ["PlainReply"]


class PlainReply(Reply):
    """See the module."""

    def sink(self, index: int) -> Sink:
        return _Collector(self, index)

    def write(self, total: Usage) -> None:
        """All choices are here."""
        answers = [sink.answer for sink in self.sinks if isinstance(sink, _Collector)]
        body = self.dialect.body(answers, total)
        self.complete(total)
        self.exchange.reply_json(body)

    def write_error(self, error: ServeError) -> None:
        """A plain reply begins and ends in one step, so there is nothing to mend."""


class _Collector:
    """One choice."""

    __slots__ = ("_index", "_logprobs", "_reply", "_texts", "answer")

    def __init__(self, reply: PlainReply, index: int) -> None:
        self._reply, self._index = reply, index
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self.answer = Answer()

    def push(self, chunk: Chunk) -> None:
        reply = self._reply
        if reply.done:
            return
        if not self._texts:
            reply.observation.first_token()
        self._texts.append(chunk.text)
        if chunk.logprobs is not None:
            self._logprobs.extend(chunk.logprobs)
            self.answer.logprobs = ()
        if chunk.prompt is not None:
            self.answer.prompt = chunk.prompt
        if chunk.reasoning or chunk.tool_calls:
            self.answer.reasoning += chunk.reasoning
            self.answer.tool_calls += chunk.tool_calls
        if chunk.finish_reason is not None:
            answer = self.answer
            answer.text = "".join(self._texts)
            answer.finish_reason, answer.stop_match = chunk.finish_reason, chunk.stop_match
            if answer.logprobs is not None:
                answer.logprobs = tuple(self._logprobs)
            if (total := reply.finish_choice(self._index, chunk.usage)) is not None:
                reply.write(total)

    def end(self, error: Exception | None) -> None:
        if error is not None:
            self._reply.fail(error)
