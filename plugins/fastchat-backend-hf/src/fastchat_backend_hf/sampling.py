"""Drawing the next token of every row at once, on the model's device.

A `Sampler` is built when rows join or leave and then serves every step; of the one before it takes over what was
counted. What no row asked for is not computed: a batch of greedy rows costs one ``max``. The steps come in the
contract's order (`SamplingParams`): bias and penalties (`penalties.py`), masks, temperature, top-k, top-p, min-p.

A draw is reproducible: its uniform number is a hash of (seed, position in the answer), and the token is found by
inverting the cumulated distribution in the order of token ids, which no rounding error can
permute as it could a sorted order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastchat_backend_hf.masks import forbid
from fastchat_backend_hf.penalties import LEAST_DIVISOR, Penalties
from fastchat_backend_hf.sequences import TokenSequence
from fastchat_serve import SamplingParams, TokenLogprob
from fastchat_serve.text import Vocabulary

__all__ = ["Alternatives", "Draw", "Sampler", "raw_logprobs", "uniforms"]

_NOT_FINITE = -1

_LIKELY_ENOUGH = 512
"""Tokens looked at first for top-p: they nearly always hold the wanted share, and sorting all takes long."""


class Alternatives(NamedTuple):
    """Log-probabilities at one position, before temperature and filters."""

    chosen: float
    ids: list[int]
    logprobs: list[float]

    def of(self, token: int, vocabulary: Vocabulary) -> TokenLogprob:
        """As the contract reports them for the chosen `token`."""
        return vocabulary.logprob(token, self.chosen, zip(self.ids, self.logprobs, strict=True))


class Draw(NamedTuple):
    """What one row drew. `token` None: its logits are not numbers."""

    token: int | None
    alternatives: Alternatives | None


class Sampler:
    """Draws for `rows`, in this order, as long as none joins or leaves."""

    def __init__(self, rows: Sequence[TokenSequence], device: torch.device, before: Sampler | None = None) -> None:
        """`before` drew up to now for those of `rows` that are not new."""
        self._rows, self._device = rows, device
        params = [row.request.sampling for row in rows]
        self._sampled = [i for i, param in enumerate(params) if param.temperature > 0]
        self._guarded = [i for i, param in enumerate(params) if len(rows[i].drawn) < param.min_tokens]
        self._constrained = [i for i, row in enumerate(rows) if row.mask is not None]
        self._masks = [row.mask for row in rows if row.mask is not None]
        self._reported = [i for i, row in enumerate(rows) if row.request.logprobs is not None]
        self._bias = _Bias.of(rows, device)
        self._penalties: Penalties | None = Penalties.of(rows, device, None if before is None else before._penalties)
        self._filters = _Filters([params[i] for i in self._sampled], device) if self._sampled else None
        self._seeds = np.array([params[i].seed & _MASK for i in self._sampled], dtype=np.uint64)

    def draw(self, logits: Tensor) -> list[Draw]:
        """One token per row from `logits` ``[rows, vocabulary]``, which is overwritten."""
        logits = logits.to(self._device, torch.float32)
        reported = logits[self._reported].log_softmax(-1) if self._reported else None
        if self._bias is not None:
            self._bias.add_to(logits)
        if self._penalties is not None:
            self._penalties.apply(logits)
        if self._guarded:
            self._forbid_stop_tokens(logits)
        if self._constrained:
            forbid(logits, self._constrained, self._masks)
        best, tokens = logits.max(-1)
        if self._filters is not None:
            positions = np.array([len(self._rows[i].drawn) for i in self._sampled], dtype=np.uint64)
            chances = torch.from_numpy(uniforms(self._seeds, positions))
            every_row = len(self._sampled) == len(self._rows)
            drawn = self._filters.draw(logits if every_row else logits[self._sampled], chances)
            tokens[self._sampled] = drawn
        if self._penalties is not None:
            self._penalties.count(tokens)
        chosen = torch.where(best.isfinite(), tokens, _NOT_FINITE).tolist()
        return self._draws(chosen, tokens, reported)

    def _draws(self, chosen: list[int], tokens: Tensor, reported: Tensor | None) -> list[Draw]:
        alternatives: list[Alternatives | None] = [None] * len(chosen)
        if reported is not None:
            counts = [self._rows[i].request.logprobs or 0 for i in self._reported]
            for i, entry in zip(self._reported, raw_logprobs(reported, tokens[self._reported], counts), strict=True):
                alternatives[i] = entry
        return [
            Draw(None if token == _NOT_FINITE else token, entry)
            for token, entry in zip(chosen, alternatives, strict=True)
        ]

    def _forbid_stop_tokens(self, logits: Tensor) -> None:
        rows: list[int] = []
        columns: list[int] = []
        for i in self._guarded:
            row = self._rows[i]
            if row.forbidden and row.mask is None:
                rows += [i] * len(row.stop_ids)
                columns += row.stop_ids
        if rows:
            logits[rows, columns] = -torch.inf


class _Bias:
    """`logit_bias` of all rows, as coordinates."""

    def __init__(self, entries: list[tuple[int, int, float]], device: torch.device) -> None:
        rows, columns, values = zip(*entries, strict=True)
        self._at = (torch.tensor(rows, device=device), torch.tensor(columns, device=device))
        self._values = torch.tensor(values, dtype=torch.float32, device=device)

    @classmethod
    def of(cls, rows: Sequence[TokenSequence], device: torch.device) -> _Bias | None:
        entries = [
            (i, token, value)
            for i, row in enumerate(rows)
            for token, value in (row.request.sampling.logit_bias or {}).items()
        ]
        return cls(entries, device) if entries else None

    def add_to(self, logits: Tensor) -> None:
        logits.index_put_(self._at, self._values, accumulate=True)


class _Filters:
    """Temperature, top-k, top-p, min-p and the draw, for rows that are not greedy."""

    def __init__(self, params: Sequence[SamplingParams], device: torch.device) -> None:
        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

        self._temperature = column([max(param.temperature, LEAST_DIVISOR) for param in params])
        # Off is infinite for both: then no count, and no share that rounding makes 1.0000001, is over it.
        self._top_k = column([param.top_k or torch.inf for param in params])
        self._top_p = column([param.top_p if param.top_p < 1 else torch.inf for param in params])
        self._min_p = column([param.min_p for param in params])
        self._largest_k = max(param.top_k for param in params)
        self._any_top_k = self._largest_k > 0
        self._any_top_p = any(param.top_p < 1 for param in params)
        self._any_min_p = any(param.min_p > 0 for param in params)
        self._precise = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64

    def draw(self, logits: Tensor, chances: Tensor) -> Tensor:
        """Token ids ``[rows]`` from `logits` ``[rows, vocabulary]`` and a uniform number in [0, 1) each."""
        # Shifted first, so that a small temperature does not overflow; the largest weight is 1.
        logits = (logits - logits.amax(-1, keepdim=True)) / self._temperature
        weights = logits.exp()
        if self._any_top_k or self._any_top_p:
            weights = weights.where(weights >= self._least_weight(weights), 0)
        if self._any_min_p:
            weights = weights.where(weights >= self._min_p, 0)
        cumulated = weights.cumsum(-1, dtype=self._precise)
        # Below 1 in this precision too, or the last token could be drawn against its weight of zero.
        chances = chances.to(logits.device, self._precise).clamp_(max=1 - torch.finfo(self._precise).eps)
        aims = chances[:, None] * cumulated[:, -1:]
        return torch.searchsorted(cumulated, aims, right=True)[:, 0].clamp_(max=logits.shape[1] - 1)

    def _least_weight(self, weights: Tensor) -> Tensor:
        """The smallest weight that top-k and top-p leave in each row, ``[rows, 1]``; ties with it stay too."""
        vocabulary = weights.shape[1]
        size = min(max(self._largest_k, _LIKELY_ENOUGH), vocabulary)
        total = weights.sum(-1, keepdim=True)
        while True:
            ordered = weights.topk(size).values if size < vocabulary else weights.sort(-1, descending=True).values
            rank = torch.arange(size, device=weights.device)
            in_k = ordered.where(rank < self._top_k, 0)
            before = in_k.cumsum(-1) - in_k
            mass = torch.where(self._top_k.isinf(), total, in_k.sum(-1, keepdim=True))
            kept = (rank < self._top_k) & (before < self._top_p * mass)
            unlimited = self._top_k.isinf() & self._top_p.isinf()
            open_ended = kept[:, -1:] & self._top_k.isinf() & ~unlimited
            if size == vocabulary or not open_ended.any():
                least = ordered.gather(-1, kept.sum(-1, keepdim=True).clamp_(min=1) - 1)
                return least.masked_fill(unlimited, 0)
            size = vocabulary  # a flat distribution: the likely tokens do not make up the wanted share


def raw_logprobs(logprobs: Tensor, tokens: Tensor, counts: Sequence[int]) -> list[Alternatives]:
    """The log-probabilities of `tokens` and of the `counts` most likely ones, row by row.

    `logprobs` is ``[rows, vocabulary]``, `tokens` ``[rows]``. One transfer from the device for each kind of value.
    """
    chosen = logprobs.gather(-1, tokens[:, None])[:, 0].tolist()
    best = logprobs.topk(min(max(counts, default=0), logprobs.shape[1]))
    return [
        Alternatives(value, ids[:count], values[:count])
        for value, ids, values, count in zip(chosen, best.indices.tolist(), best.values.tolist(), counts, strict=True)
    ]


_MASK = 2**64 - 1


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """A number in [0, 1) for each (seed, position): two rounds of SplitMix64 (Steele, Lea, Flood 2014)."""
    bits = _splitmix64(_splitmix64(seeds) + positions) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def _splitmix64(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
