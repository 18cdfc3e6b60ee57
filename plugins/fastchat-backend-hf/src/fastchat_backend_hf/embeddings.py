"""Texts to vectors: the model's last hidden states, pooled and normalised."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastchat_backend_hf.devices import execution_device
from fastchat_backend_hf.failures import as_serve_error, is_fatal

__all__ = ["EmbedJob", "Embedder", "Pooling"]

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "cls", "last"]


class EmbedJob:
    """Token ids of some texts, and the vectors found so far.

    `future` gets ``[texts, dimensions]`` as float32; cancelling it ends the job.
    """

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self.texts = texts
        self.future: Future[NDArray[np.float32]] = Future()
        # Texts of like length share a pass, so that little of it is padding.
        self.todo = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        self.vectors: dict[int, NDArray[np.float32]] = {}


class Embedder:
    """Embeds with `model`, the network without a language head."""

    def __init__(self, model: Any, pooling: Pooling, *, batch_tokens: int) -> None:
        """`batch_tokens` bounds a pass, padding included; a longer text has one to itself."""
        self._model, self._pooling, self._batch_tokens = model, pooling, batch_tokens
        self._device = execution_device(model.get_input_embeddings())
        self._settings = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def advance(self, job: EmbedJob) -> bool:
        """Make one pass for `job`; True when the job is over."""
        if job.future.cancelled():
            return True
        batch = self._next_batch(job)
        try:
            vectors = self._embed([job.texts[i] for i in batch])
        except Exception as error:
            if is_fatal(error):
                raise
            logger.exception("embedding failed")
            _settle(job.future, as_serve_error(error))
            return True
        job.vectors.update(zip(batch, vectors, strict=True))
        if job.todo:
            return False
        _settle(job.future, np.stack([job.vectors[i] for i in range(len(job.texts))]))
        return True

    def _next_batch(self, job: EmbedJob) -> list[int]:
        """Take the longest texts left that fit a pass together."""
        longest = len(job.texts[job.todo[-1]])
        count = max(1, self._batch_tokens // longest)
        batch = job.todo[-count:]
        del job.todo[-count:]
        return batch

    def _embed(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        length = max(map(len, texts))
        tokens = torch.tensor([[*text] + [0] * (length - len(text)) for text in texts], device=self._device)
        sizes = torch.tensor([len(text) for text in texts], device=self._device)
        mask = torch.arange(length, device=self._device) < sizes[:, None]
        out = self._model(input_ids=tokens, attention_mask=mask.long(), return_dict=True, **self._settings)
        vectors = torch.nn.functional.normalize(self._pooled(out.last_hidden_state.float(), mask, sizes), dim=-1)
        return vectors.cpu().numpy()

    def _pooled(self, states: Tensor, mask: Tensor, sizes: Tensor) -> Tensor:
        """``[texts, dimensions]`` from ``[texts, positions, dimensions]``."""
        mask, sizes = mask.to(states.device), sizes.to(states.device)
        if self._pooling == "cls":
            return states[:, 0]
        if self._pooling == "last":
            return states[torch.arange(len(sizes), device=states.device), sizes - 1]
        return (states * mask[..., None]).sum(1) / sizes[:, None]


def _settle(future: Future[NDArray[np.float32]], outcome: NDArray[np.float32] | Exception) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
