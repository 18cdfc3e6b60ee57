"""The masks of constrained answers, written while the model reads.

What may come next is known as soon as a token is accepted, and needed only when the next one is drawn: the pass of
the model lies between. So masks are written on a thread of their own, for which Python's lock is let go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fastchat_backend_hf.sequences import TokenSequence

__all__ = ["MaskWriter", "forbid"]


class MaskWriter:
    """Writes the masks of some answers at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fastchat-hf-masks")
        self._under_way: Future[None] | None = None

    def begin(self, rows: Iterable[TokenSequence]) -> None:
        """Let the masks of `rows` follow the tokens they have accepted."""
        constrained = [row for row in rows if row.constraint is not None]
        if constrained:
            self._under_way = self._thread.submit(_write, constrained)

    def wait(self) -> None:
        """Until they do."""
        if self._under_way is not None:
            self._under_way.result()
            self._under_way = None

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


def forbid(logits: Tensor, rows: Sequence[int], masks: Sequence[np.ndarray]) -> None:
    """Leave the rows at `rows` of `logits` what their mask allows."""
    width = logits.shape[1]
    bits = torch.from_numpy(np.stack(masks).view(np.uint8)).to(logits.device)
    places = torch.arange(8, dtype=torch.uint8, device=logits.device)
    forbidden = ((bits[:, :, None] >> places) & 1).view(len(rows), -1)[:, :width] == 0
    if len(rows) == len(logits):
        logits.masked_fill_(forbidden, -torch.inf)
    else:
        logits[rows] = logits[rows].masked_fill_(forbidden, -torch.inf)


def _write(rows: Sequence[TokenSequence]) -> None:
    for row in rows:
        row.write_mask()
