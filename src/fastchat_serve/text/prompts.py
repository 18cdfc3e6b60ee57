"""From prompts to token ids, checked against what the model can take.

Tokenising a megabyte takes half a second: call this on a thread (`lanes.py`). The tokenizer lets other threads run
meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from fastchat_serve.engine import ChatPrompt, EmbedRequest, GenerateRequest, PromptEcho, TextPrompt, TokenPrompt
from fastchat_serve.errors import ContextOverflow, InvalidRequest, Unsupported
from fastchat_serve.text.chat_template import ChatTemplate
from fastchat_serve.text.vocabulary import Vocabulary

__all__ = ["PreparedPrompt", "Prompts", "check_text"]


class PreparedPrompt(Struct, frozen=True):
    """What a model is to read, and how much it may answer."""

    token_ids: tuple[int, ...]
    limit: int
    """Tokens of the whole answer, resumed ones included."""
    echo: PromptEcho | None
    """What the first chunk reports, still without log-probabilities; None if nobody asked, or an earlier run told."""


class Prompts:
    """Renders, tokenises and checks.

    Args:
        template: The model's chat template; None if it has none.
        context_length: Tokens of prompt and answer together.
        empty_prompt_id: Stands for a text without any token, if there is such a token.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        template: ChatTemplate | None,
        *,
        context_length: int,
        empty_prompt_id: int | None = None,
    ) -> None:
        self._vocabulary, self._template = vocabulary, template
        self._context_length, self._empty_prompt_id = context_length, empty_prompt_id

    def prepare(self, request: GenerateRequest) -> PreparedPrompt:
        """Everything about `request` that can be wrong is found here. Raises `InvalidRequest`."""
        text, ids = self._text_and_ids(request.prompt)
        sampling = request.sampling
        self._vocabulary.check_ids("logit_bias", sampling.logit_bias or ())
        self._vocabulary.check_ids("stop_token_ids", sampling.stop_token_ids)
        self._vocabulary.check_ids("resume_token_ids", request.resume_token_ids)
        wanted = request.echo or request.prompt_logprobs is not None
        echo = None
        if wanted and not request.resume_token_ids:
            echo = PromptEcho(self.text(ids) if text is None else text, tuple(ids))
        return PreparedPrompt(tuple(ids), self._limit(request, len(ids)), echo)

    def token_ids(self, prompt: TextPrompt | TokenPrompt | ChatPrompt) -> list[int]:
        """The prompt as the model reads it. Raises `InvalidRequest`."""
        return self._text_and_ids(prompt)[1]

    def inputs(self, request: EmbedRequest) -> list[list[int]]:
        """The texts to embed, as the model reads them. Raises `InvalidRequest`."""
        return [self._input(prompt, number, request.truncate) for number, prompt in enumerate(request.inputs)]

    def render(self, prompt: ChatPrompt) -> str:
        """The conversation as text. Raises `InvalidRequest`."""
        if self._template is None:
            raise Unsupported("This model has no chat template, so it cannot chat.", param="messages")
        return self._template.render(prompt)

    def text(self, token_ids: Sequence[int]) -> str:
        """What the tokens say, special ones included. Raises `InvalidRequest`."""
        self._vocabulary.check_ids("tokens", token_ids)
        return self._vocabulary.decode(token_ids)

    def _text_and_ids(self, prompt: TextPrompt | TokenPrompt | ChatPrompt) -> tuple[str | None, list[int]]:
        text: str | None
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

    def _encode(self, text: str, param: str, *, special: bool) -> list[int]:
        fewest = len(text) // self._vocabulary.longest_token
        if fewest > self._context_length:  # so long that it need not be read
            raise ContextOverflow(limit=self._context_length, prompt_tokens=fewest, param=param)
        check_text(text, param)
        return self._vocabulary.encode(text, special=special)

    def _input(self, prompt: TextPrompt | TokenPrompt, number: int, truncate: bool) -> list[int]:
        """One text to embed."""
        limit = self._context_length
        if isinstance(prompt, TokenPrompt):
            self._vocabulary.check_ids("input", prompt.token_ids)
            ids = list(prompt.token_ids)[: limit if truncate else None]
        elif truncate:
            check_text(prompt.text, "input")
            ids = self._vocabulary.encode(
                prompt.text[: limit * self._vocabulary.longest_token], special=True, most=limit
            )
        else:
            ids = self._encode(prompt.text, "input", special=True)
        if not ids:
            raise InvalidRequest(f"Input {number} has no tokens. Give at least one.", param="input")
        if len(ids) > limit:
            raise ContextOverflow(limit=limit, prompt_tokens=len(ids), param="input")
        return ids

    def _limit(self, request: GenerateRequest, prompt_tokens: int) -> int:
        room = self._context_length - prompt_tokens
        wanted = request.sampling.max_tokens
        least = 1 if wanted is None else wanted
        if room < least:
            param = "messages" if isinstance(request.prompt, ChatPrompt) else "prompt"
            raise ContextOverflow(
                limit=self._context_length, prompt_tokens=prompt_tokens, max_tokens=least, param=param
            )
        return room if wanted is None else wanted


def check_text(text: str, param: str) -> None:
    """Python's strings can hold half of a surrogate pair, which is no text. Raises `InvalidRequest`."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"The text has a lone surrogate at position {error.start}.", param=param) from error
