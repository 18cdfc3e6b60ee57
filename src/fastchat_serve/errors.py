"""Every failure a client or an operator is meant to see.

::

    FastchatServeError
    ├── StartupError             nothing was started; exit code 2
    │   ├── ConfigError          file, line, column and key of what is wrong
    │   └── PluginError          distribution, version and cause
    └── ServeError               ends one request, rendered in OpenAI's shape
        ├── InvalidRequest           400  the request itself is wrong
        │   ├── ContextOverflow      400  prompt and answer do not fit the context
        │   ├── Unsupported          400  the model cannot do what was asked
        │   ├── Unauthorized         401
        │   ├── Forbidden            403
        │   ├── NotFound             404
        │   │   └── ModelNotFound    404
        │   ├── MethodNotAllowed     405
        │   ├── PayloadTooLarge      413
        │   └── UnsupportedMediaType 415
        ├── Overloaded               429  the queue is full; ``Retry-After`` says when to come back
        ├── Unavailable              503  nobody can serve this now; ``Retry-After`` likewise
        │   └── OutOfMemory          503  the device could not hold this request
        ├── DeadlineExceeded         504  a time limit passed
        └── EngineError              500  the engine raised, died or broke the contract
            └── EngineProtocolError  500

Messages go to clients: they name what was wrong, where (``$.messages[2].content``) and what would
be right, never a path, an address or a secret. `routes/errors.py` turns a `ServeError` into a
response; a stream that has begun sends the same object as its last event.
"""

from __future__ import annotations

from typing import ClassVar, Final

from fastchat_serve.protocol.openai import ErrorBody, ErrorEnvelope

__all__ = [
    "SHUTTING_DOWN",
    "ConfigError",
    "ContextOverflow",
    "DeadlineExceeded",
    "EngineError",
    "EngineProtocolError",
    "FastchatServeError",
    "Forbidden",
    "InvalidRequest",
    "MethodNotAllowed",
    "ModelNotFound",
    "NotFound",
    "OutOfMemory",
    "Overloaded",
    "PayloadTooLarge",
    "PluginError",
    "ServeError",
    "StartupError",
    "Unauthorized",
    "Unavailable",
    "Unsupported",
    "UnsupportedMediaType",
    "shutting_down",
]


class FastchatServeError(Exception):
    """Root of the tree."""


class StartupError(FastchatServeError):
    """The server refuses to start. The command line prints it and exits with code 2."""


class ConfigError(StartupError):
    """A config that cannot be served.

    Attributes:
        problem: What is wrong and what would be right.
        file: Where the value was read: a path, ``--set``, or the name of an environment variable.
        line, column: One-based position in `file`; None for values that are not from a file.
        key: Dotted key, for instance ``worker.0.options.device``.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | None = None,
        line: int | None = None,
        column: int | None = None,
        key: str | None = None,
    ) -> None:
        place = ":".join(str(part) for part in (file, line, column) if part is not None)
        named = place == f"--set {key}"
        super().__init__(": ".join(part for part in (place, None if named else key, problem) if part))
        self.problem, self.file, self.line, self.column, self.key = problem, file, line, column, key


class PluginError(StartupError):
    """A plugin that is missing, broken, or speaks another version of the contract."""


class ServeError(FastchatServeError):
    """Base of every failure that ends one request."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        if code is not None:
            self.code = code
        self.retry_after_s = retry_after_s

    def to_openai(self) -> ErrorEnvelope:
        """The body that OpenAI's clients parse."""
        return ErrorEnvelope(ErrorBody(str(self), self.type, self.param, self.code))


class InvalidRequest(ServeError):
    """The client can mend this; trying again unchanged cannot help."""

    status = 400
    type = "invalid_request_error"


class ContextOverflow(InvalidRequest):
    """Prompt and wanted answer are longer than the model's context."""

    code = "context_length_exceeded"

    def __init__(
        self, *, limit: int, prompt_tokens: int, max_tokens: int | None = None, param: str = "messages"
    ) -> None:
        wanted = f"{prompt_tokens} in the prompt" + (f" and {max_tokens} for the answer" if max_tokens else "")
        super().__init__(
            f"This model's maximum context length is {limit} tokens, but the request needs "
            f"{prompt_tokens + (max_tokens or 0)}: {wanted}. Shorten one of them.",
            param=param,
        )


class Unsupported(InvalidRequest):
    """The model's engine did not declare what the request needs, so nothing is silently ignored."""

    code = "unsupported"


class Unauthorized(InvalidRequest):
    """No key, or one that is not known."""

    status = 401
    code = "invalid_api_key"


class Forbidden(InvalidRequest):
    """Refused whoever asks, for instance a ``Host`` that is not this server."""

    status = 403
    code = "forbidden"


class NotFound(InvalidRequest):
    """No such route or object."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """No worker serves a model of this name. `listed`: the route that lists those that exist."""

    code = "model_not_found"

    def __init__(self, model: str, listed: str = "/v1/models") -> None:
        shown = model if len(model) <= 100 else model[:100] + "…"
        super().__init__(f"The model {shown!r} does not exist here. GET {listed} lists those that do.", param="model")


class MethodNotAllowed(InvalidRequest):
    """The route exists, the method does not."""

    status = 405
    code = "method_not_allowed"


class PayloadTooLarge(InvalidRequest):
    """The body is over the limit of `[server] max_body_bytes`."""

    status = 413
    code = "payload_too_large"


class UnsupportedMediaType(InvalidRequest):
    """The body is not plain, uncompressed JSON."""

    status = 415
    code = "unsupported_media_type"


class Overloaded(ServeError):
    """Every queue that could take the request is full."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class Unavailable(ServeError):
    """The model is known, but no worker can take work now: loading, draining or failed."""

    status = 503
    type = "unavailable_error"
    code = "no_worker"


class OutOfMemory(Unavailable):
    """The device had no memory for this request; others go on."""

    code = "out_of_memory"


SHUTTING_DOWN: Final = "shutting_down"
"""The code by which `shutting_down` is known, wherever it comes from."""


def shutting_down() -> Unavailable:
    """What a process that goes down says to all who want something of it, or wait for something.

    No kind of its own: between processes an error goes by its kind, and those of other releases would not know it.
    """
    return Unavailable("The server is shutting down.", code=SHUTTING_DOWN, retry_after_s=1.0)


class DeadlineExceeded(ServeError):
    """One of the time limits passed: total, queue, first token, or between tokens."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"


class EngineError(ServeError):
    """The engine failed; the request may be tried elsewhere as long as nothing was sent."""

    type = "engine_error"
    code = "engine_failed"


class EngineProtocolError(EngineError):
    """The engine broke the contract: no end, two ends, or text after the end."""

    code = "engine_protocol_error"
