"""Log-probabilities of a prompt's own tokens. mlx-lm's batches report none, so such a prompt is read apart from them.

It is read block by block, between the steps of the answers under way, into a cache that its answer goes on from.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from fastchat_backend_mlx.sampling import log_softmax, most_likely
from fastchat_serve import TokenLogprob
from fastchat_serve.stepping import Answer
from fastchat_serve.text import Vocabulary

__all__ = ["Scoring"]

_BLOCK_TOKENS = 128
"""Their logits are all in memory at once, 80 MB for a vocabulary of 150,000."""


class Scoring:
    """The reading of one prompt, up to its last token, which the answer's first step reads."""

    def __init__(self, answer: Answer, model: Any, vocabulary: Vocabulary) -> None:
        self.answer, self._model, self._vocabulary = answer, model, vocabulary
        self.cache: list[Any] = make_prompt_cache(model)
        self._read = 0
        self._found: list[TokenLogprob] = [vocabulary.logprob(answer.prompt[0], None)]

    def advance(self) -> bool:
        """Read a block. True: that was the last one, and the answer's `echo` is complete."""
        prompt = self.answer.prompt
        block = list(prompt[self._read : min(self._read + _BLOCK_TOKENS, len(prompt) - 1)])
        if block:
            logits = self._model(mx.array([block]), cache=self.cache)[0].astype(mx.float32)
            mx.eval(logits, [layer.state for layer in self.cache])
            self._note(log_softmax(np.asarray(logits)))
        if self._read < len(prompt) - 1:
            return False
        self.answer.end_scoring(self._found)
        return True

    def _note(self, logprobs: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        for row in logprobs:
            self._read += 1
            token = self.answer.prompt[self._read]
            top = most_likely(row, self.answer.request.prompt_logprobs or 0)
            self._found.append(self._vocabulary.logprob(token, float(row[token]), top))
