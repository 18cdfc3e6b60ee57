"""Rows of tokens: the corpus cut into batches of rows of like length.

Rows begin at position 0, as a chat does, and are padded on the right, so plain causal attention needs no mask.
What the assistant writes is learnt; of what it only reads, a tenth, which teaches the language at little cost.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .corpus import document
from .draw import Draw

POOL_DOCUMENTS: Final = 3000
LONGEST: Final = 1536  # tokens; longer rows are left out
READ_SHARE: Final = 0.1
IGNORED: Final = -100


class Batch(NamedTuple):
    tokens: Tensor  # [rows, length]
    targets: Tensor  # [rows, length]: the next token, or IGNORED
    read: int  # tokens that are not padding


def row(draw: Draw, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[bool]]:
    tokens: list[int] = []
    learnt: list[bool] = []
    for piece in document(draw):
        ids = tokenizer(piece.text, add_special_tokens=False)["input_ids"]
        tokens += ids
        learnt += [piece.learnt or draw.chance(READ_SHARE) for _ in ids]
    return tokens, learnt


def batch(rows: list[tuple[list[int], list[bool]]], pad: int) -> Batch:
    length = -(-max(len(tokens) for tokens, _ in rows) // 16) * 16
    tokens = torch.full((len(rows), length), pad)
    targets = torch.full((len(rows), length), IGNORED)
    for index, (ids, learnt) in enumerate(rows):
        tokens[index, : len(ids)] = torch.tensor(ids)
        following = [token if wanted else IGNORED for token, wanted in zip(ids[1:], learnt[1:], strict=True)]
        targets[index, : len(following)] = torch.tensor(following)
    return Batch(tokens, targets, sum(len(ids) for ids, _ in rows))


def batches(draw: Draw, tokenizer: PreTrainedTokenizerFast, tokens_per_batch: int) -> Iterator[Batch]:
    """Batches without end, the same ones for the same seed."""
    pad = int(tokenizer.pad_token_id)
    while True:
        rows = [made for _ in range(POOL_DOCUMENTS) if len((made := row(draw, tokenizer))[0]) <= LONGEST]
        rows.sort(key=lambda made: len(made[0]))
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for made in rows:
            if (len(groups[-1]) + 1) * len(made[0]) > tokens_per_batch and groups[-1]:
                groups.append([])
            groups[-1].append(made)
        draw.rng.shuffle(groups)
        for group in groups:
            yield batch(group, pad)
