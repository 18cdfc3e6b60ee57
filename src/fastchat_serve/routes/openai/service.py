"""What the routes of this API serve from."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from fastchat_serve.config import Limits
from fastchat_serve.controller.dispatcher import Dispatcher
from fastchat_serve.controller.waking import Waking
from fastchat_serve.hookspecs import ToolParserFactory
from fastchat_serve.policy import Policy
from fastchat_serve.routes.metrics import Metrics

__all__ = ["Service"]


class Service(Struct, frozen=True, kw_only=True):
    """Shared by all requests; made once per application."""

    dispatcher: Dispatcher
    waking: Waking
    metrics: Metrics
    limits: Limits
    tool_parsers: Mapping[str, ToolParserFactory]
    max_body_bytes: int
    policies: Mapping[str, Policy] = {}
    """That a request may ask for by name."""
