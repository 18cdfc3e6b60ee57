"""How failures of mlx are told to a client."""

from __future__ import annotations

from fastchat_serve import ServeError
from fastchat_serve.stepping import as_serve_error as told

__all__ = ["as_serve_error"]

_ALLOCATORS_SAY = ("Unable to allocate", "Attempting to allocate", "Insufficient Memory", "OutOfMemory")


def as_serve_error(error: BaseException) -> ServeError:
    """mlx raises no type of its own when memory runs out."""
    return told(error, out_of_memory=any(words in str(error) for words in _ALLOCATORS_SAY))
