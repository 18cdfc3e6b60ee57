"""From a request to an answer that can be begun. Runs on threads of its own, since it can take long."""

from __future__ import annotations

import itertools

from fastchat_backend_mlx.answers import Answer, Stream
from fastchat_serve import ChatPrompt, EngineError, GenerateRequest, InvalidRequest
from fastchat_serve.text import AnswerText, Constraints, Matcher, Prompts, Vocabulary

__all__ = ["Preparation"]


class Preparation:
    """What one model's requests are prepared with. `end_ids` end every answer."""

    def __init__(
        self, prompts: Prompts, vocabulary: Vocabulary, constraints: Constraints, end_ids: frozenset[int]
    ) -> None:
        self.prompts, self._vocabulary, self._constraints = prompts, vocabulary, constraints
        self._end_ids = end_ids
        self._arrivals = itertools.count()

    def answer(self, request: GenerateRequest, stream: Stream, accepted: float) -> Answer:
        """The answer to make for `request`, `accepted` at that `time.monotonic`. Raises `InvalidRequest`."""
        prompt, params = self.prompts.prepare(request), request.sampling
        own_ends = frozenset(params.stop_token_ids)
        constraint = self._constraint(request)
        return Answer(
            request,
            stream,
            prompt.token_ids,
            AnswerText(self._vocabulary.tokenizer, prompt_ids=prompt.token_ids, stops=params.stop),
            limit=prompt.limit,
            order=(request.priority, next(self._arrivals)),
            deadline=None if request.timeout_s is None else accepted + request.timeout_s,
            stop_ids=own_ends if params.ignore_eos else own_ends | self._end_ids,
            constraint=constraint,
            mask=None if constraint is None else self._constraints.masks(1)[0],
            echo=prompt.echo,
            scored=request.prompt_logprobs is None or prompt.echo is None,
        )

    def _constraint(self, request: GenerateRequest) -> Matcher | None:
        matcher = self._matcher(request)
        if matcher is None:
            return None
        try:
            matcher.accept_all(request.resume_token_ids)
        except EngineError as error:
            raise InvalidRequest(
                "The tokens to resume after do not satisfy the constraint.", param="resume_token_ids"
            ) from error
        return matcher

    def _matcher(self, request: GenerateRequest) -> Matcher | None:
        prompt = request.prompt
        if isinstance(prompt, ChatPrompt) and prompt.tool_choice is not None:
            if request.constraint is not None:
                raise InvalidRequest("An answer that must be a tool call takes no other form.", param="tool_choice")
            return self._constraints.compile_call(prompt, tenant=request.tenant)
        if request.constraint is None:
            return None
        return self._constraints.compile(request.constraint, tenant=request.tenant)
