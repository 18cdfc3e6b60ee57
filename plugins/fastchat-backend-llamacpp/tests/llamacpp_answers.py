"""How the tests ask engines of this backend."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastchat_serve.stepping import SteppingEngine
from fastchat_serve.testing.answers import Answer
from fastchat_serve.testing.asking import RecordingSink, answer, asking, saying, until

__all__ = ["Answer", "Opened", "RecordingSink", "answer", "asking", "saying", "until"]

Opened = Callable[..., AbstractAsyncContextManager[SteppingEngine]]
