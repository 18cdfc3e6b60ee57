"""Answers as a model would give them that knows nothing but its masks."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from fastchat_serve.engine import Constraint
from fastchat_serve.text import Constraints, Matcher, TokenBytes

__all__ = ["Walker"]

_PATIENCE = 40
"""Tokens after which a walk looks for the end."""


class Walker:
    """Walks through constraints of one tokenizer; `ends` are the tokens that end an answer."""

    def __init__(self, constraints: Constraints, tokenizer: Any, ends: set[int]) -> None:
        self.constraints, self.ends = constraints, ends
        self.pieces = TokenBytes(tokenizer)
        self._by_bytes = {self.pieces[id]: id for id in range(tokenizer.get_vocab_size()) if id not in ends}

    def allowed(self, matcher: Matcher) -> set[int]:
        masks = self.constraints.masks(1)
        matcher.write_mask(masks[0])
        return set(np.flatnonzero(np.unpackbits(masks.view(np.uint8), bitorder="little")).tolist())

    def letters(self, text: str) -> list[int]:
        """A token for every byte of `text`."""
        return [self._by_bytes[bytes([byte])] for byte in text.encode()]

    def accepts(self, constraint: Constraint, text: str) -> bool:
        """Whether `text`, letter by letter, is allowed and may end there."""
        matcher = self.constraints.compile(constraint)
        for token in self.letters(text):
            if matcher.complete or token not in self.allowed(matcher):
                return False
            matcher.accept(token)
        return matcher.satisfied

    def walk(self, constraint: Constraint, seed: int) -> str:
        """The text of tokens drawn at random from the masks, up to the end."""
        return self.follow(self.constraints.compile(constraint), seed)

    def follow(self, matcher: Matcher, seed: int) -> str:
        """`walk` from where `matcher` is."""
        rng = random.Random(seed)
        written = b""
        for step in range(2000):
            if matcher.complete:
                return written.decode()
            tokens = self.allowed(matcher)
            token = self._closing(tokens) if step > _PATIENCE else None
            token = rng.choice(sorted(tokens)) if token is None else token
            matcher.accept(token)
            written += b"" if token in self.ends else self.pieces[token]
        raise AssertionError(f"no end: {written.decode()}")

    def _closing(self, tokens: set[int]) -> int | None:
        """What brings a JSON text nearer to its end."""
        if found := self.ends & tokens:
            return min(found)
        within_text = self._by_bytes[b"z"] in tokens
        for sign in '"' if within_text else '}]",:':
            if (token := self._by_bytes[sign.encode()]) in tokens:
                return token
        return None
