"""Life: aborts, neighbours, death and unloading."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import ClassVar, Self

import anyio
from msgspec.structs import replace

from fastchat_serve import Chunk, EngineError, GenerateRequest, Sink, TokenLogprob
from tests.testing.planted.faults import caught_by
from tests.testing.toy import Logits, ToyEngine, ToyStream


@caught_by("cancel.closing_after_every_chunk")
class KeepsWhatIsClosed(ToyStream):
    def finish(self, error: Exception | None) -> None:
        super().finish(error)
        if self.aborted:
            self.engine.streams.add(self)


@caught_by("cancel.aborting_after_every_chunk")
class IgnoresAborts(ToyStream):
    def abort(self) -> None:
        """Goes on."""


@caught_by("cancel.aborting_after_every_chunk")
class SpeaksAfterAnAbort(ToyStream):
    def abort(self) -> None:
        if not (self.aborted or self.ended):
            self.sink.push(Chunk(text="one more"))
        super().abort()


@caught_by("cancel.aborting_after_every_chunk")
class SaysNothingOfAborts(ToyStream):
    def finish(self, error: Exception | None) -> None:
        if self.aborted:
            self.engine.streams.discard(self)
        else:
            super().finish(error)


@caught_by("cancel.while_others_go_on")
class AbortsEverybody(ToyStream):
    def abort(self) -> None:
        for stream in tuple(self.engine.streams):
            ToyStream.abort(stream)


@caught_by("concurrency.each_as_if_alone")
class MixesAnswersUp(ToyStream):
    def logits(self, before: tuple[int, ...]) -> Logits:
        others = [stream for stream in self.engine.streams if stream is not self and hasattr(stream, "drawn")]
        return super().logits((*before, *others[0].drawn[-1:]) if others else before)


@caught_by("concurrency.a_slow_reader_holds_nobody_up")
class WaitsForSlowReaders(ToyEngine):
    """One answer at a time, and the next when the last chunk was read."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = anyio.Lock()

    start = None  # type: ignore[assignment]  # a worker has to pull

    async def generate_stream(self, request: GenerateRequest):  # type: ignore[no-untyped-def,override]
        chunks: asyncio.Queue[Chunk | Exception | None] = asyncio.Queue()

        class Queueing:
            def push(self, chunk: Chunk) -> None:
                chunks.put_nowait(chunk)

            def end(self, error: Exception | None) -> None:
                chunks.put_nowait(error)

        async with self.turn:
            handle = ToyEngine.start(self, request, Queueing())
            try:
                while isinstance(item := await chunks.get(), Chunk):
                    yield item
                if item is not None:
                    raise item
            finally:
                handle.abort()
                while self.streams:  # noqa: ASYNC110
                    await asyncio.sleep(0)


@caught_by("concurrency.the_loop_is_free")
class BlocksTheLoop(ToyStream):
    def draw(self) -> tuple[int, TokenLogprob | None]:
        if len(self.drawn) == 5:
            time.sleep(0.3)
        return super().draw()


@caught_by("death.ends_all_streams")
class DiesUnseen(ToyEngine):
    def die(self) -> None:
        self.end_all("The engine died.")


@caught_by("death.ends_all_streams")
class LeavesStreamsBehind(ToyEngine):
    def die(self) -> None:
        self.fatal_error = RuntimeError("told to die")
        for stream in self.streams:
            stream.ended = True


@caught_by("unloading.ends_its_streams")
class ClosesOverItsStreams(ToyEngine):
    async def __aexit__(self, *exc_info: object) -> None:
        for stream in self.streams:
            stream.ended = True


@caught_by("unloading.leaves_nothing_behind")
class LeaksThreads(ToyEngine):
    async def __aenter__(self) -> Self:
        threading.Thread(target=threading.Event().wait, daemon=True, name="toy").start()
        return self


@caught_by("unloading.leaves_nothing_behind")
class LeaksTasks(ToyEngine):
    tasks: ClassVar[list[asyncio.Task[None]]] = []

    async def __aenter__(self) -> Self:
        self.tasks.append(asyncio.create_task(asyncio.sleep(3600)))
        return self


@caught_by("unloading.leaves_nothing_behind")
class LeaksDescriptors(ToyEngine):
    files: ClassVar[list[object]] = []

    async def __aenter__(self) -> Self:
        self.files.append(open("/dev/null"))  # noqa: ASYNC230, SIM115
        return self


@caught_by("unloading.can_be_cancelled")
class CannotBeCancelled(ToyEngine):
    async def __aexit__(self, *exc_info: object) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(8)


@caught_by("unloading.another_answers_alike")
class LearnsFromItsPast(ToyEngine):
    lives = 0

    async def __aenter__(self) -> Self:
        LearnsFromItsPast.lives += 1
        self.voice = str(LearnsFromItsPast.lives)
        return self

    def start(self, request: GenerateRequest, sink: Sink):  # type: ignore[no-untyped-def]
        voice = replace(request, adapter="polite" if self.voice != "1" else None)
        return super().start(voice, sink)


@caught_by("deadlines.are_known_to_the_engine")
class BreaksAtItsDeadline(ToyStream):
    def step(self) -> None:
        if self.request.timeout_s is not None and self.request.timeout_s < 1:
            self.finish(EngineError("TimeoutError"))
        else:
            super().step()
