"""Texts to vectors: the model's last hidden states, pooled and normalised."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastchat_backend_hf.devices import execution_device
from fastchat_backend_hf.failures import as_serve_error, is_fatal
from fastchat_serve.stepping import EmbedJob

__all__ = ["Embedder", "Pooling"]

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "cls", "last"]


class Embedder:
    """Embeds with `model`, the network without a language head."""

    def __init__(self, model: Any, pooling: Pooling, *, batch_tokens: int) -> None:
        """`batch_tokens` bounds a pass, padding included; a longer text has one to itself."""
        self._model, self._pooling, self._batch_tokens = model, pooling, batch_tokens
        self._device = execution_device(model.get_input_embeddings())
        self._settings = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    @torch.inference_mode()
    def advance(self, job: EmbedJob) -> bool:
        """Make one pass for `job`; True when the job is over."""
        batch = self._next_batch(job)
        try:
            vectors = self._embed([job.texts[i] for i in batch])
        except Exception as error:
            if is_fatal(error):
                raise
            logger.exception("embedding failed")
            job.fail(as_serve_error(error))
            return True
        return job.found(dict(zip(batch, vectors, strict=True)))

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
