"""What a loader returns, and what its parts say to the engine's thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from fastchat_serve.engine import Chunk, EngineInfo, GenerateRequest
from fastchat_serve.errors import ServeError
from fastchat_serve.stepping.embedding import EmbedJob
from fastchat_serve.text import Prompts

__all__ = ["Batch", "Embedder", "News", "SteppedModel", "Stream"]


class Stream(Protocol):
    """The caller's end of an answer, as the engine's thread sees it."""

    @property
    def aborted(self) -> bool:
        """Nobody waits any more. Set on the event loop's thread; the answer is dropped before the next step."""
        ...


class News(NamedTuple):
    """What a step brought for one stream: a chunk, the end, or both."""

    stream: Stream
    chunk: Chunk | None = None
    ended: bool = False
    error: ServeError | None = None


class Batch(Protocol):
    """The answers under way on one model. `running` and `used_fraction` are read on any thread."""

    @property
    def running(self) -> int:
        """Answers under way; the others wait."""
        ...

    @property
    def used_fraction(self) -> float:
        """Of the memory for contexts."""
        ...

    def __bool__(self) -> bool:
        """Whether a step has anything to do."""
        ...

    def add(self, work: Any, /) -> None:
        """Take in what `SteppedModel.prepare` returned."""
        ...

    def step(self) -> list[News]:
        """Bring every answer a little further, and drop those whose stream is aborted.

        What it raises ends the engine: the failure of one answer is news.
        """
        ...

    def release(self) -> None:
        """Let go of all memory; nothing follows."""
        ...


class Embedder(Protocol):
    """Makes vectors of texts."""

    def advance(self, job: EmbedJob, /) -> bool:
        """Make one pass for `job`. True: it is over, and settled. What it raises ends the engine."""
        ...


@dataclass(frozen=True, kw_only=True)
class SteppedModel:
    """A loaded model. All but `prompts` and `prepare` is used on the engine's thread only."""

    info: EngineInfo
    prompts: Prompts
    prepare: Callable[[GenerateRequest, Stream, float], Any]
    """From a request, accepted at that `time.monotonic`, to what `generation` takes: for instance
    `Preparation.answer`. Runs on other threads. Raises `InvalidRequest`."""
    generation: Batch | None = None
    """None: the model only embeds."""
    embedder: Embedder | None = None
    close: Callable[[], None] | None = None
    """Called last, for what does not go by itself."""
