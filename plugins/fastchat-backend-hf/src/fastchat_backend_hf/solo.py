"""Runners for models whose rows cannot share a pass: each row has a cache of the model's own kind.

Sliding windows, recurrent states, cross-attention: their caches trim themselves, or have no columns to
mask. The rows still take turns step by step, so every stream moves; there is only nothing gained by many. A prompt
is read at once, since not every such cache can be continued by more than one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastchat_backend_hf.cache_names import cache_of
from fastchat_backend_hf.reading import Reading
from fastchat_backend_hf.runners import Block, Context, RowFailed

__all__ = ["EncoderDecoderRunner", "SoloRunner"]

_State = dict[str, Any]
"""What the next pass of a row is given besides its token."""


class SoloRunner:
    """Decoder-only models."""

    def __init__(self, model: Any, *, budget_tokens: int) -> None:
        self._model, self._budget = model, budget_tokens
        self._device = model.get_input_embeddings().weight.device
        self._lengths: list[int] = []
        self._states: list[_State] = []
        self._passed: list[Tensor] = []
        """Logits of the rows that a step, interrupted by a failing one, is done with."""

    @property
    def used_fraction(self) -> float:
        return sum(self._lengths) / self._budget

    def fits(self, lengths: Sequence[int]) -> bool:
        return sum(lengths) <= self._budget

    def open(self, context: Context) -> Reading:
        return Reading([*context.prompt, *context.answer][:-1])

    def recall(self, reading: Reading) -> None:
        """Nothing is kept for others."""

    def read(self, readings: Sequence[Reading], most: int) -> None:
        for reading in readings:
            out = self._pass(self._model.base_model, self._tensor(reading.tokens), {})
            reading.kv, reading.done = _continued(out), len(reading.tokens)

    def score(self, reading: Reading, most: int) -> Tensor:
        out = self._pass(self._model, self._tensor(reading.tokens), {})
        reading.kv, reading.done = _continued(out), len(reading.tokens)
        logits: Tensor = out.logits[0]
        return logits

    def join(self, reading: Reading) -> None:
        self._lengths.append(len(reading.tokens))
        self._states.append(reading.kv or {})

    def close(self, reading: Reading) -> None:
        reading.kv = None

    def decode(self, tokens: Sequence[int], blocks: Sequence[Block] = ()) -> Tensor:
        for block in blocks:
            if block.reading.left:  # or it was read before a failing row
                self.read([block.reading], block.most)
        for row in range(len(self._passed), len(tokens)):
            try:
                logits, self._states[row] = self._forward(self._tensor([tokens[row]]), self._states[row])
            except Exception as error:
                raise RowFailed(row) from error
            self._passed.append(logits[-1])
        logits, self._passed = torch.stack(self._passed), []
        self._lengths = [length + 1 for length in self._lengths]
        return logits

    def keep(self, row: int, tokens: Sequence[int]) -> None:
        """Nothing is kept for others."""

    def drop(self, row: int) -> None:
        if len(self._passed) == len(self._lengths):  # otherwise the failing row is dropped, which comes after them
            self._passed[row] = self._passed[-1]
            self._passed.pop()
        self._lengths[row], self._states[row] = self._lengths[-1], self._states[-1]
        self._lengths.pop()
        self._states.pop()

    def scrub(self, row: int) -> None:
        """Nobody inherits a cache here."""

    def synchronize(self) -> None:
        """Passes are not timed: prompts are read at once, whatever that takes."""

    def shrink(self) -> bool:
        """These caches never hold more than they need."""
        return False

    def release(self) -> None:
        self._lengths.clear()
        self._states.clear()
        self._passed.clear()

    def _forward(self, tokens: Tensor, state: _State) -> tuple[Tensor, _State]:
        """The next logits of a row, and its next state."""
        out = self._pass(self._model, tokens, state)
        return out.logits[0], _continued(out)

    def _pass(self, network: Any, tokens: Tensor, state: _State) -> Any:
        return network(input_ids=tokens, use_cache=True, return_dict=True, **state)

    def _tensor(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor([tokens], device=self._device)


def _continued(out: Any) -> _State:
    """What a pass leaves behind for the next one."""
    name, cache = cache_of(out)
    return {name: cache}


class EncoderDecoderRunner(SoloRunner):
    """The prompt goes to the encoder, once; the answer begins after `prefix` in the decoder."""

    def __init__(self, model: Any, *, budget_tokens: int, prefix: Sequence[int]) -> None:
        super().__init__(model, budget_tokens=budget_tokens)
        self._prefix = list(prefix)

    def open(self, context: Context) -> Reading:
        reading = Reading(context.prompt)
        reading.kv = {"decoded": [*self._prefix, *context.answer]}
        return reading

    def read(self, readings: Sequence[Reading], most: int) -> None:
        for reading in readings:
            *before, last = reading.kv["decoded"]
            encoded = self._model.get_encoder()(input_ids=self._tensor(reading.tokens), return_dict=True)
            state: _State = {"encoder_outputs": encoded}
            if before:
                state |= super()._forward(self._tensor(before), state)[1]
            reading.kv, reading.done = {**state, "first": last}, len(reading.tokens)

    def _forward(self, tokens: Tensor, state: _State) -> tuple[Tensor, _State]:
        """A row's first token in the decoder is not the last one of its prompt."""
        first, state = state.get("first"), {name: value for name, value in state.items() if name != "first"}
        logits, after = super()._forward(tokens if first is None else self._tensor([first]), state)
        return logits, {**state, **after}

    def _pass(self, network: Any, tokens: Tensor, state: _State) -> Any:
        return network(decoder_input_ids=tokens, use_cache=True, return_dict=True, **state)
