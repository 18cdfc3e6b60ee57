"""How failures are told to a client."""

from __future__ import annotations

from fastchat_serve import EngineError, OutOfMemory, ServeError

__all__ = ["as_serve_error"]

_ALLOCATORS_SAY = ("Unable to allocate", "Attempting to allocate", "Insufficient Memory", "OutOfMemory")


def as_serve_error(error: BaseException) -> ServeError:
    """What happened, without the text of a foreign exception, which can name paths."""
    if isinstance(error, ServeError):
        return error
    if isinstance(error, MemoryError) or any(words in str(error) for words in _ALLOCATORS_SAY):
        return OutOfMemory("The device had no memory left for this request. A shorter one may fit.")
    return EngineError("The model failed while it worked on this request.")
