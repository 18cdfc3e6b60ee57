"""What huggingface_hub raises, as our errors."""

from __future__ import annotations

import logging

import httpx2
from huggingface_hub import InferenceTimeoutError
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, OverloadedError, TextGenerationError
from huggingface_hub.errors import ValidationError as TgiValidationError

from fastchat_backend_openai.failures import Failures
from fastchat_serve import DeadlineExceeded, EngineError, Overloaded, ServeError, Unavailable

__all__ = ["FOREIGN", "as_serve_error"]

logger = logging.getLogger(__name__)

FOREIGN = (
    HfHubHTTPError,
    TextGenerationError,
    OfflineModeIsEnabled,
    InferenceTimeoutError,
    httpx2.HTTPError,
    ValueError,
)
"""What a call may raise. `ValueError`: what it cannot read, JSON for instance."""


async def as_serve_error(error: Exception, failures: Failures, *, begun: bool) -> ServeError:
    """`error` in the contract's words. `begun`: some of the answer was sent."""
    match error:
        case ServeError():
            return error
        case HfHubHTTPError(response=response):
            return failures.of_reply(
                response.status_code, await _body(response), response.headers.get("retry-after", "")
            )
        case OverloadedError():
            return Overloaded("The upstream has too much to do.", code="upstream_overloaded", retry_after_s=1.0)
        case TgiValidationError():
            return failures.of_event({"message": str(error), "code": 400}, begun=begun)
        case TextGenerationError():
            return failures.of_event({"message": str(error)}, begun=begun)
        case InferenceTimeoutError() | httpx2.TimeoutException():
            return DeadlineExceeded("The upstream has been silent for too long.")
        case httpx2.HTTPError() if begun:
            return EngineError(
                "The upstream closed the connection before its reply was whole.", code="upstream_cut_off"
            )
        case httpx2.HTTPError():
            logger.warning("The upstream cannot be reached: %s", type(error).__name__)
            return Unavailable("The upstream cannot be reached.", code="upstream_unavailable", retry_after_s=1.0)
        case _:
            logger.error("The upstream's reply cannot be read: %s", type(error).__name__)
            return EngineError("The upstream sent what cannot be read.")


async def _body(response: httpx2.Response) -> bytes:
    """Of a refusal; empty where the client has closed it unread."""
    try:
        body: bytes = await response.aread()
    except (httpx2.HTTPError, httpx2.StreamError, RuntimeError):
        return b""
    return body
