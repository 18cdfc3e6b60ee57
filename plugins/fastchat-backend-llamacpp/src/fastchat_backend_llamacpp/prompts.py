"""From a request to token ids, checked against what the model can take. Runs on threads of its own."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence

from fastchat_backend_llamacpp.answer_text import AnswerText
from fastchat_backend_llamacpp.sampling import Sampler
from fastchat_backend_llamacpp.sequences import Stream, TokenSequence
from fastchat_backend_llamacpp.vocabulary import Vocabulary
from fastchat_serve import (
    ChatPrompt,
    ContextOverflow,
    EmbedRequest,
    EngineError,
    GenerateRequest,
    InvalidRequest,
    PromptEcho,
    TextPrompt,
    TokenPrompt,
    Unsupported,
)
from fastchat_serve.text import ChatTemplate, Constraints, Matcher

__all__ = ["Prompts"]


class Prompts:
    """Renders, tokenises and checks."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        template: ChatTemplate | None,
        constraints: Constraints | None,
        *,
        context_length: int,
        adapters: Collection[str],
    ) -> None:
        """`constraints` is None for a model that only embeds."""
        self._vocabulary, self._template, self._constraints = vocabulary, template, constraints
        self._context_length, self._adapters = context_length, frozenset(adapters)
        self._arrivals = itertools.count()

    def sequence(self, request: GenerateRequest, stream: Stream, accepted: float) -> TokenSequence:
        """The answer to make for `request`, `accepted` at that `time.monotonic`. Raises `InvalidRequest`."""
        if request.adapter is not None and request.adapter not in self._adapters:
            raise InvalidRequest("This model has no such adapter.", param="model")
        text, prompt = self._text_and_ids(request.prompt)
        params = request.sampling
        for name, ids in (
            ("logit_bias", params.logit_bias or ()),
            ("stop_token_ids", params.stop_token_ids),
            ("resume_token_ids", request.resume_token_ids),
        ):
            self._check_ids(name, ids)
        own_stops = frozenset(params.stop_token_ids)
        sequence = TokenSequence(
            request,
            stream,
            prompt=prompt,
            limit=self._limit(request, len(prompt)),
            order=(request.priority, next(self._arrivals)),
            deadline=None if request.timeout_s is None else accepted + request.timeout_s,
            stop_ids=own_stops if params.ignore_eos else own_stops | self._vocabulary.end_ids,
            text=AnswerText(self._vocabulary.shown, prompt=prompt, stops=params.stop),
            sampler=Sampler(params, prompt, request.resume_token_ids, len(self._vocabulary)),
            constraint=self._constraint(request),
        )
        if (request.echo or request.prompt_logprobs is not None) and not request.resume_token_ids:
            sequence.echo = PromptEcho(self.text(prompt) if text is None else text, tuple(prompt))
        return sequence

    def token_ids(self, prompt: TextPrompt | ChatPrompt) -> list[int]:
        """The prompt as the model reads it. Raises `InvalidRequest`."""
        return self._text_and_ids(prompt)[1]

    def texts(self, request: EmbedRequest) -> list[list[int]]:
        """The inputs as the model reads them. Raises `InvalidRequest`."""
        return [self._input(prompt, number, request.truncate) for number, prompt in enumerate(request.inputs)]

    def render(self, prompt: ChatPrompt) -> str:
        """The conversation as text. Raises `InvalidRequest`."""
        if self._template is None:
            raise Unsupported("This model has no chat template, so it cannot chat.", param="messages")
        return self._template.render(prompt)

    def text(self, token_ids: Sequence[int]) -> str:
        """What the tokens say, special ones included. Raises `InvalidRequest`."""
        self._check_ids("tokens", token_ids)
        return self._vocabulary.decode(token_ids)

    def _text_and_ids(self, prompt: TextPrompt | TokenPrompt | ChatPrompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, TokenPrompt):
            self._check_ids("prompt", prompt.token_ids)
            text, ids = None, list(prompt.token_ids)
        elif isinstance(prompt, ChatPrompt):
            text = self.render(prompt)
            ids = self._encode(text, "messages", special=False)  # the template writes them
        else:
            text = prompt.text
            ids = self._encode(text, "prompt", special=True)
            if not ids and self._vocabulary.bos_id is not None:
                ids = [self._vocabulary.bos_id]
        if not ids:
            raise InvalidRequest("The prompt has no tokens. Give at least one.", param="prompt")
        return text, ids

    def _encode(self, text: str, param: str, *, special: bool) -> list[int]:
        fewest = len(text) // self._vocabulary.longest
        if fewest > self._context_length:  # so long that it need not be read
            raise ContextOverflow(limit=self._context_length, prompt_tokens=fewest, param=param)
        _check_text(text, param)
        return self._vocabulary.encode(text, special=special)

    def _input(self, prompt: TextPrompt | TokenPrompt, number: int, truncate: bool) -> list[int]:
        """One text to embed."""
        limit = self._context_length
        if isinstance(prompt, TokenPrompt):
            self._check_ids("input", prompt.token_ids)
            ids = list(prompt.token_ids)
        else:
            text = prompt.text[: limit * self._vocabulary.longest] if truncate else prompt.text
            ids = self._encode(text, "input", special=True)
        if not ids:
            raise InvalidRequest(f"Input {number} has no tokens. Give at least one.", param="input")
        if len(ids) > limit and not truncate:
            raise ContextOverflow(limit=limit, prompt_tokens=len(ids), param="input")
        return ids[:limit]

    def _limit(self, request: GenerateRequest, prompt_tokens: int) -> int:
        """Tokens of the whole answer."""
        room = self._context_length - prompt_tokens
        wanted = request.sampling.max_tokens
        least = 1 if wanted is None else wanted
        if room < least:
            param = "messages" if isinstance(request.prompt, ChatPrompt) else "prompt"
            raise ContextOverflow(
                limit=self._context_length, prompt_tokens=prompt_tokens, max_tokens=least, param=param
            )
        return room if wanted is None else wanted

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
        if self._constraints is None:
            return None
        if isinstance(prompt, ChatPrompt) and prompt.tool_choice is not None:
            if constraint is not None:
                raise InvalidRequest("An answer that must be a tool call takes no other form.", param="tool_choice")
            return self._constraints.compile_call(prompt, tenant=request.tenant)
        return None if constraint is None else self._constraints.compile(constraint, tenant=request.tenant)

    def _check_ids(self, name: str, ids: Iterable[int]) -> None:
        for id in ids:
            if not 0 <= id < len(self._vocabulary):
                raise InvalidRequest(f"Token id {id} is none of this model's {len(self._vocabulary)}.", param=name)


def _check_text(text: str, param: str) -> None:
    """Python's strings can hold half of a surrogate pair, which is no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"The text has a lone surrogate at position {error.start}.", param=param) from error
