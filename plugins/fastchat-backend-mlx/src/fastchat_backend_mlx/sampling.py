"""How the next tokens of one answer are drawn: the logits processors and the sampler of its row.

mlx-lm describes the pass for a token before the one ahead of it is computed, and all of this only adds to the
description: positions are counted, and the random numbers depend on them alone. A constraint has to know the
token, so it makes the batch wait for it.

The steps come in the contract's order (`SamplingParams`): bias and penalties, masks, temperature, top-k, top-p, min-p.
A token is found by inverting the cumulated distribution in the order of token ids, which no rounding error can
permute as it could a sorted order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import greedy_sampler
from numpy.typing import NDArray

from fastchat_serve import uniform
from fastchat_serve.stepping import Answer

__all__ = ["Drawing", "Processor", "log_softmax", "most_likely"]

Processor = Callable[[mx.array, mx.array], mx.array]
"""From a row's tokens so far and its logits ``[1, vocabulary]`` to other logits."""

_LEAST_DIVISOR = 1e-6
"""Of temperatures and repetition penalties: a smaller one could make a quotient infinite, and hardly changes a draw."""


class Drawing:
    """Draws for one answer, position by position.

    Attributes:
        failure: What went wrong in a processor. The tokens drawn since mean nothing.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer, self._params = answer, answer.params
        self._positions = count(len(answer.drawn))
        self._constraint = None if answer.constraint is None else answer.constraint.copy()  # a step ahead of its own
        self._read = len(answer.context)
        self._raw: deque[mx.array] = deque()
        self.failure: Exception | None = None
        self._remembers = False

    def sampler(self) -> Callable[[mx.array], mx.array]:
        """For mlx-lm: a row's next token from its log-probabilities. Greedy rows share theirs, and so a pass."""
        return self._draw if self._params.temperature > 0 else greedy_sampler

    def processors(self) -> list[Processor]:
        """For mlx-lm: what happens to the row's logits first."""
        processors = self._wanted()
        self._remembers = self._answer.request.logprobs is not None and bool(processors)
        return [self._remember, *processors] if self._remembers else processors

    def raw_logprobs(self, logprobs: mx.array) -> NDArray[np.float32]:
        """The log-probabilities before any step, of the position for which mlx-lm reports `logprobs`.

        To be called once for every position if the request asks for log-probabilities.
        """
        if not self._remembers:
            reported: NDArray[np.float32] = np.asarray(logprobs)
            return reported
        remembered: NDArray[np.float32] = log_softmax(np.asarray(self._raw.popleft()))[0]
        return remembered

    # ------------------------------------------------------------------------------------- processors

    def _wanted(self) -> list[Processor]:
        params, wanted = self._params, list[Processor]()
        if params.logit_bias:
            ids = mx.array(list(params.logit_bias))
            values = mx.array(list(params.logit_bias.values()), dtype=mx.float32)
            wanted.append(lambda _, logits: logits.at[:, ids].add(values))
        if params.repetition_penalty != 1:
            wanted.append(self._penalise_repetition)
        if params.presence_penalty or params.frequency_penalty:
            wanted.append(self._penalise_use)
        if self._constraint is not None:
            wanted.append(self._constrain)
        elif params.min_tokens and self._answer.stop_ids:
            stop_ids = mx.array(sorted(self._answer.stop_ids))
            wanted.append(lambda tokens, logits: self._forbid_end(stop_ids, tokens, logits))
        return wanted

    def _remember(self, _: mx.array, logits: mx.array) -> mx.array:
        self._raw.append(logits)
        return logits

    def _penalise_repetition(self, tokens: mx.array, logits: mx.array) -> mx.array:
        penalty = max(self._params.repetition_penalty, _LEAST_DIVISOR)
        penalised = mx.where(logits > 0, logits / penalty, logits * penalty)
        return mx.where(_occurrences(tokens, logits) > 0, penalised, logits)

    def _penalise_use(self, tokens: mx.array, logits: mx.array) -> mx.array:
        if tokens.size == len(self._answer.prompt):
            return logits
        uses = _occurrences(tokens[len(self._answer.prompt) :], logits)
        return logits - (self._params.frequency_penalty * uses + self._params.presence_penalty * (uses > 0))

    def _forbid_end(self, stop_ids: mx.array, tokens: mx.array, logits: mx.array) -> mx.array:
        position = tokens.size - len(self._answer.prompt)
        return logits.at[:, stop_ids].add(-mx.inf) if position < self._params.min_tokens else logits

    def _constrain(self, tokens: mx.array, logits: mx.array) -> mx.array:
        constraint, mask = self._constraint, self._answer.mask
        assert constraint is not None
        assert mask is not None
        if self.failure is not None:
            return logits
        try:
            constraint.accept_all(tokens[self._read :].tolist())
            self._read = tokens.size
            if constraint.complete:  # what is drawn now is thrown away
                return logits
            ends_early = tokens.size - len(self._answer.prompt) < self._params.min_tokens
            constraint.write_mask(mask, without=self._answer.stop_ids if ends_early else ())
            allowed = np.unpackbits(mask.view(np.uint8), bitorder="little", count=logits.shape[1]).astype(np.bool_)
            return mx.where(mx.array(allowed), logits, -mx.inf)
        except Exception as error:  # this answer's own failure must not become that of the whole batch
            self.failure = error
            return logits

    # ---------------------------------------------------------------------------------------- sampler

    def _draw(self, logprobs: mx.array) -> mx.array:
        """A token id ``[1]`` from log-probabilities ``[1, vocabulary]``."""
        params = self._params
        # Shifted first, so that a small temperature does not overflow; the largest weight is 1.
        shifted = logprobs - logprobs.max(-1, keepdims=True)
        weights = mx.exp(shifted / max(params.temperature, _LEAST_DIVISOR))
        if params.top_k or params.top_p < 1:
            weights = mx.where(weights >= self._least_weight(weights), weights, 0)
        if params.min_p > 0:
            weights = mx.where(weights >= params.min_p, weights, 0)
        precise, epsilon = _precision()
        cumulated = mx.cumsum(weights.astype(precise), axis=-1)
        # Below 1 in this precision too, or the last token could be drawn against its weight of zero.
        chance = min(uniform(params.seed, next(self._positions)), 1 - epsilon)
        drawn = (cumulated <= mx.array(chance, dtype=precise) * cumulated[:, -1:]).sum(-1)
        return mx.minimum(drawn, logprobs.shape[1] - 1).astype(mx.uint32)

    def _least_weight(self, weights: mx.array) -> mx.array:
        """The smallest weight that top-k and top-p leave, ``[1, 1]``; ties with it stay too."""
        k = min(self._params.top_k or weights.shape[1], weights.shape[1])
        ordered = -mx.sort(-(mx.topk(weights, k) if k < weights.shape[1] else weights), axis=-1)
        if self._params.top_p >= 1:
            return ordered[:, -1:]
        before = mx.cumsum(ordered, axis=-1) - ordered
        kept = (before < self._params.top_p * ordered.sum(-1, keepdims=True)).sum(-1, keepdims=True)
        return mx.take_along_axis(ordered, mx.maximum(kept, 1) - 1, axis=-1)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the last axis, on the host: the device is busy with the next step already."""
    shifted = logits - logits.max(-1, keepdims=True)
    result: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def most_likely(logprobs: NDArray[np.float32], number: int) -> list[tuple[int, float]]:
    """Ids and log-probabilities, the best first, the lowest id first in a tie."""
    number = min(number, len(logprobs))
    if number == 0:
        return []
    least = np.partition(logprobs, -number)[-number]
    ids = np.flatnonzero(logprobs >= least)
    best = ids[np.argsort(-logprobs[ids], kind="stable")][:number]
    return list(zip(best.tolist(), logprobs[best].tolist(), strict=True))


def _occurrences(tokens: mx.array, logits: mx.array) -> mx.array:
    """How often each token of the vocabulary occurs."""
    return mx.zeros(logits.shape[1]).at[tokens].add(1.0)


def _precision() -> tuple[mx.Dtype, float]:
    """The most precise numbers that the device has, and their epsilon."""
    if mx.default_device() == mx.Device(mx.cpu):
        return mx.float64, float(np.finfo(np.float64).eps)
    return mx.float32, float(np.finfo(np.float32).eps)
