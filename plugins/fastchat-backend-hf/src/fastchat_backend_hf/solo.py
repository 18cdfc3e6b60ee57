"""Runners for models whose rows cannot share a pass: each row has a cache of the model's own kind.

Sliding windows, recurrent states, cross-attention: their caches trim themselves, or have no columns to
mask. The rows still take turns step by step, so every stream moves; there is only nothing gained by many.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastchat_backend_hf.runners import Context, RowFailed

__all__ = ["EncoderDecoderRunner", "SoloRunner"]

_State = dict[str, Any]
"""What the next pass of a row is given besides its token."""


class SoloRunner:
    """Decoder-only models."""

    def __init__(self, model: Any, *, budget_tokens: int) -> None:
        self._model, self._budget = model, budget_tokens
        self._device = model.get_input_embeddings().weight.device
        can_leave_out = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._last_only: _State = {"logits_to_keep": 1} if can_leave_out else {}
        self._lengths: list[int] = []
        self._states: list[_State] = []
        self._passed: list[Tensor] = []
        """Logits of the rows that a step, interrupted by a failing one, is done with."""

    @property
    def used_fraction(self) -> float:
        return sum(self._lengths) / self._budget

    def fits(self, lengths: Sequence[int]) -> bool:
        return sum(lengths) <= self._budget

    def prefill(self, contexts: Sequence[Context]) -> Tensor:
        begun = [self._begin(context, self._last_only) for context in contexts]
        for context, (_, state) in zip(contexts, begun, strict=True):
            self._append(context, state)
        return torch.stack([logits[-1] for logits, _ in begun])

    def score(self, context: Context) -> Iterator[Tensor]:
        """In one block: not every such cache can be continued by more than one token."""
        logits, state = self._begin(context, {})
        yield logits
        self._append(context, state)

    def decode(self, tokens: Sequence[int]) -> Tensor:
        for row in range(len(self._passed), len(tokens)):
            try:
                logits, self._states[row] = self._forward(self._tensor([tokens[row]]), self._states[row])
            except Exception as error:
                raise RowFailed(row) from error
            self._passed.append(logits[-1])
        logits, self._passed = torch.stack(self._passed), []
        self._lengths = [length + 1 for length in self._lengths]
        return logits

    def drop(self, row: int) -> None:
        self._lengths[row], self._states[row] = self._lengths[-1], self._states[-1]
        self._lengths.pop()
        self._states.pop()

    def scrub(self, row: int) -> None:
        """Nobody inherits a cache here."""

    def shrink(self) -> bool:
        """These caches never hold more than they need."""
        return False

    def release(self) -> None:
        self._lengths.clear()
        self._states.clear()
        self._passed.clear()

    def _begin(self, context: Context, options: _State) -> tuple[Tensor, _State]:
        """Logits of all positions, or those that `options` ask for, and the state of the new row."""
        return self._forward(self._tensor([*context.prompt, *context.answer]), options)

    def _append(self, context: Context, state: _State) -> None:
        self._lengths.append(len(context))
        self._states.append(state)

    def _forward(self, tokens: Tensor, state: _State) -> tuple[Tensor, _State]:
        out = self._model(input_ids=tokens, use_cache=True, return_dict=True, **state)
        # Mamba and its kin name their cache differently.
        name = "past_key_values" if out.get("past_key_values") is not None else "cache_params"
        return out.logits[0], {name: out[name]}

    def _tensor(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor([tokens], device=self._device)


class EncoderDecoderRunner(SoloRunner):
    """The prompt goes to the encoder, once; the answer begins after `prefix` in the decoder."""

    def __init__(self, model: Any, *, budget_tokens: int, prefix: Sequence[int]) -> None:
        super().__init__(model, budget_tokens=budget_tokens)
        self._prefix = list(prefix)

    def _begin(self, context: Context, options: _State) -> tuple[Tensor, _State]:
        encoded = self._model.get_encoder()(input_ids=self._tensor(context.prompt), return_dict=True)
        return self._forward(self._tensor([*self._prefix, *context.answer]), {**options, "encoder_outputs": encoded})

    def _forward(self, tokens: Tensor, state: _State) -> tuple[Tensor, _State]:
        out = self._model(decoder_input_ids=tokens, use_cache=True, return_dict=True, **state)
        return out.logits[0], {"encoder_outputs": state["encoder_outputs"], "past_key_values": out.past_key_values}
