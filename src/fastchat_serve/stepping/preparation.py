"""From a request to an answer that can be begun. Runs on threads of its own, since it can take long."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from fastchat_serve.engine import ChatPrompt, GenerateRequest
from fastchat_serve.errors import EngineError, InvalidRequest, Unsupported
from fastchat_serve.stepping.answer import Answer
from fastchat_serve.stepping.model import Stream
from fastchat_serve.text import AnswerText, Constraints, Matcher, Prompts, Vocabulary

__all__ = ["Preparation"]

A = TypeVar("A", bound=Answer)


class Preparation(Generic[A]):
    """What one model's requests are prepared with.

    Args:
        make: `Answer` or a subclass.
        constraints: None: no answer can be constrained.
        end_ids: Tokens that end every answer.
        adapters: The names of those that there are.
        continues_prompt: An answer's text continues the prompt's; that of an encoder-decoder begins anew.
    """

    def __init__(
        self,
        make: Callable[..., A],
        prompts: Prompts,
        vocabulary: Vocabulary,
        constraints: Constraints | None,
        *,
        end_ids: frozenset[int],
        adapters: Collection[str] = (),
        continues_prompt: bool = True,
    ) -> None:
        self._make, self._prompts, self._vocabulary, self._constraints = make, prompts, vocabulary, constraints
        self._end_ids, self._adapters, self._continues_prompt = end_ids, frozenset(adapters), continues_prompt
        self._arrivals = itertools.count()

    def answer(self, request: GenerateRequest, stream: Stream, accepted: float) -> A:
        """The answer to make for `request`, `accepted` at that `time.monotonic`. Raises `InvalidRequest`."""
        if request.adapter is not None and request.adapter not in self._adapters:
            raise InvalidRequest(f"This model has no adapter {request.adapter!r}.", param="model")
        prompt, params = self._prompts.prepare(request), request.sampling
        own_ends = frozenset(params.stop_token_ids)
        detokenizer = self._vocabulary.detokenizer(prompt.token_ids if self._continues_prompt else ())
        constraint = self._constraint(request)
        return self._make(
            request=request,
            stream=stream,
            prompt=prompt.token_ids,
            text=AnswerText(detokenizer, stops=params.stop),
            limit=prompt.limit,
            order=(request.priority, next(self._arrivals)),
            deadline=None if request.timeout_s is None else accepted + request.timeout_s,
            stop_ids=own_ends if params.ignore_eos else own_ends | self._end_ids,
            constraint=constraint,
            mask=None if constraint is None or self._constraints is None else self._constraints.masks(1)[0],
            echo=prompt.echo,
        )

    def _constraint(self, request: GenerateRequest) -> Matcher | None:
        """The way of this answer through its constraint, up to where it goes on."""
        matcher = self._matcher(request)
        if matcher is not None:
            try:
                matcher.accept_all(request.resume_token_ids)
            except EngineError as error:
                raise InvalidRequest(
                    "The answer that is to be resumed breaks the constraint.", param="resume_token_ids"
                ) from error
        return matcher

    def _matcher(self, request: GenerateRequest) -> Matcher | None:
        prompt, constraint = request.prompt, request.constraint
        call = prompt if isinstance(prompt, ChatPrompt) and prompt.tool_choice is not None else None
        if call is None and constraint is None:
            return None
        if self._constraints is None:
            raise Unsupported("This model's answers cannot be constrained.")
        if call is None:
            assert constraint is not None
            return self._constraints.compile(constraint, tenant=request.tenant)
        if constraint is not None:
            raise InvalidRequest("An answer that must be a tool call takes no other form.", param="tool_choice")
        return self._constraints.compile_call(call, tenant=request.tenant)
