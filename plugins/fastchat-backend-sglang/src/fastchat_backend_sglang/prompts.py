"""From a request to token ids, checked against what the model can take. Runs on threads of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Encoding

from fastchat_backend_sglang.vocabulary import Vocabulary
from fastchat_serve import (
    ChatPrompt,
    ContextOverflow,
    EmbedRequest,
    GenerateRequest,
    InvalidRequest,
    PromptEcho,
    TextPrompt,
    TokenPrompt,
    Unsupported,
)
from fastchat_serve.text import ChatTemplate

__all__ = ["Prompts"]


class Prompts:
    """Renders, tokenises and checks."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        template: ChatTemplate | None,
        *,
        context_length: int,
        empty_prompt_id: int | None,
    ) -> None:
        """`empty_prompt_id` stands for a text without any token."""
        self._vocabulary, self._template = vocabulary, template
        self._context_length, self._empty_prompt_id = context_length, empty_prompt_id

    def prepare(self, request: GenerateRequest) -> tuple[list[int], int, PromptEcho | None]:
        """The prompt's tokens, the most tokens of the answer, and the echo if it is wanted. Raises `InvalidRequest`."""
        text, ids = self._text_and_ids(request.prompt)
        sampling = request.sampling
        for name, others in (
            ("logit_bias", sampling.logit_bias or ()),
            ("stop_token_ids", sampling.stop_token_ids),
            ("resume_token_ids", request.resume_token_ids),
        ):
            self._check_ids(name, others)
        limit = self._limit(request, len(ids))
        wanted = request.echo or request.prompt_logprobs is not None
        if not wanted or request.resume_token_ids:  # an earlier run has delivered the echo
            return ids, limit, None
        return ids, limit, PromptEcho(self.text(ids) if text is None else text, tuple(ids))

    def token_ids(self, prompt: TextPrompt | TokenPrompt | ChatPrompt) -> list[int]:
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
        """What the tokens say, special ones included."""
        (text,) = self._vocabulary.tokenizer.decode_batch([list(token_ids)], skip_special_tokens=False)
        return text

    def _text_and_ids(self, prompt: TextPrompt | TokenPrompt | ChatPrompt) -> tuple[str | None, list[int]]:
        text: str | None
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
        return self._encoding(text, special=special).ids

    def _encoding(self, text: str, *, special: bool) -> Encoding:
        """As a batch of one, for which the tokenizer lets other threads run; a single text it encodes alone."""
        (encoding,) = self._vocabulary.tokenizer.encode_batch_fast([text], add_special_tokens=special)
        return encoding

    def _input(self, prompt: TextPrompt | TokenPrompt, number: int, truncate: bool) -> list[int]:
        """One text to embed."""
        limit, tokenizer = self._context_length, self._vocabulary.tokenizer
        if isinstance(prompt, TokenPrompt):
            self._check_ids("input", prompt.token_ids)
            ids = list(prompt.token_ids)[: limit if truncate else None]
        elif truncate:
            encoding = self._encoding(prompt.text[: limit * self._vocabulary.longest_token], special=False)
            encoding.truncate(limit - tokenizer.num_special_tokens_to_add(False))
            ids = tokenizer.post_process(encoding, None, True).ids
        else:
            ids = self._encode(prompt.text, "input", special=True)
        if not ids:
            raise InvalidRequest(f"Input {number} has no tokens. Give at least one.", param="input")
        if len(ids) > limit:
            raise ContextOverflow(limit=limit, prompt_tokens=len(ids), param="input")
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

    def _check_ids(self, name: str, ids: Iterable[int]) -> None:
        for id in ids:
            if not 0 <= id < self._vocabulary.size:
                raise InvalidRequest(f"Token id {id} is none of this model's {self._vocabulary.size}.", param=name)
