"""Answers that outlive their worker: retried before the first chunk, resumed after it, and otherwise ended once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest

from fastchat_serve import Capability, Chunk, GenerateRequest, Handle, Sink
from fastchat_serve.controller import failover
from fastchat_serve.controller.dispatcher import Dispatcher
from fastchat_serve.controller.registry import Registry
from fastchat_serve.engines.echo import EchoEngine, EchoOptions
from fastchat_serve.errors import (
    DeadlineExceeded,
    EngineError,
    Overloaded,
    PayloadTooLarge,
    ServeError,
    Unavailable,
)
from fastchat_serve.policy import Draw
from fastchat_serve.worker.local import LocalWorker
from tests.garbage import cyclic_garbage
from tests.sinks import Remembering, a_request

pytestmark = pytest.mark.anyio

TEXT = "é😀 to be or not to be"
LENGTH = len(TEXT.encode())


class Faulty(EchoEngine):
    """Ends its next answers with these errors instead of sending the token at `at`.

    Attributes:
        asked: What it was asked for.
    """

    def __init__(self, *errors: ServeError, at: int = 0, **options: Any) -> None:
        super().__init__(EchoOptions(split="byte", **options))
        self.errors, self.at = list(errors), at
        self.asked: list[GenerateRequest] = []

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        self.asked.append(request)
        if not self.errors:
            return super().start(request, sink)
        return super().start(request, _Failing(sink, self.errors.pop(0), self.at - len(request.resume_token_ids)))


class _Failing:
    """Lets `left` tokens through, then an error."""

    def __init__(self, sink: Sink, error: ServeError, left: int) -> None:
        self._sink, self._error, self._left = sink, error, left
        self._failed = False

    def push(self, chunk: Chunk) -> None:
        if self._failed:
            return
        self._left -= 1
        if self._left < 0:
            self._failed = True
            self._sink.end(self._error)
        else:
            self._sink.push(chunk)

    def end(self, error: Exception | None) -> None:
        if not self._failed:
            self._sink.end(error)


def in_order(candidates: Any, draw: Draw) -> int:
    """The policy for tests that must know who comes first."""
    return min(range(len(candidates)), key=lambda index: candidates[index].id)


@asynccontextmanager
async def dispatching(*engines: EchoEngine, **settings: Any) -> AsyncIterator[Dispatcher]:
    registry = Registry()
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.enter_context(anyio.fail_after(20))
        for number, engine in enumerate(engines):
            worker = LocalWorker(engine, names=("m",), **settings)
            worker.id = f"worker-{number}"
            registry.add(worker)
            await tasks.start(worker.run)
            stack.callback(worker.stop)
        yield Dispatcher(registry, in_order)


def start(dispatcher: Dispatcher, prompt: str = TEXT, **request: Any) -> Remembering:
    sink = Remembering()
    dispatcher.start("m", a_request(prompt, **request), sink)
    return sink


def lost() -> EngineError:
    return EngineError("It is gone.", code="worker_lost")


@pytest.mark.parametrize("at", range(LENGTH + 1))
@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
async def test_the_text_is_the_same_wherever_its_worker_is_lost(at: int, temperature: float) -> None:
    first, second = Faulty(lost(), at=at), Faulty()
    async with dispatching(first, second) as dispatcher:
        sink = await start(dispatcher, temperature=temperature, seed=7).ended()
    assert (sink.text, sink.ends) == (TEXT, [None])
    assert [token for chunk in sink.chunks for token in chunk.token_ids] == list(TEXT.encode())
    finishes = [chunk for chunk in sink.chunks if chunk.finish_reason is not None]
    assert finishes == [sink.chunks[-1]]
    assert finishes[0].usage is not None
    assert finishes[0].usage.completion_tokens == LENGTH
    assert len(second.asked) == (at < LENGTH)


async def test_a_request_that_was_not_begun_is_retried_and_one_that_was_is_resumed() -> None:
    async with dispatching(Faulty(lost(), lost(), at=0), Faulty()) as dispatcher:
        await start(dispatcher).ended()
        assert dispatcher.moves.counts == {"retried": 1, "resumed": 0}
    async with dispatching(Faulty(lost(), at=3), Faulty()) as dispatcher:
        await start(dispatcher).ended()
        assert dispatcher.moves.counts == {"retried": 0, "resumed": 1}


async def test_an_answer_can_move_again_once_it_has_got_further() -> None:
    first, second = Faulty(lost(), at=3), Faulty(lost(), at=6)
    async with dispatching(first, second) as dispatcher:
        sink = await start(dispatcher).ended()
    assert (sink.text, sink.ends) == (TEXT, [None])
    assert [len(request.resume_token_ids) for request in (*first.asked, *second.asked)] == [0, 6, 3]


async def test_a_request_that_breaks_its_workers_takes_two_along_at_most() -> None:
    engines = [Faulty(lost(), at=3) for _ in range(4)]
    async with dispatching(*engines) as dispatcher:
        sink = await start(dispatcher).ended()
    assert isinstance(sink.error, EngineError)
    assert [len(engine.asked) for engine in engines] == [1, 1, 0, 0]


@pytest.mark.parametrize("at", [0, 3])
async def test_only_a_worker_with_the_same_fingerprint_goes_on_with_an_answer(at: int) -> None:
    other = Faulty()
    other.info = msgspec.structs.replace(other.info, fingerprint="another")
    async with dispatching(Faulty(lost(), at=at), other) as dispatcher:
        sink = await start(dispatcher).ended()
    if at == 0:
        assert (sink.text, sink.ends) == (TEXT, [None])
    else:
        assert isinstance(sink.error, EngineError)
        assert sink.error.code == "worker_lost"
        assert not other.asked


@pytest.mark.parametrize("lacking", [Capability.RESUME_SAMPLED, Capability.TOKEN_IDS])
async def test_what_cannot_be_resumed_ends_with_its_error(lacking: Capability) -> None:
    engines = [Faulty(lost(), at=3), Faulty()]
    for engine in engines:
        engine.info = msgspec.structs.replace(engine.info, capabilities=engine.info.capabilities - {lacking})
    async with dispatching(*engines) as dispatcher:
        sink = await start(dispatcher, temperature=1.0).ended()
    assert isinstance(sink.error, EngineError)
    assert len(sink.ends) == 1


@pytest.mark.parametrize(
    "error",
    [DeadlineExceeded("too late"), Unavailable("bye", code="shutting_down")],
    ids=["deadline", "shutting down"],
)
async def test_what_would_be_no_better_elsewhere_does_not_move(error: ServeError) -> None:
    async with dispatching(Faulty(error, at=2), Faulty()) as dispatcher:
        sink = await start(dispatcher).ended()
    assert sink.error is error


async def test_g6_retries_after_errors_are_bounded_by_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "LEAST_RETRIES", 1)
    broken = Faulty(*(EngineError("broken") for _ in range(5)))
    async with dispatching(broken, Faulty(loop=True, delay_ms=5)) as dispatcher:
        sinks = [start(dispatcher) for _ in range(5)]
        for sink in sinks[1:]:
            await sink.ended()
            assert isinstance(sink.error, EngineError)
        await sinks[0].has(1)
        assert dispatcher.moves.counts["retried"] == 1


async def test_what_all_refuse_is_held_by_nobody() -> None:
    """Nor by the refusal, whose traceback has what it came through."""
    async with dispatching(Faulty(loop=True), Faulty(loop=True), concurrency=1, queue=0) as dispatcher:
        for _ in range(2):
            start(dispatcher)
        refused = 0
        with cyclic_garbage() as left:
            for _ in range(3):
                try:
                    start(dispatcher)
                except Overloaded:
                    refused += 1
    assert refused == 3
    assert left == {}


async def test_what_can_move_nowhere_is_held_by_nobody() -> None:
    async with dispatching(Faulty(loop=True), Faulty(lost(), at=2, loop=True), concurrency=1, queue=0) as dispatcher:
        start(dispatcher)  # has the first worker's only place
        with cyclic_garbage() as left:
            sink = await start(dispatcher).ended()
            assert str(sink.error) == "It is gone."
            del sink
    assert left == {}


async def test_who_leaves_is_not_moved() -> None:
    first, second = Faulty(loop=True, delay_ms=1), Faulty()
    async with dispatching(first, second) as dispatcher:
        sink = Remembering()
        handle = dispatcher.start("m", a_request(TEXT), sink)
        await sink.has(2)
        handle.abort()
        await sink.ended()
        assert sink.ends == [None]
        assert not second.asked


async def test_who_leaves_after_a_move_frees_the_slot_where_it_is_now() -> None:
    first, second = Faulty(lost(), at=2, loop=True, delay_ms=1), Faulty(loop=True, delay_ms=1)
    async with dispatching(first, second) as dispatcher:
        sink = Remembering()
        handle = dispatcher.start("m", a_request(TEXT), sink)
        await sink.has(4)
        handle.abort()
        await sink.ended()
        assert sink.ends == [None]
        while any(worker.queue_length for worker in dispatcher.registry.workers):
            await anyio.lowlevel.checkpoint()
        assert dispatcher.moves.live == 0


async def test_a_time_limit_counts_from_the_first_worker_on() -> None:
    first, second = Faulty(lost(), at=2), Faulty()
    async with dispatching(first, second) as dispatcher:
        await start(dispatcher, timeout_s=60.0).ended()
    (resumed,) = second.asked
    assert resumed.timeout_s is not None
    assert resumed.timeout_s < 60.0


async def test_with_no_room_anywhere_the_error_is_that_of_the_lost_worker() -> None:
    engines = Faulty(lost(), at=40, loop=True, delay_ms=1), Faulty(loop=True, delay_ms=1)
    async with dispatching(*engines, concurrency=1, queue=0) as dispatcher:
        sink = start(dispatcher)
        filling = start(dispatcher)
        assert (await sink.ended()).error.args == ("It is gone.",)
        assert not filling.ends


async def test_an_answer_that_is_refused_late_goes_where_there_is_room() -> None:
    async with dispatching(Faulty(Overloaded("full after all", retry_after_s=1.0)), Faulty()) as dispatcher:
        sink = await start(dispatcher).ended()
        assert (sink.text, sink.ends) == (TEXT, [None])
        assert dispatcher.moves.counts == {"retried": 0, "resumed": 0}


async def test_a_worker_that_cannot_be_given_the_rest_leaves_the_first_error_as_the_end() -> None:
    async with dispatching(Faulty(lost(), at=2), Faulty()) as dispatcher:
        second = dispatcher.registry.workers[1]

        def too_long(request: GenerateRequest, sink: Sink) -> Handle:
            raise PayloadTooLarge("The request is too long for the way there.")

        second.start = too_long  # type: ignore[method-assign]
        sink = await start(dispatcher).ended()
        assert isinstance(sink.error, EngineError)
        assert len(sink.ends) == 1
        assert dispatcher.moves.live == 0
