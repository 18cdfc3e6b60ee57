"""From a request to the sequence to be generated, checked against what the model can take. Runs on its own threads."""

from __future__ import annotations

import itertools

from fastchat_backend_hf.sequences import Stream, TokenSequence
from fastchat_serve import ChatPrompt, EngineError, GenerateRequest, InvalidRequest, Unsupported
from fastchat_serve.text import AnswerText, ChatTemplate, Constraints, Matcher, Vocabulary
from fastchat_serve.text import Prompts as PlainPrompts

__all__ = ["Prompts"]


class Prompts(PlainPrompts):
    """Renders, tokenises and checks, and makes the sequence of an answer."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        template: ChatTemplate | None,
        constraints: Constraints | None,
        *,
        context_length: int,
        end_ids: frozenset[int],
        empty_prompt_id: int | None,
        answers_go_on: bool = True,
    ) -> None:
        """`end_ids` end every answer; `empty_prompt_id` stands for a text without any token.

        `constraints` None: no answer can be constrained. `answers_go_on`: an answer's text continues the prompt's;
        that of an encoder-decoder begins anew.
        """
        super().__init__(vocabulary, template, context_length=context_length, empty_prompt_id=empty_prompt_id)
        self._tokenizer, self._constraints = vocabulary.tokenizer, constraints
        self._end_ids, self._answers_go_on = end_ids, answers_go_on
        self._arrivals = itertools.count()

    def sequence(self, request: GenerateRequest, stream: Stream, accepted: float) -> TokenSequence:
        """The answer to make for `request`, `accepted` at that `time.monotonic`. Raises `InvalidRequest`."""
        prepared, params = self.prepare(request), request.sampling
        prompt = list(prepared.token_ids)
        constraint = self._constraint(request)
        sequence = TokenSequence(
            request,
            stream,
            prompt=prompt,
            limit=prepared.limit,
            order=(request.priority, next(self._arrivals)),
            deadline=None if request.timeout_s is None else accepted + request.timeout_s,
            stop_ids=self._stop_ids(request),
            text=AnswerText(self._tokenizer, prompt_ids=prompt if self._answers_go_on else (), stops=params.stop),
            constraint=constraint,
            mask=None if constraint is None or self._constraints is None else self._constraints.masks(1)[0],
        )
        sequence.write_mask()
        sequence.echo = prepared.echo
        return sequence

    def _stop_ids(self, request: GenerateRequest) -> frozenset[int]:
        own = frozenset(request.sampling.stop_token_ids)
        return own if request.sampling.ignore_eos else own | self._end_ids

    def _constraint(self, request: GenerateRequest) -> Matcher | None:
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
        calls = isinstance(prompt, ChatPrompt) and prompt.tool_choice is not None
        if constraint is None and not calls:
            return None
        if self._constraints is None:
            raise Unsupported("This model's answers cannot be constrained.")
        if isinstance(prompt, ChatPrompt) and calls:
            if constraint is not None:
                raise InvalidRequest("An answer that must be a tool call takes no other form.", param="tool_choice")
            return self._constraints.compile_call(prompt, tenant=request.tenant)
        assert constraint is not None
        return self._constraints.compile(constraint, tenant=request.tenant)
