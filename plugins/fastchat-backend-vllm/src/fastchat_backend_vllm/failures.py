"""What vLLM's failures mean, and how they are told to a client."""

from __future__ import annotations

from fastchat_serve import EngineError, ServeError

__all__ = ["as_serve_error", "dead"]


def as_serve_error(error: BaseException) -> ServeError:
    """For the client: what happened, without the text of a foreign exception, which can name paths."""
    if isinstance(error, ServeError):
        return error
    if type(error).__name__ == "EngineDeadError":
        return dead()
    return EngineError("vLLM failed while it worked on this request.")


def dead() -> EngineError:
    """The engine's process is gone."""
    return EngineError("The engine has stopped working.")
