"""One answer in the making: SGLang's outputs in, chunks out. Plain Python, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from fastchat_serve import Chunk, GenerateRequest, PromptEcho, TokenLogprob, Usage
from fastchat_serve.text import AnswerText, PreparedPrompt, Vocabulary

__all__ = ["AnswerInTheMaking"]

_Entry = tuple[Any, int, object]
"""A token as SGLang reports it: log-probability, id, and a text that is not asked for."""


class AnswerInTheMaking:
    """The state of one answer.

    Attributes:
        prompt: Its tokens.
        left: The most tokens still to be drawn.
        complete: The last chunk was made.
    """

    def __init__(
        self,
        request: GenerateRequest,
        prepared: PreparedPrompt,
        vocabulary: Vocabulary,
        end_ids: frozenset[int],
    ) -> None:
        """`end_ids` end every answer. Raises `InvalidRequest`."""
        self.prompt, self.complete = prepared.token_ids, False
        self.left = max(prepared.limit - len(request.resume_token_ids), 0)
        self._request, self._vocabulary, self._echo = request, vocabulary, prepared.echo
        sampling = request.sampling
        self._stop_ids = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else end_ids)
        self._count, self._cached = len(request.resume_token_ids), 0
        self._text = AnswerText(vocabulary.detokenizer(self.prompt), stops=sampling.stop)
        resumed = request.resume_token_ids
        self._stopped_by = resumed[-1] if resumed and resumed[-1] in self._stop_ids else None
        self._text.resume(resumed if self._stopped_by is None else resumed[:-1])

    @property
    def drawn(self) -> bool:
        """Nothing is left to draw, and nothing else is wanted of SGLang."""
        done = self.left == 0 or self._stopped_by is not None or self._text.matched is not None
        return done and not self.scores_prompt

    @property
    def scores_prompt(self) -> bool:
        """The prompt's log-probabilities are still to come."""
        return self._request.prompt_logprobs is not None and self._echo is not None and self._echo.logprobs is None

    def finish(self) -> Chunk:
        """The only chunk of an answer that is `drawn` from the beginning."""
        return self._last("", (), () if self._request.logprobs is not None else None)

    def feed(self, out: Mapping[str, Any]) -> Chunk | None:
        """The chunk for what SGLang has drawn since the last call; None if that says nothing.

        Tokens after one that completes the answer are dropped: SGLang does not look for stop strings.
        """
        meta = out["meta_info"]
        reason = meta["finish_reason"]
        self._cached = meta.get("cached_tokens") or self._cached
        if self.scores_prompt and self._echo is not None:
            self._echo = replace(self._echo, logprobs=self._prompt_logprobs(meta))
        text = ""
        ids: list[int] = []
        for token in out["output_ids"]:
            ids.append(token)
            if self._stops(token, self._count + len(ids), last=len(ids) == len(out["output_ids"]), reason=reason):
                self._stopped_by = token
                break
            text += self._text.feed(token)
            if self._text.matched is not None:
                break
        self._count += len(ids)
        logprobs = self._logprobs(meta, len(ids)) if self._request.logprobs is not None else None
        if reason is not None or self._stopped_by is not None or self._text.matched is not None:
            return self._last(text, tuple(ids), logprobs)
        if not ids and self._echo is None:
            return None
        return Chunk(text=text, token_ids=tuple(ids), logprobs=logprobs, prompt=self._take_echo())

    def _stops(self, token: int, count: int, *, last: bool, reason: Mapping[str, Any] | None) -> bool:
        """SGLang knows best, but told to ignore the model's stop tokens it ignores those of the request as well."""
        if last and reason is not None and reason["type"] == "stop":
            return True
        return token in self._stop_ids and count > self._request.sampling.min_tokens

    def _last(self, text: str, ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...] | None) -> Chunk:
        self.complete = True
        if self._text.matched is None:
            text += self._text.finish()  # may complete a stop string after all
        stopped_by = self._text.matched or self._stopped_by
        return Chunk(
            text=text,
            token_ids=ids,
            logprobs=logprobs,
            prompt=self._take_echo(),
            finish_reason="length" if stopped_by is None else "stop",
            stop_match=stopped_by,
            usage=Usage(len(self.prompt), self._count, min(self._cached, len(self.prompt))),
        )

    def _logprobs(self, meta: Mapping[str, Any], count: int) -> tuple[TokenLogprob, ...]:
        return self._shown(
            meta["output_token_logprobs"][:count], meta.get("output_top_logprobs"), self._request.logprobs or 0
        )

    def _prompt_logprobs(self, meta: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
        return self._shown(
            meta["input_token_logprobs"], meta.get("input_top_logprobs"), self._request.prompt_logprobs or 0
        )

    def _shown(
        self, drawn: Sequence[_Entry], top: Sequence[Sequence[_Entry] | None] | None, alternatives: int
    ) -> tuple[TokenLogprob, ...]:
        return tuple(
            self._vocabulary.logprob(
                token, value, [(id, logprob) for logprob, id, _ in (top[row] or ())[:alternatives]] if top else ()
            )
            for row, (value, token, _) in enumerate(drawn)
        )

    def _take_echo(self) -> PromptEcho | None:
        echo, self._echo = self._echo, None
        return echo
