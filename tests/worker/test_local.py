"""A worker in this loop: life cycle, slots, limits, drain; the same for both forms of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Self

import anyio
import pytest
from msgspec.structs import replace

from fastchat_serve import (
    Chunk,
    Embeddings,
    EmbedRequest,
    EngineLoad,
    GenerateRequest,
    Handle,
    Sink,
    TextPrompt,
    pull,
    push,
)
from fastchat_serve.config import Timeouts
from fastchat_serve.engines.echo import EchoEngine, EchoOptions
from fastchat_serve.errors import (
    ContextOverflow,
    DeadlineExceeded,
    EngineError,
    EngineProtocolError,
    Overloaded,
    ServeError,
    StartupError,
    Unavailable,
)
from fastchat_serve.worker import local
from fastchat_serve.worker.base import WorkerState
from fastchat_serve.worker.local import LocalWorker
from tests.sinks import Remembering, a_request

pytestmark = pytest.mark.anyio


class PulledEcho(EchoEngine):
    """The same engine with nothing but `generate_stream`: the worker has to drive it by a task."""

    start = None  # type: ignore[assignment]

    def generate_stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        return pull(lambda request, sink: EchoEngine.start(self, request, sink), request)


@pytest.fixture(params=[EchoEngine, PulledEcho], ids=["push", "pull"])
def engine_of(request: pytest.FixtureRequest) -> Callable[..., EchoEngine]:
    """``engine_of(loop=True)``: an echo engine of either form."""
    return lambda **options: request.param(EchoOptions(**options))


@pytest.fixture(autouse=True)
def limits_are_checked_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "CHECK_INTERVAL_S", 0.005)
    monkeypatch.setattr(push, "LET_GO_S", 0.2)


def a_worker(engine: EchoEngine, *, concurrency: int = 2, queue: int = 8, **options: object) -> LocalWorker:
    return LocalWorker(engine, names=("echo",), concurrency=concurrency, queue=queue, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def running(worker: LocalWorker) -> AsyncIterator[LocalWorker]:
    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(20):
            await tasks.start(worker.run)
            try:
                yield worker
            finally:
                worker.stop()


def begin(worker: LocalWorker, **request: object) -> Remembering:
    sink = Remembering()
    worker.start(a_request(**request), sink)  # type: ignore[arg-type]
    return sink


async def until(condition: Callable[[], bool]) -> None:
    """For what nobody announces: bounded, and without a guess at how long it takes."""
    with anyio.fail_after(10):
        while not condition():
            await anyio.lowlevel.checkpoint()


def embed_request(*texts: str, **more: float) -> EmbedRequest:
    return EmbedRequest(id="embed", inputs=tuple(map(TextPrompt, texts or ("a",))), **more)  # type: ignore[arg-type]


class SlowEmbedding(EchoEngine):
    """Embeds when it is let. Attributes: `embedding`, how many do so right now."""

    def __init__(self, *, stubborn: bool = False) -> None:
        super().__init__()
        self.embedding = 0
        self.most = 0
        self.stubborn = stubborn
        self.go = anyio.Event()

    async def embed(self, request: EmbedRequest) -> Embeddings:
        self.embedding += 1
        self.most = max(self.most, self.embedding)
        try:
            with anyio.CancelScope(shield=self.stubborn):
                await self.go.wait()
            return await super().embed(request)
        finally:
            self.embedding -= 1


# ---------------------------------------------------------------------------------------- life cycle


async def test_it_is_loading_then_ready_then_stopped() -> None:
    opened = anyio.Event()

    class SlowToLoad(EchoEngine):
        async def __aenter__(self) -> Self:
            await opened.wait()
            return self

    worker = a_worker(SlowToLoad())
    states = [worker.state]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run)
        await anyio.wait_all_tasks_blocked()
        states.append(worker.state)
        with pytest.raises(Unavailable, match="loading") as refusal:
            begin(worker)
        assert refusal.value.retry_after_s
        opened.set()
        await until(lambda: worker.state is WorkerState.READY)
        worker.stop()
    states.append(worker.state)

    assert states == [WorkerState.LOADING, WorkerState.LOADING, WorkerState.STOPPED]
    with pytest.raises(Unavailable, match="stopped"):
        begin(worker)


async def test_an_engine_that_cannot_be_opened_fails_the_worker_and_the_error_is_passed_on() -> None:
    class Broken(EchoEngine):
        async def __aenter__(self) -> Self:
            raise OSError("no such device")

    worker = a_worker(Broken())
    with pytest.raises(OSError, match="no such device"):
        await worker.run()

    assert worker.state is WorkerState.FAILED
    assert worker.reason
    with pytest.raises(Unavailable, match="failed"):
        begin(worker)


async def test_an_answer_streams_and_the_counts_fall_when_it_ends(engine_of: Callable[..., EchoEngine]) -> None:
    async with running(a_worker(engine_of())) as worker:
        sink = begin(worker)
        assert worker.queue_length == worker.load().running == 1

        await sink.ended()

        assert (sink.text, sink.ends) == ("to be or not", [None])
        assert (worker.queue_length, worker.load().engine.running) == (0, 0)


async def test_a_worker_with_the_same_engine_can_follow_and_nothing_is_left(
    engine_of: Callable[..., EchoEngine],
) -> None:
    engine = engine_of(loop=True)
    before = asyncio.all_tasks()
    for _ in range(3):
        async with running(a_worker(engine, concurrency=1)) as worker:
            sinks = [begin(worker), begin(worker)]
            await sinks[0].has(2)

        for sink in sinks:
            assert isinstance(sink.error, Unavailable)
        assert (worker.state, worker.queue_length, worker._jobs) == (WorkerState.STOPPED, 0, set())
    assert engine.current_load().running == 0
    assert asyncio.all_tasks() == before


async def test_what_is_asked_while_it_stops_is_refused() -> None:
    async with running(a_worker(EchoEngine(EchoOptions(deaf=True, loop=True)), abort_grace_s=0.1)) as worker:
        sink = begin(worker)
        await sink.has(1)
        worker.stop()
        await sink.ended()  # told at once, long before the deaf engine lets go

        with pytest.raises(Unavailable):
            begin(worker)
        with pytest.raises(Unavailable):
            await worker.embed(embed_request())
    assert worker.queue_length == 0


async def test_a_stopped_worker_counts_nothing_though_its_engine_never_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "CHECK_INTERVAL_S", 60)
    async with running(a_worker(EchoEngine(EchoOptions(leak=True)), abort_grace_s=0.01)) as worker:
        await begin(worker).has(4)

    assert (worker.state, worker.queue_length, worker._jobs) == (WorkerState.STOPPED, 0, set())


async def test_stopping_ends_everything_with_an_error_and_starts_nothing_more(
    engine_of: Callable[..., EchoEngine],
) -> None:
    engine = engine_of(loop=True)
    async with running(a_worker(engine, concurrency=2)) as worker:
        sinks = [begin(worker, id=f"{number}") for number in range(6)]
        errors: list[ServeError] = []

        async def embed() -> None:
            try:
                await worker.embed(embed_request())
            except ServeError as error:
                errors.append(error)

        async with anyio.create_task_group() as callers:
            callers.start_soon(embed)
            await sinks[1].has(2)
            assert worker.load().waiting == 5
            worker.stop()

    assert [type(sink.error) for sink in sinks] == [Unavailable] * 6
    assert [type(error) for error in errors] == [Unavailable]
    assert sorted(engine.aborted) == ["0", "1"]


async def test_being_cancelled_ends_everything_with_an_error_too(engine_of: Callable[..., EchoEngine]) -> None:
    worker = a_worker(engine_of(loop=True), concurrency=1)
    async with anyio.create_task_group() as tasks:
        await tasks.start(worker.run)
        sinks = [begin(worker), begin(worker)]
        await sinks[0].has(2)
        tasks.cancel_scope.cancel()

    assert all(isinstance(sink.error, ServeError) for sink in sinks)
    assert (worker.state, worker.queue_length) == (WorkerState.STOPPED, 0)


async def test_being_cancelled_while_loading_is_no_failure() -> None:
    class NeverLoads(EchoEngine):
        async def __aenter__(self) -> Self:
            await anyio.sleep_forever()
            return self

    worker = a_worker(NeverLoads())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert worker.state is WorkerState.STOPPED


# --------------------------------------------------------------------------------------------- slots


async def test_no_more_run_than_there_are_slots_and_all_are_served(engine_of: Callable[..., EchoEngine]) -> None:
    engine = engine_of(split="byte")
    async with running(a_worker(engine, concurrency=3, queue=50)) as worker:
        sinks = [begin(worker, prompt="x" * (number % 7 + 1)) for number in range(50)]
        most = 0
        while not all(sink.ends for sink in sinks):
            most = max(most, engine.current_load().running)
            assert worker.load().running <= 3
            await anyio.lowlevel.checkpoint()

        assert most == 3
        assert [len(sink.text) for sink in sinks] == [number % 7 + 1 for number in range(50)]
        assert worker.queue_length == 0


async def test_the_queue_is_served_by_priority() -> None:
    order: list[str] = []

    class Notes(EchoEngine):
        def start(self, request, sink):  # type: ignore[no-untyped-def]
            order.append(request.id)
            return super().start(request, sink)

    async with running(a_worker(Notes(), concurrency=1)) as worker:
        sinks = [begin(worker, id=str(priority), priority=priority) for priority in (0, 2, 1, -1)]
        for sink in sinks:
            await sink.ended()

    assert order == ["0", "-1", "1", "2"]


async def test_beyond_the_queue_requests_are_refused_at_once() -> None:
    async with running(a_worker(EchoEngine(EchoOptions(loop=True)), concurrency=1, queue=1)) as worker:
        begin(worker)
        begin(worker)
        with pytest.raises(Overloaded) as refusal:
            begin(worker)
        assert refusal.value.retry_after_s == 2
        with pytest.raises(Overloaded):
            await worker.embed(embed_request())
        assert worker.queue_length == 2
        assert len(worker._jobs) == 2


async def test_leaving_a_stream_aborts_it_and_the_next_in_the_queue_begins(
    engine_of: Callable[..., EchoEngine],
) -> None:
    engine = engine_of(loop=True, delay_ms=1)
    async with running(a_worker(engine, concurrency=1)) as worker:
        first = Remembering()
        handle = worker.start(a_request(id="first"), first)
        left = Remembering()
        worker.start(a_request(id="left"), left).abort()
        second = begin(worker, id="second")
        await first.has(1)

        handle.abort()

        await second.has(1)
        assert engine.aborted == ["first"], "the one that left the queue never began"
        assert (first.ends, left.ends) == ([None], [None])
        assert worker.queue_length == 1


async def test_two_thousand_mixed_requests_leave_everything_as_it_was(engine_of: Callable[..., EchoEngine]) -> None:
    engine = engine_of(fail_at=3)
    async with running(a_worker(engine, concurrency=8, queue=10_000)) as worker:
        before = len(asyncio.all_tasks())
        sinks = []
        for number in range(2000):
            sink = Remembering()
            handle = worker.start(a_request("a b c d"[: number % 8], id=str(number)), sink)
            if number % 3 == 0:
                handle.abort()
            sinks.append(sink)
        for number, sink in enumerate(sinks):
            await sink.ended()
            assert len(sink.ends) == 1
            assert sum(chunk.finish_reason is not None for chunk in sink.chunks) == (
                number % 3 != 0 and sink.ends == [None]
            )
        await anyio.lowlevel.checkpoint()

        assert len(asyncio.all_tasks()) == before
        assert (worker.queue_length, engine.current_load().running, worker._jobs) == (0, 0, set())


# ------------------------------------------------------------------------------------------ deadlines


@pytest.mark.parametrize(
    ("options", "timeouts", "asked_s", "code"),
    [
        ({"stall_at": 0}, Timeouts(first_token_s=0.02), None, "first_token_timeout"),
        ({"stall_at": 2}, Timeouts(between_tokens_s=0.02), None, "between_tokens_timeout"),
        ({"loop": True}, Timeouts(total_s=0.02), None, "total_timeout"),
        ({"loop": True}, Timeouts(total_s=60), 0.02, "total_timeout"),
    ],
    ids=["first-token", "between-tokens", "total", "asked-for"],
)
async def test_a_limit_that_passes_ends_the_request_and_frees_its_slot(
    engine_of: Callable[..., EchoEngine],
    options: dict[str, object],
    timeouts: Timeouts,
    asked_s: float | None,
    code: str,
) -> None:
    engine = engine_of(**options)
    async with running(a_worker(engine, timeouts=timeouts)) as worker:
        sink = begin(worker, timeout_s=asked_s)

        error = (await sink.ended()).error

        assert isinstance(error, DeadlineExceeded)
        assert error.code == code
        await until(lambda: worker.queue_length == 0)
        assert engine.aborted == ["request"]
        assert worker.state is WorkerState.READY


async def test_who_waits_too_long_for_a_slot_never_reaches_the_engine(engine_of: Callable[..., EchoEngine]) -> None:
    engine = engine_of(loop=True)
    async with running(a_worker(engine, concurrency=1, timeouts=Timeouts(queue_s=0.02))) as worker:
        first, second = begin(worker, id="first"), begin(worker, id="second")

        error = (await second.ended()).error

        assert isinstance(error, DeadlineExceeded)
        assert error.code == "queue_timeout"
        assert first.ends == []
        assert (worker.queue_length, engine.current_load().running, engine.aborted) == (1, 1, [])


# --------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("at", [0, 1, 3])
async def test_an_engine_that_raises_ends_that_request_and_serves_the_next(
    engine_of: Callable[..., EchoEngine], at: int
) -> None:
    async with running(a_worker(engine_of(fail_at=at), concurrency=1)) as worker:
        for _ in range(2):
            sink = await begin(worker).ended()
            assert len(sink.chunks) == at
            assert isinstance(sink.error, EngineError)
        assert worker.state is WorkerState.READY


async def test_an_engine_that_ends_without_a_finish_is_caught(engine_of: Callable[..., EchoEngine]) -> None:
    async with running(a_worker(engine_of(end_without_finish_at=1))) as worker:
        assert isinstance((await begin(worker).ended()).error, EngineProtocolError)
        assert worker.queue_length == 0


async def test_a_request_that_does_not_fit_is_told_so(engine_of: Callable[..., EchoEngine]) -> None:
    async with running(a_worker(engine_of(context_length=2))) as worker:
        assert isinstance((await begin(worker).ended()).error, ContextOverflow)
        assert (await begin(worker, prompt="one").ended()).text == "one"


@pytest.mark.parametrize("fault", ["deaf", "leak"])
async def test_an_engine_that_never_lets_go_takes_its_worker_out_of_service_and_all_are_told(
    engine_of: Callable[..., EchoEngine], fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of(loop=True, delay_ms=1, **{fault: True})
    worker = a_worker(engine, concurrency=2, abort_grace_s=0.05)
    async with running(worker):
        left = Remembering()
        handle = worker.start(a_request("a b"), left)
        others = [begin(worker) for _ in range(3)]
        await left.has(1)
        handle.abort()
        for other in others:
            await other.ended()

        assert worker.state is WorkerState.FAILED
        assert "0.05 s" in worker.reason
        assert "0.05 s" in caplog.text
        assert all(isinstance(other.error, EngineError) for other in others)
        assert worker.queue_length == 0
        with pytest.raises(Unavailable, match="failed"):
            begin(worker)
    assert worker.state is WorkerState.FAILED, "being stopped afterwards does not hide it"


async def test_an_answer_that_was_whole_stays_so_though_the_engine_never_ends_it() -> None:
    worker = a_worker(EchoEngine(EchoOptions(leak=True)), abort_grace_s=0.05)
    async with running(worker):
        sink = begin(worker)
        await sink.ended()

        assert (sink.text, sink.ends, worker.state) == ("to be or not", [None], WorkerState.FAILED)


async def test_an_engine_that_dies_takes_its_worker_out_of_service(engine_of: Callable[..., EchoEngine]) -> None:
    worker = a_worker(engine_of(die_at=2))
    async with running(worker):
        sinks = [begin(worker), begin(worker), begin(worker)]
        for sink in sinks:
            assert isinstance((await sink.ended()).error, EngineError)
        await until(lambda: worker.state is WorkerState.FAILED)

        assert "told to die" in worker.reason


async def test_an_engine_that_cannot_say_how_busy_it_is_serves_all_the_same() -> None:
    class Shy(EchoEngine):
        def current_load(self) -> EngineLoad:
            raise RuntimeError

    async with running(a_worker(Shy())) as worker:
        sink = begin(worker)
        assert (worker.load().running, worker.load().engine) == (1, EngineLoad())
        assert (await sink.ended()).text == "to be or not"
        assert worker.protocol_errors == 2


# ---------------------------------------------------------------------------------------------- drain


async def test_drain_finishes_what_was_accepted_and_refuses_what_comes(engine_of: Callable[..., EchoEngine]) -> None:
    async with running(a_worker(engine_of(delay_ms=1), concurrency=1)) as worker:
        accepted = [begin(worker) for _ in range(4)]
        embedded: list[Embeddings] = []

        async def embed() -> None:
            embedded.append(await worker.embed(embed_request()))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(embed)
            await accepted[0].has(1)
            tasks.start_soon(worker.drain)
            await until(lambda: worker.state is WorkerState.DRAINING)
            with pytest.raises(Unavailable, match="draining"):
                begin(worker)

        assert [(sink.text, sink.ends) for sink in accepted] == [("to be or not", [None])] * 4
        assert len(embedded) == 1
        assert worker.queue_length == 0


async def test_an_idle_worker_is_drained_at_once() -> None:
    async with running(a_worker(EchoEngine())) as worker:
        await worker.drain()

        assert worker.state is WorkerState.DRAINING


async def test_everyone_who_waits_for_the_drain_is_told_of_its_end() -> None:
    """A second signal stops the server while the first one's drain is still waiting."""
    worker = a_worker(EchoEngine(EchoOptions(loop=True)))
    drained = []

    async def drain() -> None:
        await worker.drain()
        drained.append(True)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks, running(worker):
            await begin(worker).has(1)
            tasks.start_soon(drain)
            tasks.start_soon(drain)
            await until(lambda: worker.state is WorkerState.DRAINING)

    assert drained == [True, True]


async def test_expelling_ends_the_queue_before_what_runs(engine_of: Callable[..., EchoEngine]) -> None:
    engine = engine_of(loop=True)
    async with running(a_worker(engine, concurrency=1)) as worker:
        sinks = [begin(worker, id=str(number)) for number in range(5)]
        await sinks[0].has(1)

        worker.expel(Unavailable("shutting down", code="shutting_down"))

        assert [str(sink.error) for sink in sinks] == ["shutting down"] * 5
        await until(lambda: worker.queue_length == 0)
        assert engine.aborted == ["0"], "the others never began"


async def test_expelling_starts_nobody_though_the_engine_lets_go_at_once() -> None:
    started: list[str] = []

    class LetsGoAtOnce(EchoEngine):
        def start(self, request: GenerateRequest, sink: Sink) -> Handle:
            started.append(request.id)

            class Ended:
                def abort(self) -> None:
                    sink.end(None)

            return Ended()

    async with running(a_worker(LetsGoAtOnce(), concurrency=1, queue=20)) as worker:
        for number in range(20):
            begin(worker, id=str(number))

        worker.expel(Unavailable("shutting down"))

        assert (started, worker.queue_length) == (["0"], 0)


# ------------------------------------------------------------------------------------------ embeddings


async def test_embeddings_share_the_slots() -> None:
    engine = SlowEmbedding()
    async with running(a_worker(engine, concurrency=2)) as worker:
        results: list[Embeddings] = []

        async def embed() -> None:
            results.append(await worker.embed(embed_request()))

        async with anyio.create_task_group() as callers:
            for _ in range(5):
                callers.start_soon(embed)
            await until(lambda: worker.queue_length == 5)
            answer = begin(worker)
            engine.go.set()
        await answer.ended()

        assert (len(results), engine.most, worker.queue_length) == (5, 2, 0)


async def test_who_stops_waiting_for_an_embedding_frees_the_slot_or_the_place() -> None:
    engine = SlowEmbedding()
    async with running(a_worker(engine, concurrency=1)) as worker:
        async with anyio.create_task_group() as callers:
            callers.start_soon(worker.embed, embed_request())
            callers.start_soon(worker.embed, embed_request())
            await until(lambda: worker.queue_length == 2 and engine.embedding == 1)
            callers.cancel_scope.cancel()

        assert (worker.queue_length, engine.embedding, worker._jobs) == (0, 0, set())
        assert (await begin(worker).ended()).text == "to be or not"


@pytest.mark.parametrize(
    ("timeouts", "asked", "code"),
    [
        (Timeouts(total_s=0.02), {}, "total_timeout"),
        (Timeouts(embed_s=0.02), {}, "embed_timeout"),
        (Timeouts(), {"timeout_s": 0.02}, "total_timeout"),
        (Timeouts(), {"timeout_s": 0.0}, "total_timeout"),
    ],
    ids=["total", "running", "asked-for", "no-time-at-all"],
)
async def test_an_embedding_has_time_limits(timeouts: Timeouts, asked: dict[str, float], code: str) -> None:
    engine = SlowEmbedding()
    async with running(a_worker(engine, timeouts=timeouts)) as worker:
        with pytest.raises(DeadlineExceeded) as late:
            await worker.embed(embed_request(**asked))

        assert late.value.code == code
        assert (worker.queue_length, engine.embedding) == (0, 0)
        assert engine.most == (asked.get("timeout_s") != 0), "without time the engine is not asked"


async def test_an_embedding_that_waits_too_long_never_reaches_the_engine() -> None:
    engine = SlowEmbedding()
    async with running(a_worker(engine, concurrency=1, timeouts=Timeouts(queue_s=0.02))) as worker:
        async with anyio.create_task_group() as callers:
            callers.start_soon(worker.embed, embed_request())
            await until(lambda: engine.embedding == 1)
            with pytest.raises(DeadlineExceeded) as late:
                await worker.embed(embed_request())
            engine.go.set()

        assert (late.value.code, engine.most, worker.queue_length) == ("queue_timeout", 1, 0)


async def test_what_an_engine_raises_while_it_embeds_is_told_without_its_words() -> None:
    class Fails(EchoEngine):
        async def embed(self, request: EmbedRequest) -> Embeddings:
            raise RuntimeError("/secret/path")

    async with running(a_worker(Fails())) as worker:
        with pytest.raises(EngineError, match=r"RuntimeError\.$"):
            await worker.embed(embed_request())
        assert worker.queue_length == 0


async def test_an_embedding_that_cannot_be_stopped_takes_the_worker_out_of_service() -> None:
    engine = SlowEmbedding(stubborn=True)
    worker = a_worker(engine, timeouts=Timeouts(total_s=0.01), abort_grace_s=0.02)
    async with running(worker), anyio.create_task_group() as callers:
        callers.start_soon(worker.embed, embed_request())
        await until(lambda: worker.state is WorkerState.FAILED)
        engine.go.set()


async def test_expelling_ends_embeddings_that_wait_and_those_that_run() -> None:
    engine = SlowEmbedding()
    async with running(a_worker(engine, concurrency=1)) as worker:
        errors: list[str] = []

        async def embed() -> None:
            try:
                await worker.embed(embed_request())
            except Unavailable as error:
                errors.append(str(error))

        async with anyio.create_task_group() as callers:
            callers.start_soon(embed)
            callers.start_soon(embed)
            await until(lambda: worker.queue_length == 2 and engine.embedding == 1)
            worker.expel(Unavailable("shutting down"))

        assert (errors, engine.most, worker.queue_length) == (["shutting down"] * 2, 1, 0)


# ----------------------------------------------------------------------------------------------- rest


async def test_the_tool_parser_is_the_engines_unless_the_config_says_otherwise() -> None:
    async with running(a_worker(EchoEngine())) as worker:
        assert worker.tool_parser == ""
    async with running(a_worker(EchoEngine(), tool_parser="hermes")) as worker:
        assert worker.tool_parser == "hermes"


async def test_tokens_come_from_the_engine() -> None:
    async with running(a_worker(EchoEngine(EchoOptions(split="byte")))) as worker:
        ids = await worker.tokenize(TextPrompt("hé"))
        assert await worker.detokenize(ids) == "hé"
    with pytest.raises(Unavailable):
        await worker.tokenize(TextPrompt("x"))


async def test_an_engine_without_what_it_declares_is_not_taken_into_service() -> None:
    class Boasting(EchoEngine):
        embed = None  # type: ignore[assignment]

    worker = LocalWorker(Boasting(), names=("m",))
    with pytest.raises(TypeError, match="does not have: embed"):
        await worker.run()
    assert worker.state is WorkerState.FAILED


async def test_an_adapter_may_not_take_the_models_name() -> None:
    engine = EchoEngine()
    engine.info = replace(engine.info, adapters=("law", "m"))
    worker = LocalWorker(engine, names=("m",))
    with pytest.raises(StartupError, match="'m' is the name of the model and of one of its adapters"):
        await worker.run()
