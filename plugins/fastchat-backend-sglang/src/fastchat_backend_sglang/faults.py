"""Errors that cross from one process into another, and what SGLang's own mean."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from fastchat_backend_sglang.link import Fault
from fastchat_serve import (
    Constraint,
    ContextOverflow,
    EngineError,
    InvalidRequest,
    OutOfMemory,
    Overloaded,
    SamplingParams,
    ServeError,
    Unavailable,
    Unsupported,
    constraint_param,
)

__all__ = ["as_error", "as_fault", "from_abort", "from_exception"]

_KINDS: Mapping[str, type[ServeError]] = MappingProxyType(
    {
        kind.__name__: kind
        for kind in (ContextOverflow, EngineError, InvalidRequest, OutOfMemory, Overloaded, Unavailable, Unsupported)
    }
)
"""What a host raises."""

_LONGEST = 500
"""Characters of an explanation of SGLang's that a client gets to read."""


def as_fault(error: ServeError) -> Fault:
    return Fault(type(error).__name__, str(error), error.param, error.code)


def as_error(fault: Fault) -> ServeError:
    """What `as_fault` was given: an error of the same class, whatever its own constructor wants."""
    kind = _KINDS.get(fault.kind, EngineError)
    error = kind.__new__(kind)
    ServeError.__init__(error, fault.message, param=fault.param, code=fault.code)
    return error


def from_exception(error: Exception) -> ServeError:
    """For a client. SGLang raises ValueError for what it does not accept, before anything of it begins."""
    if isinstance(error, ServeError):
        return error
    if isinstance(error, ValueError):
        message = _tidy(str(error))
        name = message.partition(" ")[0]  # SGLang names the field first, as in "top_p must be in (0, 1]"
        return InvalidRequest(message, param=name if name in SamplingParams.__struct_fields__ else None)
    return EngineError("The engine failed while it worked on this request.")


def from_abort(reason: Mapping[str, Any], blame: Constraint | None) -> ServeError:
    """For an answer that SGLang gave up by itself. `blame`: what is wrong if the request is."""
    message = _tidy(str(reason.get("message", "")))
    param = None if blame is None else constraint_param(type(blame))
    match reason.get("status_code"):
        case HTTPStatus.BAD_REQUEST:
            return InvalidRequest(message or "The engine does not accept this request.", param=param)
        case HTTPStatus.SERVICE_UNAVAILABLE | HTTPStatus.TOO_MANY_REQUESTS:
            return Unavailable("The engine cannot take this request now.")
        case _:
            return EngineError("The engine gave this request up.")


def _tidy(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…"
