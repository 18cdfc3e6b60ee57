"""What vLLM's failures mean, and how they are told to a client."""

from __future__ import annotations

import logging

from fastchat_serve import EngineError, ServeError

__all__ = ["as_serve_error"]

logger = logging.getLogger(__name__)


def as_serve_error(error: BaseException, request_id: str) -> ServeError:
    """For the client: what happened, without the text of a foreign exception, which can name paths. The log has it."""
    if isinstance(error, ServeError):
        return error
    if type(error).__name__ == "EngineDeadError":  # of a library that is imported only where it is used
        return EngineError("The engine has stopped working.")
    logger.error("request %s failed", request_id, exc_info=error)
    return EngineError("vLLM failed while it worked on this request.")
