"""Begin an answer once its model is loaded: at once for nearly all, later for those that are loaded on demand."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from fastchat_serve.controller.waking import Waking
from fastchat_serve.errors import ServeError
from fastchat_serve.routes.errors import UNEXPECTED, reply_error
from fastchat_serve.routes.exchange import Exchange
from fastchat_serve.routes.hot import End

__all__ = ["begin_awake"]

logger = logging.getLogger(__name__)


def begin_awake(waking: Waking, model: str, exchange: Exchange, begin: Callable[[], End]) -> End:
    """What `begin` returns; or what gives up to wait, if it can only be called later. Raises what `begin` raises."""
    if not waking.must_wait(model):
        return begin()
    waiting = _Waiting(exchange, begin)
    waiting.end = waking.wait_for(model, waiting.go_on)
    return waiting.close


class _Waiting:
    """A request whose answer has not begun yet."""

    end: End

    def __init__(self, exchange: Exchange, begin: Callable[[], End]) -> None:
        self._exchange, self._begin = exchange, begin
        self._closed = False
        self._since = time.monotonic()

    def close(self) -> None:
        self._closed = True
        self.end()

    def go_on(self, error: ServeError | None) -> None:
        """The model is loaded, or will not be."""
        self._exchange.waited_s = time.monotonic() - self._since
        try:
            if error is not None:
                raise error
            self.end = self._begin()
            if self._closed:  # meanwhile: the reply is complete already
                self.end()
        except ServeError as refusal:
            reply_error(self._exchange, refusal)
        except Exception:  # as for any other request that fails unexpectedly
            logger.exception("Request %s failed unexpectedly.", self._exchange.id)
            if not self._exchange.started:
                reply_error(self._exchange, UNEXPECTED)
