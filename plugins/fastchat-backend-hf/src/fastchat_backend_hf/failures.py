"""Which failures of torch mean what."""

from __future__ import annotations

import torch

from fastchat_serve import ServeError
from fastchat_serve.stepping import as_serve_error as told

__all__ = ["as_serve_error", "is_fatal", "is_out_of_memory"]

_CPU_ALLOCATOR_SAYS = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether a device, or the process, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_ALLOCATOR_SAYS)


def is_fatal(error: BaseException) -> bool:
    """Whether the device is lost for this process: after a failed kernel everything else fails too."""
    return isinstance(error, getattr(torch, "AcceleratorError", ())) and not is_out_of_memory(error)


def as_serve_error(error: BaseException) -> ServeError:
    """For the client."""
    return told(error, out_of_memory=is_out_of_memory(error))
