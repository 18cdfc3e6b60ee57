"""Whatever an engine does, the caller hears of exactly one end, and the slot is freed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fastchat_serve import Chunk, GenerateRequest, Handle, Sink, Usage
from fastchat_serve.config import Timeouts
from fastchat_serve.errors import (
    ContextOverflow,
    DeadlineExceeded,
    EngineError,
    EngineProtocolError,
    OutOfMemory,
    Overloaded,
    Unavailable,
)
from fastchat_serve.worker.job import Job
from fastchat_serve.worker.slots import Slots
from tests.sinks import Remembering, a_request

pytestmark = pytest.mark.anyio

TOKEN = Chunk(text="x", token_ids=(1,))
LAST = Chunk(text="!", token_ids=(2,), finish_reason="stop", usage=Usage(1, 2))
GRACE_S = 5.0


class Puppet:
    """An engine that does what the test says, and the worker around it, on a clock that the test moves."""

    def __init__(self, slots: int = 1, queue: int = 9, timeouts: Timeouts | None = None) -> None:
        self.now = 100.0
        self.slots = Slots(slots, queue, lambda: self.now)
        self.timeouts = timeouts or Timeouts(queue_s=None, first_token_s=None, between_tokens_s=None)
        self.jobs: set[Job] = set()
        self.breaches = 0
        self.started: list[str] = []
        self.aborted: list[str] = []
        self.outlets: dict[str, Sink] = {}
        self.on_start: Callable[[Sink], None] = lambda sink: None
        self.on_abort: Callable[[Sink], None] = lambda sink: None

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        self.started.append(request.id)
        self.outlets[request.id] = sink
        puppet = self

        class Strings:
            def abort(self) -> None:
                puppet.aborted.append(request.id)
                puppet.on_abort(sink)

        self.on_start(sink)
        return Strings()

    def accept(
        self, id: str = "request", *, sink: Remembering | None = None, timeout_s: float | None = None, priority: int = 0
    ) -> tuple[Job, Remembering]:
        sink = sink or Remembering()
        job = Job(
            a_request(id=id, timeout_s=timeout_s, priority=priority),
            sink,
            start=self.start,
            slots=self.slots,
            timeouts=self.timeouts,
            clock=lambda: self.now,
            let_go=self.jobs.discard,
            breach=self.breach,
        )
        self.jobs.add(job)
        job.accept()
        return job, sink

    def breach(self) -> None:
        self.breaches += 1

    def engine(self, id: str = "request") -> Sink:
        return self.outlets[id]

    def check(self, seconds_later: float = 0.0) -> bool:
        self.now += seconds_later
        obeyed = [job.check(self.now, GRACE_S) for job in list(self.jobs)]
        return all(obeyed)

    @property
    def busy(self) -> tuple[int, int, int]:
        return self.slots.running, self.slots.waiting, len(self.jobs)


async def test_chunks_pass_and_the_end_frees_the_slot() -> None:
    puppet = Puppet()
    _, sink = puppet.accept()
    puppet.engine().push(TOKEN)
    puppet.engine().push(LAST)
    assert puppet.busy == (1, 0, 1), "the engine still holds something"

    puppet.engine().end(None)

    assert (sink.text, sink.ends, puppet.busy) == ("x!", [None], (0, 0, 0))


async def test_the_next_in_the_queue_begins_when_the_engine_lets_go() -> None:
    puppet = Puppet()
    puppet.accept("first")
    puppet.accept("second")
    puppet.accept("urgent", priority=-1)

    puppet.engine("first").push(LAST)
    puppet.engine("first").end(None)

    assert puppet.started == ["first", "urgent"]
    assert puppet.busy == (1, 1, 2)


async def test_a_full_queue_refuses_without_having_touched_the_sink() -> None:
    puppet = Puppet(queue=0)
    puppet.accept()
    sink = Remembering()

    with pytest.raises(Overloaded):
        puppet.accept("refused", sink=sink)

    assert (sink.chunks, sink.ends) == ([], [])


# ------------------------------------------------------------------------------------------- aborts


async def test_abort_in_the_queue_leaves_it_at_once_and_never_starts_the_engine() -> None:
    puppet = Puppet()
    puppet.accept("first")
    job, sink = puppet.accept("second")

    job.abort()
    job.abort()

    assert (sink.ends, puppet.busy) == ([None], (1, 0, 1))
    puppet.engine("first").end(None)
    assert puppet.started == ["first"]


async def test_abort_while_running_frees_the_slot_when_the_engine_lets_go() -> None:
    puppet = Puppet()
    job, sink = puppet.accept()
    puppet.engine().push(TOKEN)

    job.abort()
    job.abort()
    puppet.engine().push(TOKEN)  # a last one that was on its way
    assert (puppet.aborted, puppet.busy, sink.ends) == (["request"], (1, 0, 1), [])
    puppet.engine().end(None)

    assert (sink.text, sink.ends, puppet.busy) == ("x", [None], (0, 0, 0))


async def test_an_engine_that_fails_after_an_abort_is_no_failure_of_the_request() -> None:
    puppet = Puppet()
    job, sink = puppet.accept()
    job.abort()
    puppet.engine().end(RuntimeError("confused"))

    assert (sink.ends, puppet.busy) == ([None], (0, 0, 0))


async def test_abort_after_the_end_does_nothing() -> None:
    puppet = Puppet()
    job, sink = puppet.accept()
    puppet.engine().push(LAST)
    puppet.engine().end(None)

    job.abort()

    assert (puppet.aborted, sink.ends) == ([], [None])


async def test_a_caller_that_aborts_on_what_comes_before_there_is_a_handle_is_heard() -> None:
    puppet = Puppet()
    puppet.on_start = lambda sink: sink.push(TOKEN)
    puppet.on_abort = lambda sink: sink.end(None)

    class Leaver(Remembering):
        def push(self, chunk: Chunk) -> None:
            super().push(chunk)
            for job in list(puppet.jobs):
                job.abort()

    puppet.accept(sink=Leaver())

    assert (puppet.aborted, puppet.busy) == (["request"], (0, 0, 0))


async def test_an_abort_that_raises_is_contained() -> None:
    puppet = Puppet()

    def explode(sink: Sink) -> None:
        raise RuntimeError

    puppet.on_abort = explode
    job, sink = puppet.accept()

    job.abort()
    assert puppet.check(GRACE_S)
    assert not puppet.check(0.1), "the engine ought to have let go"
    job.forget()

    assert puppet.busy == (0, 0, 0)
    puppet.engine().end(None)
    assert (sink.ends, puppet.busy) == ([], (0, 0, 0))


# --------------------------------------------------------------------------------- broken contracts


async def test_an_engine_that_raises_in_start_ends_the_request_later_not_there() -> None:
    puppet = Puppet()

    def explode(sink: Sink) -> None:
        raise RuntimeError("secret path /etc")

    puppet.on_start = explode
    _, sink = puppet.accept()
    assert sink.ends == []

    error = (await sink.ended()).error
    assert isinstance(error, EngineError)
    assert str(error) == "The engine failed while it worked on this request: RuntimeError."
    assert puppet.busy == (0, 0, 0)


async def test_a_thousand_in_the_queue_that_the_engine_refuses_at_once_do_not_exhaust_the_stack() -> None:
    puppet = Puppet(queue=2000)
    puppet.accept("first")
    puppet.on_start = lambda sink: sink.end(ContextOverflow(limit=1, prompt_tokens=2))
    sinks = [puppet.accept(str(number))[1] for number in range(1000)]

    puppet.engine("first").end(None)

    assert all(isinstance(sink.error, ContextOverflow) for sink in sinks)
    assert puppet.busy == (0, 0, 0)


@pytest.mark.parametrize("tokens", [0, 1, 7])
async def test_an_end_without_a_finish_is_an_error(tokens: int) -> None:
    puppet = Puppet()
    _, sink = puppet.accept()
    for _ in range(tokens):
        puppet.engine().push(TOKEN)
    puppet.engine().end(None)

    assert len(sink.chunks) == tokens
    assert isinstance(sink.error, EngineProtocolError)
    assert puppet.busy == (0, 0, 0)


async def test_a_second_end_is_not_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    puppet = Puppet()
    _, sink = puppet.accept()
    puppet.accept("second")
    puppet.engine().push(LAST)
    puppet.engine().end(None)
    puppet.engine().end(RuntimeError())

    assert (sink.ends, puppet.busy) == ([None], (1, 0, 1))
    assert "request" in caplog.text


async def test_what_comes_after_the_last_chunk_is_dropped_and_the_answer_stays_whole() -> None:
    """The client has seen its finish: an error after it would be a second end."""
    puppet = Puppet()
    _, sink = puppet.accept()
    for chunk in (LAST, TOKEN, LAST, TOKEN):
        puppet.engine().push(chunk)
    assert puppet.aborted == ["request"]
    puppet.engine().end(RuntimeError())
    puppet.engine().push(TOKEN)

    assert (sink.chunks, sink.ends, puppet.busy) == ([LAST], [None], (0, 0, 0))


async def test_an_engine_that_finishes_and_never_lets_go_is_found_out() -> None:
    puppet = Puppet()
    _, sink = puppet.accept()
    puppet.engine().push(LAST)

    assert puppet.check(GRACE_S)
    assert not puppet.check(0.1)
    assert sink.ends == []


@pytest.mark.parametrize("junk", [None, "text", 3], ids=repr)
async def test_a_chunk_that_is_none_ends_that_request_and_does_not_raise_into_the_engine(junk: object) -> None:
    class Reads(Remembering):
        def push(self, chunk: Chunk) -> None:
            chunk.text.encode()
            super().push(chunk)

    puppet = Puppet()
    _, sink = puppet.accept(sink=Reads())
    puppet.engine().push(junk)  # type: ignore[arg-type]

    assert isinstance(sink.error, EngineProtocolError)
    assert puppet.aborted == ["request"]


async def test_a_lone_surrogate_ends_that_request_only() -> None:
    class Encodes(Remembering):
        def push(self, chunk: Chunk) -> None:
            chunk.text.encode()
            super().push(chunk)

    puppet = Puppet(slots=2)
    _, bad = puppet.accept("bad", sink=Encodes())
    _, good = puppet.accept("good", sink=Encodes())
    puppet.engine("bad").push(Chunk(text="\ud800"))
    puppet.engine("good").push(LAST)
    puppet.engine("good").end(None)

    assert isinstance(bad.error, EngineProtocolError)
    assert (good.text, good.ends) == ("!", [None])


async def test_a_caller_that_fails_at_its_end_harms_nobody() -> None:
    class Breaks(Remembering):
        def end(self, error: Exception | None) -> None:
            raise RuntimeError

    puppet = Puppet(timeouts=Timeouts(first_token_s=1))
    puppet.accept(sink=Breaks())
    puppet.accept("second")

    assert puppet.check(1)
    puppet.engine().end(None)

    assert puppet.started == ["request", "second"]


async def test_running_out_of_memory_is_told_as_such() -> None:
    puppet = Puppet()
    _, sink = puppet.accept()
    puppet.engine().end(MemoryError())

    assert isinstance(sink.error, OutOfMemory)


async def test_giving_up_tells_the_caller_now_and_frees_the_slot_when_the_engine_lets_go() -> None:
    puppet = Puppet()
    job, sink = puppet.accept()
    job.give_up(Unavailable("going away"))
    job.give_up(Unavailable("again"))

    assert (str(sink.error), puppet.aborted, puppet.busy) == ("going away", ["request"], (1, 0, 1))
    puppet.engine().end(RuntimeError())
    assert (len(sink.ends), puppet.busy) == (1, (0, 0, 0))


# ---------------------------------------------------------------------------------------- deadlines


def code_of(sink: Remembering) -> str | None:
    assert isinstance(sink.error, DeadlineExceeded)
    return sink.error.code


@pytest.mark.parametrize("asked_s", [None, 7.0, 2.0])
async def test_the_total_limit_holds_and_a_request_may_ask_for_less(asked_s: float | None) -> None:
    limit_s = min(5.0, asked_s or 5.0)
    puppet = Puppet(timeouts=Timeouts(total_s=5))
    _, sink = puppet.accept(timeout_s=asked_s)
    puppet.check(limit_s / 2)
    puppet.engine().push(TOKEN)
    puppet.check(limit_s / 2 - 0.01)
    assert sink.ends == []

    puppet.check(0.01)

    assert code_of(sink) == "total_timeout"
    assert f"{limit_s:g} s" in str(sink.error)
    assert puppet.aborted == ["request"]


async def test_the_queue_limit_ends_who_waits_and_nobody_else() -> None:
    puppet = Puppet(timeouts=Timeouts(queue_s=3, first_token_s=None))
    _, running = puppet.accept("running")
    _, waiting = puppet.accept("waiting")

    puppet.check(3)

    assert code_of(waiting) == "queue_timeout"
    assert (running.ends, puppet.started, puppet.busy) == ([], ["running"], (1, 0, 1))


async def test_the_first_token_limit_counts_from_the_slot() -> None:
    puppet = Puppet(timeouts=Timeouts(queue_s=60, first_token_s=3))
    puppet.accept("first")
    _, sink = puppet.accept("second")
    puppet.now += 50
    puppet.engine("first").end(None)

    puppet.check(2.9)
    assert sink.ends == []
    puppet.check(0.1)

    assert code_of(sink) == "first_token_timeout"


async def test_the_limit_between_tokens_begins_anew_with_each() -> None:
    puppet = Puppet(timeouts=Timeouts(first_token_s=1, between_tokens_s=3))
    _, sink = puppet.accept()
    for _ in range(4):
        puppet.engine().push(TOKEN)
        puppet.check(2.9)
    assert sink.ends == []
    puppet.check(0.1)

    assert code_of(sink) == "between_tokens_timeout"


async def test_work_that_has_expired_never_reaches_the_engine() -> None:
    """G12: also if a slot comes free before anybody looked at the clock."""
    puppet = Puppet(queue=2000, timeouts=Timeouts(queue_s=10))
    puppet.accept("first")
    sinks = [puppet.accept(f"queue {number}")[1] for number in range(1000)]
    _, asked_less = puppet.accept("asked less", timeout_s=5)
    puppet.now += 10
    _, fresh = puppet.accept("fresh")

    puppet.engine("first").push(LAST)
    puppet.engine("first").end(None)

    assert puppet.started == ["first", "fresh"]
    assert {code_of(sink) for sink in sinks} == {"queue_timeout"}
    assert code_of(asked_less) == "total_timeout"
    assert (fresh.ends, puppet.busy) == ([], (1, 0, 1))


async def test_a_request_without_any_time_is_not_started_though_a_slot_is_free() -> None:
    puppet = Puppet()
    _, sink = puppet.accept(timeout_s=0)

    assert (code_of(sink), puppet.started, puppet.busy) == ("total_timeout", [], (0, 0, 0))


async def test_no_limit_means_for_ever() -> None:
    puppet = Puppet()
    _, sink = puppet.accept()

    assert puppet.check(1e9)
    assert sink.ends == []
