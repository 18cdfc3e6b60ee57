"""The upstream's refusals in our words: which kind of error, and a message that may be shown to a client.

What the client did wrong is passed on; what the operator did wrong (a key, a model's name) goes to the log, and
the client only hears that it is not the client's fault.
"""

from __future__ import annotations

import email.utils
import logging
import re
import time
from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

import msgspec

from fastchat_serve import (
    ContextOverflow,
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    Overloaded,
    ServeError,
    Unavailable,
    Unsupported,
)

__all__ = ["MAX_ERROR_BYTES", "Failures", "UncountedOverflow"]

logger = logging.getLogger(__name__)

MAX_ERROR_BYTES = 64 * 1024
"""Of an error's body; more is cut off."""
MAX_MESSAGE_CHARS = 500
_LEAST_PRIVATE_CHARS = 4
"""A shorter header such as ``1`` is no secret, and is part of half the words of a message."""

_PRIVATE = re.compile(
    r"[a-zA-Z][a-zA-Z0-9+.-]{0,30}+://[^\s'\"<>]+"  # URLs
    r"|\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?::\d+)?\b"  # IPv4 addresses
    r"|\[[0-9a-fA-F:]{2,45}\](?::\d+)?"  # IPv6 addresses
    r"|\blocalhost:\d+"
    r"|(?<![\w.])(?:/[\w.@-]++){2,}+/?"  # paths
    r"|\b[A-Za-z]:\\[^\s'\"]+"
    r"|\bBearer\s+\S+"
    r"|\b(?:sk|hf|gsk|xai|key)[-_][\w*.-]{6,}"  # keys
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_CODE = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_PARAM = re.compile(r"[A-Za-z_][\w.\[\]-]{0,127}")
_OVERFLOW = re.compile(
    r"maximum context length|context (?:length|size|window).{0,40}exceed|exceeds?.{0,60}context (?:length|size|window)"
    r"|longer than the model's context|must have less than \d+ tokens",
    re.IGNORECASE,
)
_OVERFLOW_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_STATUS_OF_TYPE = MappingProxyType(
    {
        "invalid_request_error": 400,
        "BadRequestError": 400,
        "exceed_context_size_error": 400,
        "authentication_error": 401,
        "NotFoundError": 404,
        "rate_limit_error": 429,
        "insufficient_quota": 429,
        "unavailable_error": 503,
        "overloaded_error": 503,
        "timeout_error": 504,
    }
)
"""For errors within a stream, which come without a status."""


class UncountedOverflow(ContextOverflow):
    """Prompt and answer do not fit the context; only the upstream has counted, and mostly says so in its message."""

    def __init__(self, message: str, *, param: str) -> None:
        InvalidRequest.__init__(self, message, param=param)


class Failures:
    """Turns errors of one upstream into ours.

    Args:
        private: Text that no message may hold: our key, the upstream's host.
    """

    def __init__(self, private: Iterable[str]) -> None:
        self._private = sorted((text for text in private if len(text) >= _LEAST_PRIVATE_CHARS), key=len, reverse=True)

    def of_reply(self, status: int, body: bytes, retry_after: str = "") -> ServeError:
        """What a reply that is no success means. `retry_after` is the header."""
        return self._of(status, _error_object(body), retry_after)

    def of_event(self, error: Any, *, begun: bool) -> ServeError:
        """What an error within a stream means. `begun`: some of the answer was sent, so the request was in order."""
        found = error if isinstance(error, dict) else {"message": error}
        status = _status(found)
        if begun and status < 500 and status != 429:
            status = 500
        return self._of(status, found, "")

    def _of(self, status: int, error: dict[str, Any], retry_after: str) -> ServeError:
        code, message = _text(error.get("code")), self.shown(_text(error.get("message")))
        if code in ("insufficient_quota", "billing_hard_limit_reached") or status == 402:
            logger.error("The upstream's quota is used up: %s", message)
            return Unavailable("The upstream's quota is used up.", code="upstream_quota")
        match status:
            case 400 | 409 | 422:
                return self._invalid(error, code, message)
            case 401 | 403:
                logger.error("The upstream refused our credentials (status %d): %s", status, message)
                return EngineError("The upstream refused our credentials.", code="upstream_credentials")
            case 404 | 410:
                logger.error("The upstream does not know this model or this route (status %d): %s", status, message)
                return EngineError(
                    "The upstream does not know this model, or does not offer this.", code="upstream_not_found"
                )
            case 408 | 504:
                return DeadlineExceeded("The upstream took too long.")
            case 413:
                return InvalidRequest("The request is larger than the upstream takes.", code="payload_too_large")
            case 429:
                text = "The upstream has too much to do." + (f" It says: {message}" if message else "")
                return Overloaded(text, code="upstream_overloaded", retry_after_s=_seconds(retry_after))
            case 502 | 503 | 529:
                text = "The upstream cannot serve this now." + (f" It says: {message}" if message else "")
                return Unavailable(text, code="upstream_unavailable", retry_after_s=_seconds(retry_after))
            case _:
                logger.error("The upstream failed (status %d): %s", status, message)
                if 300 <= status < 400:
                    return EngineError("The upstream redirects elsewhere, where our credentials are not sent.")
                return EngineError("The upstream failed." + (f" It says: {message}" if message else ""))

    def _invalid(self, error: dict[str, Any], code: str, message: str) -> InvalidRequest:
        param = _text(error.get("param"))
        param = param if _PARAM.fullmatch(param) else ""
        text = message or "The upstream refused the request, and does not say why."
        kind = _text(error.get("type"))
        if code in _OVERFLOW_CODES or kind in _OVERFLOW_CODES or _OVERFLOW.search(message):
            return UncountedOverflow(text, param=param or "messages")
        if code == Unsupported.code:
            return Unsupported(text, param=param or None)
        return InvalidRequest(text, param=param or None, code=code if _CODE.fullmatch(code) else None)

    def shown(self, message: str) -> str:
        """`message` without what is nobody's business: keys, addresses, paths, control characters."""
        for private in self._private:
            message = message.replace(private, "…")
        message = _PRIVATE.sub("…", _CONTROL.sub(" ", message)).strip()
        return message if len(message) <= MAX_MESSAGE_CHARS else message[:MAX_MESSAGE_CHARS] + "…"


def _error_object(body: bytes) -> dict[str, Any]:
    """The error in `body`, in whichever of the usual shapes it has; empty if it has none."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    error = found.get("error", found.get("detail", found))
    if isinstance(error, list) and error and isinstance(error[0], dict):  # FastAPI's own complaints
        error = {"message": error[0].get("msg"), "param": ".".join(map(str, error[0].get("loc", ())[1:2]))}
    return error if isinstance(error, dict) else {"message": error}


def _status(error: dict[str, Any]) -> int:
    for key in ("status", "status_code", "code"):
        value = error.get(key)
        if isinstance(value, str) and value.isdecimal():
            value = int(value[:4])
        if isinstance(value, int) and 400 <= value < 600:
            return value
    if _text(error.get("code")) in _OVERFLOW_CODES:
        return 400
    return _STATUS_OF_TYPE.get(_text(error.get("type")), 500)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _seconds(retry_after: str) -> float:
    """A ``Retry-After`` in seconds, between 1 and an hour; it is a number or a date."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, TypeError, IndexError):
            seconds = 1.0
    return min(max(seconds, 1.0), 3600.0) if seconds == seconds else 1.0
