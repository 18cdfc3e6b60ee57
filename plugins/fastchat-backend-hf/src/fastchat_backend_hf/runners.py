"""How forward passes are made: what a runner is, and the one that takes all rows in one pass.

`solo.py` has those for models whose rows cannot share a pass. A runner holds the key-value caches of the rows
under way, numbered 0 to n-1. `prefill` appends rows, `decode` adds one token to each, `drop` puts the last row in
the place of the one that leaves. Logits are in the model's dtype.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastchat_backend_hf.kv import KvCache

__all__ = ["BatchRunner", "Context", "RowFailed", "Runner"]

_SCORE_BLOCK = 256
"""Prompt positions whose logits are held at a time when a prompt is scored."""


class RowFailed(Exception):
    """One row of a pass failed, for the exception's cause; the others are well."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} failed")
        self.row = row


class Context(NamedTuple):
    """What is known of an answer when its row begins."""

    prompt: Sequence[int]
    answer: Sequence[int]
    """Not empty when the answer is resumed, or was put back and starts again."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


class Runner(Protocol):
    """Forward passes for rows that come and go."""

    @property
    def used_fraction(self) -> float:
        """Of the cache's budget."""
        ...

    def fits(self, lengths: Sequence[int]) -> bool:
        """Whether rows of these lengths can be held together."""
        ...

    def prefill(self, contexts: Sequence[Context]) -> Tensor:
        """Begin rows; their logits ``[n, vocabulary]``. After an exception no row was begun."""
        ...

    def score(self, context: Context) -> Iterator[Tensor]:
        """Begin one row and give the logits of all its positions, in blocks ``[m, vocabulary]``."""
        ...

    def decode(self, tokens: Sequence[int]) -> Tensor:
        """One token more for every row; logits ``[rows, vocabulary]``.

        After an exception it may be repeated, without the row that is dropped for it. Raises `RowFailed` if
        that must be a certain one.
        """
        ...

    def drop(self, row: int) -> None:
        """End a row."""
        ...

    def scrub(self, row: int) -> None:
        """Clear a row whose values are not finite, so that nobody inherits them."""
        ...

    def shrink(self) -> bool:
        """Memory ran out: hold no more than is needed. True if that is less than before, so that a retry may do."""
        ...

    def release(self) -> None:
        """End all rows and give the memory back."""
        ...


class BatchRunner:
    """All rows in one pass, over one `KvCache`."""

    def __init__(self, model: Any, cache: KvCache) -> None:
        self._model, self._cache = model, cache
        self._budget = cache.budget_tokens
        self._device = model.get_input_embeddings().weight.device
        self._accepts = frozenset(inspect.signature(model.forward).parameters)
        self._lengths: list[int] = []

    @property
    def used_fraction(self) -> float:
        return len(self._lengths) * max(self._lengths, default=0) / self._budget

    def fits(self, lengths: Sequence[int]) -> bool:
        return self._cache.fits(lengths)

    def prefill(self, contexts: Sequence[Context]) -> Tensor:
        """Rows are padded on the right, where the causal mask hides it from real tokens: no other mask is needed."""
        lengths = [len(context) for context in contexts]
        length = max(lengths)
        rows = [[*context.prompt, *context.answer] + [0] * (length - len(context)) for context in contexts]
        ends = sorted({size - 1 for size in lengths})
        self._cache.reserve(len(self._lengths) + len(rows), max(length, *self._lengths, 0))
        self._cache.span.place(first=len(self._lengths), count=len(rows), start=0, length=length)
        logits = self._forward(torch.tensor(rows, device=self._device), 0, keep=torch.tensor(ends, device=self._device))
        self._lengths += lengths
        return logits[range(len(rows)), [ends.index(size - 1) for size in lengths]]

    def score(self, context: Context) -> Iterator[Tensor]:
        tokens = torch.tensor([[*context.prompt, *context.answer]], device=self._device)
        length, row = tokens.shape[1], len(self._lengths)
        self._cache.reserve(row + 1, max(length, *self._lengths, 0))
        for start in range(0, length, _SCORE_BLOCK):
            block = tokens[:, start : start + _SCORE_BLOCK]
            self._cache.span.place(first=row, count=1, start=start, length=block.shape[1])
            yield self._forward(block, start)[0]
        self._lengths.append(length)

    def decode(self, tokens: Sequence[int]) -> Tensor:
        width = max(self._lengths) + 1
        self._cache.reserve(len(tokens), width)
        lengths = torch.tensor(self._lengths, device=self._device)
        self._cache.span.place_step(lengths, width)
        mask = torch.arange(width, device=self._device) <= lengths[:, None]
        inputs = torch.tensor(tokens, device=self._device)[:, None]
        logits = self._forward(inputs, lengths[:, None], mask=mask)[:, -1]
        self._lengths = [length + 1 for length in self._lengths]
        return logits

    def drop(self, row: int) -> None:
        last = len(self._lengths) - 1
        if row != last:
            self._cache.move(last, row, self._lengths[last])
            self._lengths[row] = self._lengths[last]
        self._lengths.pop()

    def scrub(self, row: int) -> None:
        self._cache.scrub(row)

    def shrink(self) -> bool:
        return self._cache.shrink()

    def release(self) -> None:
        self._lengths.clear()
        self._cache.release()

    def _forward(
        self, tokens: Tensor, start: Tensor | int, *, mask: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """Logits ``[rows, positions, vocabulary]``; `keep` names the positions if the model can leave out others."""
        options: dict[str, Any] = {}
        if "position_ids" in self._accepts:
            positions = torch.arange(tokens.shape[1], device=self._device) + start
            options["position_ids"] = positions.expand(tokens.shape[0], -1)
        if keep is not None and "logits_to_keep" in self._accepts:
            options["logits_to_keep"] = keep
        out = self._model(
            input_ids=tokens,
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
            **options,
        )
        logits: Tensor = out.logits
        return logits if keep is None or "logits_to_keep" in self._accepts else logits[:, keep]
