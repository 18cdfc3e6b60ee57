"""An answer with what the batch has to know of it: how far it is read, and where."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastchat_backend_llamacpp.sampling import Sampler
from fastchat_serve import Chunk, TokenLogprob
from fastchat_serve.stepping import Answer

__all__ = ["TokenSequence"]


@dataclass(eq=False, kw_only=True)
class TokenSequence(Answer):
    """The state of one answer."""

    vocabulary_size: int
    place: int | None = None
    """The sequence number in the context's cache; None while it waits."""
    read: int = 0
    """How many of `tokens` are in the cache."""
    tokens: list[int] = field(init=False)
    """Prompt and answer."""
    prompt_logprobs: list[TokenLogprob] | None = field(init=False)
    """Those of the prompt that are known; None if nobody wants them."""
    sampler: Sampler = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tokens = self.context
        self.prompt_logprobs = None if self.scored else []
        self.sampler = Sampler(self.params, self.prompt, self.drawn, self.vocabulary_size)

    @property
    def unread(self) -> int:
        """Tokens to be read before the next can be drawn: one while the answer is under way."""
        return len(self.tokens) - self.read

    def accept(self, token: int, logprob: TokenLogprob | None) -> Chunk:
        self.tokens.append(token)
        self.sampler.accept(token)
        return super().accept(token, logprob)
