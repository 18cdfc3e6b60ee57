"""The runner for models whose rows share a pass: rows in one `KvCache`, prompts in cells of their own.

A prompt is computed outside the batch and copied into it once it is read: nobody else's cache moves, and giving up a
half-read prompt is letting go of its cells. Blocks of prompts and answers stay behind for those that begin
alike, in whatever memory rows and prompts being read leave of the budget.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from fastchat_backend_hf.adapters import Adapters
from fastchat_backend_hf.cache_names import cache_parameter
from fastchat_backend_hf.cells import BlockCache, Cells, Layout
from fastchat_backend_hf.devices import execution_device
from fastchat_backend_hf.failures import is_out_of_memory
from fastchat_backend_hf.kv import LEAST_COLUMNS, KvCache
from fastchat_backend_hf.mixed_pass import MixedPass, PassBlock
from fastchat_backend_hf.prefixes import PrefixCache
from fastchat_backend_hf.reading import BLOCK_TOKENS, Reading
from fastchat_backend_hf.runners import Block, Context

__all__ = ["BatchRunner"]

_SCORE_BLOCK = 256
"""Prompt positions whose logits are held at a time when a prompt is scored."""


class _Origin(NamedTuple):
    """What a row goes through, and what of it is kept for others under which names."""

    adapter: str | None
    salt: tuple[str, ...] | None
    names: Sequence[bytes]


class BatchRunner:
    """All rows in one pass."""

    def __init__(
        self,
        model: Any,
        layout: Layout,
        *,
        max_rows: int,
        max_columns: int,
        budget_tokens: int,
        share_prefixes: bool,
        attends: bool,
        adapters: Adapters,
        least_columns: int = LEAST_COLUMNS,
    ) -> None:
        """`budget_tokens` is at least `max_columns`; `attends`: `model` takes its attention from `attention.py`."""
        self._model, self._layout, self._budget = model, layout, budget_tokens
        self._adapters = adapters
        self._rows = KvCache(
            layout,
            max_rows=max_rows,
            max_columns=max_columns,
            budget_tokens=budget_tokens,
            make_room=self._evict,
            least_columns=least_columns,
        )
        self._rows.attends = attends
        self._origins: list[_Origin] = []
        """Of each row."""
        self._blocks = BlockCache(layout.layers)
        self._prefixes: PrefixCache[Cells] | None = PrefixCache() if share_prefixes else None
        self._cache_parameter = cache_parameter(model)
        self._takes_positions = _takes(model, "position_ids") and _takes(model.base_model, "position_ids")
        self._keeps_logits = _takes(model, "logits_to_keep")
        self._device = execution_device(model.get_input_embeddings())

    @property
    def used_fraction(self) -> float:
        return (self._rows.used_tokens + self._rows.tokens_elsewhere) / self._budget

    def fits(self, lengths: Sequence[int]) -> bool:
        return self._rows.fits(lengths)

    # ------------------------------------------------------------------------------------- contexts

    def open(self, context: Context) -> Reading:
        tokens = [*context.prompt, *context.answer][:-1]
        if self._prefixes is None or context.salt is None:
            return Reading(tokens, context.adapter)
        return Reading(tokens, context.adapter, context.salt, self._prefixes.names(context.salt, tokens))

    def recall(self, reading: Reading) -> None:
        if self._prefixes is None or reading.done % BLOCK_TOKENS:
            return
        blocks = self._prefixes.find(reading.names, reading.done // BLOCK_TOKENS)
        if blocks:
            self._cells(reading).paste(reading.done, blocks)
            reading.done += len(blocks) * BLOCK_TOKENS
            reading.cached += len(blocks) * BLOCK_TOKENS

    def read(self, readings: Sequence[Reading], most: int) -> None:
        count = min(most, max(reading.left for reading in readings))
        self._pass(self._model.base_model, readings, count)
        for reading in readings:
            self._advance(reading, count)

    def score(self, reading: Reading, most: int) -> Tensor:
        count = min(most, reading.left, _SCORE_BLOCK)
        logits: Tensor = self._pass(self._model, [reading], count).logits[0]
        self._advance(reading, count)
        return logits

    def join(self, reading: Reading) -> None:
        cells: Cells | None = reading.kv
        self.close(reading)
        try:
            self._rows.add(cells, len(reading.tokens))
        except Exception:
            self._keep_cells(reading, cells)
            raise
        self._origins.append(_Origin(reading.adapter, reading.salt, reading.names))

    def close(self, reading: Reading) -> None:
        self._keep_cells(reading, None)

    # ----------------------------------------------------------------------------------------- rows

    def decode(self, tokens: Sequence[int], blocks: Sequence[Block] = ()) -> Tensor:
        if self._rows.attends:
            return self._decode_mixed(tokens, blocks)
        for block in blocks:
            self.read([block.reading], block.most)
        self._rows.extend()
        lengths = self._rows.place(self._device)
        mask = torch.arange(self._rows.width, device=self._device) <= lengths[:, None]
        inputs = torch.tensor(tokens, device=self._device)[:, None]
        with self._adapters.chosen([[origin.adapter] for origin in self._origins], self._device):
            out = self._forward(self._model, inputs, lengths[:, None], self._rows, attention_mask=mask)
        self._rows.advance()
        logits: Tensor = out.logits[:, -1]
        return logits

    def _decode_mixed(self, tokens: Sequence[int], blocks: Sequence[Block]) -> Tensor:
        """All tokens as one sequence, whose attention finds by itself what belongs together."""
        self._rows.extend()
        positions = [self._rows.place(self._device)]
        inputs = list(tokens)
        adapters = [origin.adapter for origin in self._origins]
        placed = [PassBlock(self._cells(one), one.done, min(most, one.left)) for one, most in blocks]
        for block, (reading, _) in zip(placed, blocks, strict=True):
            inputs += reading.tokens[block.start : block.stop]
            adapters += [reading.adapter] * block.count
            positions.append(torch.arange(block.start, block.stop, device=self._device))
        options: dict[str, Any] = {"mixed": MixedPass(self._rows, placed, self._device)}
        if blocks and self._keeps_logits:
            options["logits_to_keep"] = torch.arange(len(tokens), device=self._device)
        sequence = torch.tensor([inputs], device=self._device)
        with self._adapters.chosen([adapters], self._device):
            out = self._forward(self._model, sequence, torch.cat(positions), self._rows, **options)
        for block, (reading, _) in zip(placed, blocks, strict=True):
            self._advance(reading, block.count)
        self._rows.advance()
        logits: Tensor = out.logits[0, : len(tokens)]
        return logits

    def keep(self, row: int, tokens: Sequence[int]) -> None:
        _, salt, names = self._origins[row]
        if self._prefixes is not None and salt is not None:
            names = self._prefixes.names(salt, tokens[: self._rows.lengths[row]], names)
            self._save(names, len(names), lambda start, stop: self._rows.copy_out(row, start, stop))

    def drop(self, row: int) -> None:
        self._rows.drop(row)
        self._origins[row] = self._origins[-1]
        self._origins.pop()

    def scrub(self, row: int) -> None:
        self._rows.scrub(row)
        if self._prefixes is not None:
            self._prefixes.forget(self._origins[row].names)

    # --------------------------------------------------------------------------------------- memory

    def shrink(self) -> bool:
        if self._prefixes is not None and self._prefixes.tokens:
            self._prefixes.clear()
            return True
        return self._rows.shrink()

    def release(self) -> None:
        self._rows.release()
        self._rows.tokens_elsewhere = 0
        self._origins.clear()
        if self._prefixes is not None:
            self._prefixes.clear()

    def synchronize(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)

    def _cells(self, reading: Reading) -> Cells:
        """Where `reading` is written; room is made for it the first time."""
        if reading.kv is None:
            if self._taken + len(reading.tokens) > self._budget:
                self._rows.compact()
            self._evict(self._taken + len(reading.tokens))
            self._keep_cells(reading, self._layout.empty(len(reading.tokens)))
        cells: Cells = reading.kv
        return cells

    def _keep_cells(self, reading: Reading, cells: Cells | None) -> None:
        self._rows.tokens_elsewhere += len(cells or ()) - len(reading.kv or ())
        reading.kv = cells

    @property
    def _taken(self) -> int:
        """Of the budget, by rows and contexts being read."""
        return self._rows.tokens + self._rows.tokens_elsewhere

    def _evict(self, needed_tokens: int) -> None:
        if self._prefixes is not None:
            self._prefixes.shrink(self._budget - needed_tokens)

    def _save(self, names: Sequence[bytes], stop: int, of_tokens: Callable[[int, int], Cells]) -> None:
        """Keep the first `stop` blocks of a context, as far as they fit beside rows and readings."""
        assert self._prefixes is not None
        room = max(0, self._budget - self._taken) // BLOCK_TOKENS
        stop = min(stop, room)
        start = len(self._prefixes.find(names[:stop], 0))
        if start == stop:
            return
        self._prefixes.shrink((room - (stop - start)) * BLOCK_TOKENS)
        try:
            blocks = of_tokens(start * BLOCK_TOKENS, stop * BLOCK_TOKENS).blocks(BLOCK_TOKENS)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._prefixes.clear()  # what is only kept for others is the first to go
        else:
            self._prefixes.keep(names, start, blocks)

    # --------------------------------------------------------------------------------------- passes

    def _pass(self, network: Any, readings: Sequence[Reading], count: int) -> Any:
        """Read the next `count` tokens of `readings`, which stand at the same place.

        Shorter ones are padded on the right, where the causal mask hides it from real tokens: no other mask is needed.
        """
        start = readings[0].done
        cells = [self._cells(reading) for reading in readings]
        blocks = [reading.tokens[start : start + count] for reading in readings]
        rows = [[*block, *[0] * (count - len(block))] for block in blocks]
        positions = torch.arange(start, start + count, device=self._device)
        tokens = torch.tensor(rows, device=self._device)
        self._blocks.place(cells, start)
        try:
            with self._adapters.chosen([[reading.adapter] * count for reading in readings], self._device):
                return self._forward(network, tokens, positions, self._blocks)
        finally:
            self._blocks.place((), 0)  # whoever ends now gives its memory back

    def _advance(self, reading: Reading, count: int) -> None:
        reading.done = min(reading.done + count, len(reading.tokens))
        if reading.names:
            cells: Cells = reading.kv
            self._save(reading.names, reading.done // BLOCK_TOKENS, cells.view)

    def _forward(self, network: Any, tokens: Tensor, positions: Tensor, cache: Cache, **options: Any) -> Any:
        """`positions` are those of `tokens` ``[rows, tokens]``, or of one row."""
        if self._takes_positions:
            options["position_ids"] = positions.expand_as(tokens)
        options[self._cache_parameter] = cache
        return network(input_ids=tokens, use_cache=True, return_dict=True, **options)


def _takes(network: Any, parameter: str) -> bool:
    return parameter in inspect.signature(network.forward).parameters
