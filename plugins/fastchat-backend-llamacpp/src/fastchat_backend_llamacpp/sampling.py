"""Drawing the next token of one answer from its logits, in the contract's order (`SamplingParams`).

A draw is reproducible: its uniform number is a hash of (seed, position in the answer), and the token is found by
inverting the cumulated distribution in the order of token ids, which no rounding error can permute as it could a
sorted order. The numbers are those of all our samplers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastchat_serve import SamplingParams, TokenLogprob, uniform
from fastchat_serve.text import Vocabulary

__all__ = ["Alternatives", "Sampler", "alternatives"]

Logits = NDArray[np.float32]

_LEAST_DIVISOR = 1e-6
"""Of temperatures and repetition penalties: a smaller one could make a quotient infinite, and hardly changes a draw."""

_LIKELY_ENOUGH = 512
"""Tokens looked at first for top-p: they nearly always hold the wanted share, and sorting all takes long."""


class Alternatives(NamedTuple):
    """Log-probabilities at one position, before temperature and filters."""

    chosen: float
    ids: list[int]
    logprobs: list[float]

    def of(self, token: int, vocabulary: Vocabulary) -> TokenLogprob:
        """As the contract reports it, `token` being the chosen one."""
        return vocabulary.logprob(token, self.chosen, zip(self.ids, self.logprobs, strict=True))


class Sampler:
    """Draws for one answer."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], answer: Sequence[int], size: int) -> None:
        """`answer` is what was drawn already, `size` the vocabulary's."""
        self._params = params
        bias = params.logit_bias or {}
        self._bias_ids = np.fromiter(bias.keys(), np.intp, len(bias))
        self._biases = np.fromiter(bias.values(), np.float32, len(bias))
        self._repeats = params.repetition_penalty != 1
        self._penalised = bool(self._repeats or params.presence_penalty or params.frequency_penalty)
        if self._penalised:
            self._counts = np.bincount(np.asarray(answer, np.intp), minlength=size).astype(np.float32)
            self._in_prompt = np.bincount(np.asarray(prompt, np.intp), minlength=size) > 0

    def accept(self, token: int) -> None:
        """`token` was drawn."""
        if self._penalised:
            self._counts[token] += 1

    def draw(
        self, logits: Logits, position: int, *, forbidden: Collection[int] = (), mask: NDArray[np.bool_] | None = None
    ) -> int | None:
        """The answer's token at `position`, None if the model's output is not finite. Overwrites `logits`.

        `forbidden` tokens are not drawn, and of `mask` only those that are set.
        """
        logits[self._bias_ids] += self._biases
        if self._penalised:
            self._penalise(logits)
        if forbidden:
            logits[list(forbidden)] = -np.inf
        if mask is not None:
            logits[~mask] = -np.inf
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            return None
        if self._params.temperature <= 0:
            return best
        weights = self._weights(logits, logits[best])
        return _inverse(weights, uniform(self._params.seed, position))

    def _penalise(self, logits: Logits) -> None:
        counts, params = self._counts, self._params
        if self._repeats:
            seen = np.flatnonzero((counts > 0) | self._in_prompt)
            penalty = np.float32(max(params.repetition_penalty, _LEAST_DIVISOR))
            values = logits[seen]
            logits[seen] = np.where(values > 0, values / penalty, values * penalty)
        drawn = np.flatnonzero(counts)
        logits[drawn] -= np.float32(params.frequency_penalty) * counts[drawn] + np.float32(params.presence_penalty)

    def _weights(self, logits: Logits, largest: np.float32) -> Logits:
        """Of the tokens that may be drawn; the largest weight is 1."""
        params = self._params
        # Shifted first, so that a small temperature does not overflow.
        weights: Logits = np.exp((logits - largest) / np.float32(max(params.temperature, _LEAST_DIVISOR)))
        if params.top_k or params.top_p < 1:
            weights[weights < _least_weight(weights, params.top_k, params.top_p)] = 0
        if params.min_p:
            weights[weights < np.float32(params.min_p)] = 0
        return weights


def alternatives(logits: Logits, token: int, count: int) -> Alternatives:
    """What `logits` say of `token`, and of the `count` most likely ones."""
    largest = logits.max()
    total = float(largest) + float(np.log(np.exp(logits - largest).sum(dtype=np.float64)))
    count = min(count, len(logits))
    ids: Iterable[int] = ()
    if count:
        likely = np.argpartition(-logits, count - 1)[:count]
        ids = (int(id) for id in likely[np.lexsort((likely, -logits[likely]))])
    found = list(ids)
    return Alternatives(float(logits[token]) - total, found, [float(logits[id]) - total for id in found])


def _least_weight(weights: Logits, top_k: int, top_p: float) -> float:
    """The smallest weight that top-k and top-p leave; ties with it stay too."""
    size = min(top_k or _LIKELY_ENOUGH, len(weights))
    while True:
        rest = len(weights) - size
        ordered = np.sort(np.partition(weights, rest)[rest:] if rest else weights)[::-1].astype(np.float64)
        before = np.cumsum(ordered) - ordered
        mass = ordered.sum() if top_k else weights.sum(dtype=np.float64)
        kept = int((before < top_p * mass).sum()) if top_p < 1 else size
        if top_k or kept < size or not rest:
            return float(ordered[max(kept, 1) - 1])
        size = len(weights)  # a flat distribution: the likely tokens do not make up the wanted share


def _inverse(weights: Logits, chance: float) -> int:
    cumulated = np.cumsum(weights, dtype=np.float64)
    # Below the whole, or the last token could be drawn against its weight of zero.
    aim = min(chance * cumulated[-1], np.nextafter(cumulated[-1], 0))
    return int(np.searchsorted(cumulated, aim, side="right"))
