"""Runners for models whose rows cannot share a pass: each row has a cache of the model's own kind.

Sliding windows, recurrent states, cross-attention: their caches trim themselves, or have no columns to
mask. The rows still take turns step by step, so every stream moves; there is only nothing gained by many. A prompt
is read at once, since not every such cache can be continued by more than one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastchat_backend_hf.adapters import Adapters
from fastchat_backend_hf.cache_names import cache_of
from fastchat_backend_hf.devices import execution_device
from fastchat_backend_hf.reading import Reading
from fastchat_backend_hf.runners import Block, Context, RowFailed

__all__ = ["EncoderDecoderRunner", "SoloRunner"]

_State = dict[str, Any]
"""What the next pass of a row is given besides its token."""


@dataclass(slots=True)
class _Row:
    """One answer."""

    length: int
    state: _State
    adapter: str | None


class SoloRunner:
    """Decoder-only models."""

    _tokens_parameter = "input_ids"

    def __init__(self, model: Any, *, budget_tokens: int, adapters: Adapters) -> None:
        self._model, self._budget, self._adapters = model, budget_tokens, adapters
        self._device = execution_device(model.get_input_embeddings())
        self._rows: list[_Row] = []
        self._passed: list[Tensor] = []
        """Logits of the rows that a step, interrupted by a failing one, is done with."""

    @property
    def used_fraction(self) -> float:
        return sum(row.length for row in self._rows) / self._budget

    def fits(self, lengths: Sequence[int]) -> bool:
        return sum(lengths) <= self._budget

    def open(self, context: Context) -> Reading:
        return Reading([*context.prompt, *context.answer][:-1], context.adapter)

    def recall(self, reading: Reading) -> None:
        """Nothing is kept for others."""

    def read(self, readings: Sequence[Reading], most: int) -> None:
        for reading in readings:
            out = self._pass(self._model.base_model, self._tensor(reading.tokens), {}, reading.adapter)
            reading.kv, reading.done = _continued(out), len(reading.tokens)

    def score(self, reading: Reading, most: int) -> Tensor:
        out = self._pass(self._model, self._tensor(reading.tokens), {}, reading.adapter)
        reading.kv, reading.done = _continued(out), len(reading.tokens)
        logits: Tensor = out.logits[0]
        return logits

    def join(self, reading: Reading) -> None:
        self._rows.append(_Row(len(reading.tokens), reading.kv or {}, reading.adapter))

    def close(self, reading: Reading) -> None:
        reading.kv = None

    def decode(self, tokens: Sequence[int], blocks: Sequence[Block] = ()) -> Tensor:
        for block in blocks:
            if block.reading.left:  # or it was read before a failing row
                self.read([block.reading], block.most)
        for number in range(len(self._passed), len(tokens)):
            row = self._rows[number]
            try:
                logits, row.state = self._forward(self._tensor([tokens[number]]), row.state, row.adapter)
            except Exception as error:
                raise RowFailed(number) from error
            self._passed.append(logits[-1])
        logits, self._passed = torch.stack(self._passed), []
        for row in self._rows:
            row.length += 1
        return logits

    def keep(self, row: int, tokens: Sequence[int]) -> None:
        """Nothing is kept for others."""

    def drop(self, row: int) -> None:
        if len(self._passed) == len(self._rows):  # otherwise the failing row is dropped, which comes after them
            self._passed[row] = self._passed[-1]
            self._passed.pop()
        self._rows[row] = self._rows[-1]
        self._rows.pop()

    def scrub(self, row: int) -> None:
        """Nobody inherits a cache here."""

    def synchronize(self) -> None:
        """Passes are not timed: prompts are read at once, whatever that takes."""

    def shrink(self) -> bool:
        """These caches never hold more than they need."""
        return False

    def release(self) -> None:
        self._rows.clear()
        self._passed.clear()

    def _forward(self, tokens: Tensor, state: _State, adapter: str | None) -> tuple[Tensor, _State]:
        """The next logits of a row, and its next state."""
        out = self._pass(self._model, tokens, state, adapter)
        return out.logits[0], _continued(out)

    def _pass(self, network: Any, tokens: Tensor, state: _State, adapter: str | None) -> Any:
        with self._adapters.chosen([[adapter]], self._device):
            return network(**{self._tokens_parameter: tokens}, use_cache=True, return_dict=True, **state)

    def _tensor(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor([tokens], device=self._device)


def _continued(out: Any) -> _State:
    """What a pass leaves behind for the next one."""
    name, cache = cache_of(out)
    return {name: cache}


class EncoderDecoderRunner(SoloRunner):
    """The prompt goes to the encoder, once; the answer begins after `prefix` in the decoder."""

    _tokens_parameter = "decoder_input_ids"

    def __init__(self, model: Any, *, budget_tokens: int, adapters: Adapters, prefix: Sequence[int]) -> None:
        super().__init__(model, budget_tokens=budget_tokens, adapters=adapters)
        self._prefix = list(prefix)

    def open(self, context: Context) -> Reading:
        reading = Reading(context.prompt, context.adapter)
        reading.kv = {"decoded": [*self._prefix, *context.answer]}
        return reading

    def read(self, readings: Sequence[Reading], most: int) -> None:
        for reading in readings:
            *before, last = reading.kv["decoded"]
            with self._adapters.chosen([[reading.adapter]], self._device):
                encoded = self._model.get_encoder()(input_ids=self._tensor(reading.tokens), return_dict=True)
            state: _State = {"encoder_outputs": encoded}
            if before:
                state |= super()._forward(self._tensor(before), state, reading.adapter)[1]
            reading.kv, reading.done = {**state, "first": last}, len(reading.tokens)

    def _forward(self, tokens: Tensor, state: _State, adapter: str | None) -> tuple[Tensor, _State]:
        """A row's first token in the decoder is not the last one of its prompt."""
        first, state = state.get("first"), {name: value for name, value in state.items() if name != "first"}
        logits, after = super()._forward(tokens if first is None else self._tensor([first]), state, adapter)
        return logits, {**state, **after}
