"""From a request to an answer that can be begun: tokens, checked against what the model can take.

Runs on the threads of `lanes.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from fastchat_backend_mlx.answers import Answer, Stream
from fastchat_backend_mlx.vocabulary import Vocabulary
from fastchat_serve import (
    ChatPrompt,
    ContextOverflow,
    GenerateRequest,
    InvalidRequest,
    PromptEcho,
    TextPrompt,
    TokenPrompt,
    Unsupported,
)
from fastchat_serve.text import AnswerText, ChatTemplate, Constraints, Matcher

__all__ = ["Prompts"]


class Prompts:
    """Renders, tokenises and checks."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        template: ChatTemplate | None,
        constraints: Constraints,
        *,
        context_length: int,
        end_ids: frozenset[int],
        empty_prompt_id: int | None,
    ) -> None:
        """`end_ids` end every answer; `empty_prompt_id` stands for a text without any token."""
        self._vocabulary, self._template, self._constraints = vocabulary, template, constraints
        self._tokenizer = vocabulary.tokenizer
        self._context_length, self._end_ids, self._empty_prompt_id = context_length, end_ids, empty_prompt_id
        self._arrivals = itertools.count()

    def answer(self, request: GenerateRequest, stream: Stream, accepted: float) -> Answer:
        """The answer to make for `request`, `accepted` at that `time.monotonic`. Raises `InvalidRequest`."""
        text, prompt = self._text_and_ids(request.prompt)
        params, resumed = request.sampling, request.resume_token_ids
        self._check_ids("logit_bias", params.logit_bias or ())
        self._check_ids("stop_token_ids", params.stop_token_ids)
        self._check_ids("resume_token_ids", resumed)
        own_ends = frozenset(params.stop_token_ids)
        tells_prompt = request.echo or request.prompt_logprobs is not None
        return Answer(
            request,
            stream,
            prompt,
            AnswerText(self._tokenizer, prompt_ids=prompt, stops=params.stop),
            limit=self._limit(request, len(prompt)),
            order=(request.priority, next(self._arrivals)),
            deadline=None if request.timeout_s is None else accepted + request.timeout_s,
            stop_ids=own_ends if params.ignore_eos else own_ends | self._end_ids,
            constraint=self._constraint(request),
            mask=None if request.constraint is None else self._constraints.masks(1)[0],
            echo=PromptEcho(self.text(prompt) if text is None else text, tuple(prompt))
            if tells_prompt and not resumed
            else None,
            scored=request.prompt_logprobs is None or bool(resumed),
        )

    def token_ids(self, prompt: TextPrompt | TokenPrompt | ChatPrompt) -> list[int]:
        """The prompt as the model reads it. Raises `InvalidRequest`."""
        return self._text_and_ids(prompt)[1]

    def render(self, prompt: ChatPrompt) -> str:
        """The conversation as text. Raises `InvalidRequest`."""
        if self._template is None:
            raise Unsupported("This model has no chat template, so it cannot chat.", param="messages")
        if not prompt.messages:
            raise InvalidRequest("A conversation needs at least one message.", param="messages")
        return self._template.render(prompt)

    def text(self, token_ids: Sequence[int]) -> str:
        """What the tokens say, special ones included. Raises `InvalidRequest`."""
        self._check_ids("tokens", token_ids)
        (text,) = self._tokenizer.decode_batch([list(token_ids)], skip_special_tokens=False)
        return text

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
            if not ids and self._empty_prompt_id is not None:
                ids = [self._empty_prompt_id]
        if not ids:
            raise InvalidRequest("The prompt has no tokens. Give at least one.", param="prompt")
        return text, ids

    def _encode(self, text: str, param: str, *, special: bool) -> list[int]:
        fewest = len(text) // self._vocabulary.longest_token
        if fewest > self._context_length:  # so long that it need not be read
            raise ContextOverflow(limit=self._context_length, prompt_tokens=fewest, param=param)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"The text has a lone surrogate at position {error.start}.", param=param) from error
        # As a batch of one, for which the tokenizer lets other threads run; a single text it encodes alone.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
        ids: list[int] = encoding.ids
        return ids

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
        if request.constraint is None:
            return None
        matcher = self._constraints.compile(request.constraint, tenant=request.tenant)
        matcher.accept_all(request.resume_token_ids)
        return matcher

    def _check_ids(self, name: str, ids: Iterable[int]) -> None:
        for id in ids:
            if not 0 <= id < self._vocabulary.size:
                raise InvalidRequest(f"Token id {id} is none of this model's {self._vocabulary.size}.", param=name)
