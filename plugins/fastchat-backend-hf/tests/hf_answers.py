"""Engines of this backend, and how the tests ask them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from fastchat_backend_hf import HfOptions, open_hf
from fastchat_serve import EngineSetup
from fastchat_serve.stepping import SteppingEngine
from fastchat_serve.testing.answers import Answer
from fastchat_serve.testing.asking import RecordingSink, answer, asking, until

__all__ = ["Answer", "Folder", "Opened", "RecordingSink", "answer", "asking", "engine_on", "until"]

Folder = Callable[[str], Path]
Opened = Callable[..., AbstractAsyncContextManager[SteppingEngine]]


def engine_on(folder: Path, **options: Any) -> SteppingEngine:
    engine = open_hf(EngineSetup(str(folder), HfOptions(**options), lambda *_: None))
    assert isinstance(engine, SteppingEngine)
    return engine
