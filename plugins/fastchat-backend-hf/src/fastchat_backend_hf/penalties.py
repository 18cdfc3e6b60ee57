"""Repetition, presence and frequency penalties of a batch, and the counts of tokens that they need.

Counting a row's tokens anew is for rows that join. When others come or go, what is counted is taken over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastchat_backend_hf.sequences import TokenSequence

__all__ = ["LEAST_DIVISOR", "Penalties"]

LEAST_DIVISOR = 1e-6
"""Of temperatures and repetition penalties: a smaller one could make a quotient infinite, and hardly changes a draw."""


class Penalties:
    """Applied to the rows that have any. They follow what is drawn through `count`."""

    def __init__(
        self, rows: Sequence[TokenSequence], index: list[int], device: torch.device, before: Penalties | None
    ) -> None:
        self._index = torch.tensor(index, device=device)
        self._rows = [rows[i] for i in index]
        self._before: Penalties | None = before if before is None or before._counts is not None else before._before
        self._counts: Tensor | None = None
        """How often each token was drawn, ``[penalised rows, vocabulary]``."""
        self._in_prompt: Tensor | None = None
        params = [row.request.sampling for row in self._rows]

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

        self._repetition = column([max(param.repetition_penalty, LEAST_DIVISOR) for param in params])
        self._presence = column([param.presence_penalty for param in params])
        self._frequency = column([param.frequency_penalty for param in params])
        self._any_repetition = any(param.repetition_penalty != 1 for param in params)

    @classmethod
    def of(cls, rows: Sequence[TokenSequence], device: torch.device, before: Penalties | None) -> Penalties | None:
        index = [
            i
            for i, row in enumerate(rows)
            if (param := row.request.sampling).repetition_penalty != 1
            or param.presence_penalty
            or param.frequency_penalty
        ]
        return cls(rows, index, device, before) if index else None

    def apply(self, logits: Tensor) -> None:
        if self._counts is None:
            self._count_all(logits)
        counts = self._counts
        assert counts is not None
        part = logits[self._index]
        if self._in_prompt is not None:
            seen = (counts > 0) | self._in_prompt
            part = torch.where(seen, torch.where(part > 0, part / self._repetition, part * self._repetition), part)
        part -= self._frequency * counts + self._presence * (counts > 0)
        logits[self._index] = part

    def count(self, tokens: Tensor) -> None:
        """Remember what was drawn."""
        if self._counts is not None:
            drawn = tokens[self._index][:, None]
            self._counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float32))

    def _count_all(self, logits: Tensor) -> None:
        """Take over what is counted for the rows that were here before, and count for new ones."""
        before, self._before = self._before, None
        known = {} if before is None else {id(row): number for number, row in enumerate(before._rows)}

        def joined(tokens: list[Sequence[int]], found: Tensor | None) -> Tensor:
            return torch.stack(
                [
                    _occurrences(row_tokens, logits) if found is None or id(row) not in known else found[known[id(row)]]
                    for row, row_tokens in zip(self._rows, tokens, strict=True)
                ]
            )

        self._counts = joined([row.drawn for row in self._rows], None if before is None else before._counts)
        if self._any_repetition:
            found = None if before is None else before._in_prompt
            self._in_prompt = joined([row.prompt for row in self._rows], found) > 0


def _occurrences(tokens: Sequence[int], like: Tensor) -> Tensor:
    """How often each token of the vocabulary occurs."""
    counts = torch.bincount(torch.tensor(tokens, dtype=torch.long), minlength=like.shape[1])
    return counts.to(like.device, torch.float32)
