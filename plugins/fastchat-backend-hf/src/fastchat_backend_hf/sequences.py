"""An answer with what the batch has to know of it. No tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastchat_backend_hf.reading import Reading
from fastchat_serve import Chunk, ServeError, TokenLogprob
from fastchat_serve.stepping import Answer

__all__ = ["TokenSequence"]


@dataclass(eq=False, kw_only=True)
class TokenSequence(Answer):
    """The state of one answer. Its mask is written ahead, beside the model's pass."""

    reading: Reading | None = None
    """While the prompt is being read."""
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    """Those of the part of the prompt that has been scored, without its first token."""
    lost: ServeError | None = field(default=None, init=False)
    """Why there is no mask for the next token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.write_mask()

    def __len__(self) -> int:
        return len(self.prompt) + len(self.drawn)

    @property
    def last(self) -> int:
        """The token to be read next, once all before it are."""
        return self.drawn[-1] if self.drawn else self.prompt[-1]

    @property
    def unread(self) -> int:
        """Tokens to be read before the answer goes on."""
        return 0 if self.reading is None else self.reading.left

    @property
    def begun(self) -> bool:
        """Whether any of them are read."""
        return self.reading is not None and self.reading.done > 0

    def accept(self, token: int, logprob: TokenLogprob | None) -> Chunk:
        """Also raises `EngineError` if the constraint could not say what may be drawn."""
        if self.lost is not None:
            raise self.lost
        return super().accept(token, logprob)

    def write_mask(self) -> None:
        """Let `mask` follow the tokens that were accepted. What goes wrong, `accept` will raise."""
        if self.constraint is None or self.mask is None or self.constraint.complete:
            return
        try:
            self.constraint.write_mask(self.mask, without=self.forbidden)
        except ServeError as error:
            self.lost = error
