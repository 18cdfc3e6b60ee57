"""Workers of straw: what dispatch sees of a worker, to be set at will, and no engine."""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from fastchat_serve import Capability, EngineInfo, GenerateRequest, Sink
from fastchat_serve.engines.echo import EchoEngine
from fastchat_serve.errors import Overloaded
from fastchat_serve.worker.base import WorkerLoad, WorkerState
from fastchat_serve.worker.watched import Watched

__all__ = ["INFO", "StrawWorker", "info"]

INFO = EchoEngine().info


class StrawWorker(Watched):
    """Attributes are set by `put`, which tells of it.

    Attributes:
        sinks: Of the answers that it was asked for, the oldest first.
    """

    reason, back_in_s, restarts, protocol_errors, tool_parser = "", 1.0, 0, 0, ""

    def __init__(self, id_: str, *names: str, speed: float = 1.0, limit: int = 10**9, info: EngineInfo = INFO) -> None:
        self.id, self.names, self.adapters = id_, names or ("m",), ()
        self.speed, self.info, self.limit, self.queue_length = speed, info, limit, 0
        self.sinks: deque[Sink] = deque()
        self.state = WorkerState.READY

    @property
    def full(self) -> bool:
        return self.queue_length >= self.limit

    def put(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)
        self.on_change()

    def load(self) -> WorkerLoad:
        return WorkerLoad(self.queue_length, 0, self.limit, 0)

    def start(self, request: GenerateRequest, sink: Sink) -> StrawWorker:
        if self.full:
            raise Overloaded("No straw left.", retry_after_s=1.0)
        self.queue_length += 1
        self.sinks.append(sink)
        self.on_change()
        return self

    def abort(self) -> None:
        """Of an answer: nothing to do."""

    def end_oldest(self, error: Exception | None = None) -> None:
        self.queue_length -= 1
        self.on_change()
        self.sinks.popleft().end(error)

    async def embed(self, request: Any) -> Any:
        raise NotImplementedError

    tokenize = detokenize = embed


def info(*lacking: Capability, fingerprint: str = INFO.fingerprint) -> EngineInfo:
    """Of an engine that can do all but this."""
    return msgspec.structs.replace(INFO, capabilities=INFO.capabilities - set(lacking), fingerprint=fingerprint)
