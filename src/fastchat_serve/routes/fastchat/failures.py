"""Our errors in FastChat's words: a text and a number."""

from __future__ import annotations

import msgspec

from fastchat_serve.errors import (
    ContextOverflow,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    OutOfMemory,
    Overloaded,
    ServeError,
    Unauthorized,
    Unavailable,
)
from fastchat_serve.protocol.fastchat import NETWORK_ERROR, ErrorCode, Failure, LegacyError
from fastchat_serve.routes.exchange import Exchange

__all__ = ["failure", "legacy_error", "reply_failure"]

_CODES: tuple[tuple[type[ServeError], ErrorCode], ...] = (
    (ModelNotFound, ErrorCode.INVALID_MODEL),
    (Unauthorized, ErrorCode.INVALID_AUTH_KEY),
    (InvalidRequest, ErrorCode.PARAM_OUT_OF_RANGE),
    (Overloaded, ErrorCode.ENGINE_OVERLOADED),
    (OutOfMemory, ErrorCode.OUT_OF_MEMORY),
    (Unavailable, ErrorCode.NO_WORKER),
    (DeadlineExceeded, ErrorCode.WORKER_TIMEOUT),
)
"""The first that fits."""


def failure(error: ServeError) -> Failure:
    """As workers say it. FastChat's chat page shows the text to its users."""
    return Failure(f"{NETWORK_ERROR}\n\n({error})", _code(error))


def legacy_error(error: ServeError) -> LegacyError:
    """As the API server says it."""
    return LegacyError(str(error), _code(error))


def reply_failure(exchange: Exchange, error: ServeError) -> None:
    """A reply that is nothing but `error`, with its status: FastChat's own front ends look at that alone."""
    exchange.reply_json(msgspec.json.encode(failure(error)), error.status)


def _code(error: ServeError) -> ErrorCode:
    if error.code == ContextOverflow.code:  # of another process, it may come as another class
        return ErrorCode.CONTEXT_OVERFLOW
    return next((code for kind, code in _CODES if isinstance(error, kind)), ErrorCode.INTERNAL_ERROR)
