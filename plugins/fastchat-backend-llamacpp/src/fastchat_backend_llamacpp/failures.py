"""How failures are told to a client."""

from __future__ import annotations

from fastchat_serve import EngineError, OutOfMemory, ServeError

__all__ = ["as_serve_error"]


def as_serve_error(error: BaseException) -> ServeError:
    """What happened, without the text of a foreign exception, which can name paths."""
    if isinstance(error, ServeError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory("There was no memory left for this request. A shorter one may fit.")
    return EngineError("The model failed while it worked on this request.")
