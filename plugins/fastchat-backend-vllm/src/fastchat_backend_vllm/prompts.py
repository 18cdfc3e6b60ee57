"""From prompts to token ids, checked against what the model can take. Runs on threads of its own."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Encoding

from fastchat_backend_vllm.vocabulary import Vocabulary
from fastchat_serve import (
    ChatPrompt,
    ContextOverflow,
    EmbedRequest,
    GenerateRequest,
    InvalidRequest,
    TextPrompt,
    TokenPrompt,
    Unsupported,
)
from fastchat_serve.text import ChatTemplate

__all__ = ["Prompts", "check_text"]


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
        self._tokenizer = vocabulary.tokenizer
        self._context_length, self._empty_prompt_id = context_length, empty_prompt_id

    def text_and_ids(self, prompt: TextPrompt | TokenPrompt | ChatPrompt) -> tuple[str | None, list[int]]:
        """The prompt's text, None if there was none, and what the model reads. Raises `InvalidRequest`."""
        if isinstance(prompt, TokenPrompt):
            self._vocabulary.check_ids("prompt", prompt.token_ids)
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

    def texts(self, request: EmbedRequest) -> list[list[int]]:
        """The inputs to embed, as the model reads them. Raises `InvalidRequest`."""
        return [self._input(prompt, number, request.truncate) for number, prompt in enumerate(request.inputs)]

    def render(self, prompt: ChatPrompt) -> str:
        """The conversation as text. Raises `InvalidRequest`."""
        if self._template is None:
            raise Unsupported("This model has no chat template, so it cannot chat.", param="messages")
        return self._template.render(prompt)

    def text(self, token_ids: Sequence[int]) -> str:
        """What the tokens say, special ones included. Raises `InvalidRequest`."""
        self._vocabulary.check_ids("tokens", token_ids)
        (text,) = self._tokenizer.decode_batch([list(token_ids)], skip_special_tokens=False)
        return text

    def limit(self, request: GenerateRequest, prompt_tokens: int) -> int:
        """Tokens of the whole answer. Raises `ContextOverflow`."""
        room = self._context_length - prompt_tokens
        wanted = request.sampling.max_tokens
        least = 1 if wanted is None else wanted
        if room < least:
            param = "messages" if isinstance(request.prompt, ChatPrompt) else "prompt"
            raise ContextOverflow(
                limit=self._context_length, prompt_tokens=prompt_tokens, max_tokens=least, param=param
            )
        return room if wanted is None else wanted

    def _encode(self, text: str, param: str, *, special: bool) -> list[int]:
        fewest = len(text) // self._vocabulary.longest_token
        if fewest > self._context_length:  # so long that it need not be read
            raise ContextOverflow(limit=self._context_length, prompt_tokens=fewest, param=param)
        check_text(text, param)
        return self._encoding(text, special=special).ids

    def _encoding(self, text: str, *, special: bool) -> Encoding:
        """As a batch of one, for which the tokenizer lets other threads run."""
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
        return encoding

    def _input(self, prompt: TextPrompt | TokenPrompt, number: int, truncate: bool) -> list[int]:
        """One text to embed."""
        limit = self._context_length
        if isinstance(prompt, TokenPrompt):
            self._vocabulary.check_ids("input", prompt.token_ids)
            ids = list(prompt.token_ids)[: limit if truncate else None]
        elif truncate:
            check_text(prompt.text, "input")
            encoding = self._encoding(prompt.text[: limit * self._vocabulary.longest_token], special=False)
            encoding.truncate(limit - self._tokenizer.num_special_tokens_to_add(False))
            ids = self._tokenizer.post_process(encoding, None, True).ids
        else:
            ids = self._encode(prompt.text, "input", special=True)
        if not ids:
            raise InvalidRequest(f"Input {number} has no tokens. Give at least one.", param="input")
        if len(ids) > limit:
            raise ContextOverflow(limit=limit, prompt_tokens=len(ids), param="input")
        return ids


def check_text(text: str, param: str) -> None:
    """Python's strings can hold half of a surrogate pair, which is no text. Raises `InvalidRequest`."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"The text has a lone surrogate at position {error.start}.", param=param) from error
