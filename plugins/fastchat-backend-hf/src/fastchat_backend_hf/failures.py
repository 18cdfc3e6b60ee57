"""Which failures of torch mean what, and how they are told to a client."""

from __future__ import annotations

import torch

from fastchat_serve import EngineError, OutOfMemory, ServeError

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


def as_serve_error(error: BaseException | None) -> ServeError:
    """For the client: what happened, without the text of a foreign exception, which can name paths."""
    if isinstance(error, ServeError):
        return error
    if is_out_of_memory(error):
        return OutOfMemory("The device had no memory left for this request. A shorter one may fit.")
    return EngineError("The model failed while it worked on this request.")
