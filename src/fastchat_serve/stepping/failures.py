"""How an engine's failures are told to a client."""

from __future__ import annotations

from fastchat_serve.errors import EngineError, OutOfMemory, ServeError

__all__ = ["as_serve_error"]


def as_serve_error(error: BaseException, *, out_of_memory: bool = False) -> ServeError:
    """What happened, without the text of a foreign exception, which can name paths.

    `out_of_memory`: the library's own way of saying so.
    """
    if isinstance(error, ServeError):
        return error
    if out_of_memory or isinstance(error, MemoryError):
        return OutOfMemory("There was no memory left for this request. A shorter one may fit.")
    return EngineError("The model failed while it worked on this request.")
