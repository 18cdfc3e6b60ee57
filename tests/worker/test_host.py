"""What a link must not do to streams: lose credit, or take them all down for one message that cannot be sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastchat_serve import Chunk, EmbedRequest, TextPrompt, Usage
from fastchat_serve.engine import Embeddings, EngineLoad, Sink
from fastchat_serve.engines.echo import EchoEngine
from fastchat_serve.errors import EngineError, InvalidRequest, PayloadTooLarge
from fastchat_serve.protocol import frames
from fastchat_serve.protocol.link import Delta, Deltas, Ended, Load, Piece
from fastchat_serve.worker import host, link
from fastchat_serve.worker.base import WorkerState
from fastchat_serve.worker.caller import lost_error
from fastchat_serve.worker.link import Link
from fastchat_serve.worker.remote import LOST, RemoteWorker
from tests.sinks import Remembering, a_request
from tests.worker.every_worker import called, in_a_process, linked

pytestmark = pytest.mark.anyio

EMBED = EmbedRequest(id="e", inputs=(TextPrompt("a"),))


def begin(worker: RemoteWorker, prompt: str = "to be or not", **request: Any) -> Remembering:
    sink = Remembering()
    worker.start(a_request(prompt, **request), sink)
    return sink


async def test_a_stream_of_any_length_arrives_whole_however_its_chunks_travel_together() -> None:
    # As many tokens as may wait for a reader that this machine lets starve: nobody reads as fast as this engine writes.
    count = (host.WINDOW_BYTES + host.MAX_HELD_BYTES) // host.plain_size("a", (0,))
    async with in_a_process(concurrency=8, loop=True) as worker:
        sinks = [begin(worker, "a", max_tokens=count) for _ in range(8)]
        for sink in sinks:
            assert (await sink.ended()).ends == [None]
            assert len(sink.text) == count


@given(st.lists(st.tuples(st.text(), st.lists(st.integers(0, 1000)).map(tuple)), min_size=1))
def test_chunks_are_as_large_together_as_one_by_one(chunks: list[tuple[str, tuple[int, ...]]]) -> None:
    """Else a host that counts each, and a caller that counts what one read brought, would come to differ."""
    text = "".join(text for text, _ in chunks)
    token_ids = tuple(id_ for _, ids in chunks for id_ in ids)
    one_by_one = sum(host.plain_size(text, ids) for text, ids in chunks)
    assert host.plain_size(text, token_ids, len(chunks)) == one_by_one


async def test_what_one_read_brings_of_a_stream_is_one_chunk_before_all_that_follows() -> None:
    async with called() as (worker, caller):
        one, other = Remembering(), Remembering()
        for sink in (one, other):
            caller.generate(worker, a_request("to be or not"), sink)
        ours, theirs = [Delta(0, "a", (1,)), Delta(0, "é", (2, 3))], Delta(1, "b", (4,))
        last = Chunk(text="!", token_ids=(5,), finish_reason="stop", usage=Usage(1, 4))

        caller.receive([Deltas([ours[0], theirs]), Deltas([ours[1]]), Piece(0, last)])

        assert one.chunks == [Chunk(text="aé", token_ids=(1, 2, 3)), last]
        assert other.chunks == [Chunk(text="b", token_ids=(4,))]


async def test_with_the_end_of_a_stream_comes_what_is_left_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whoever hears of the end knows at once that there is a place, and is woken once for both."""
    left: list[list[object]] = []

    def leave(messages: list[object]) -> Iterator[bytes]:
        left.append(messages)
        return frames.frames(messages)

    monkeypatch.setattr(link, "frames", leave)
    async with linked(delay_ms=1) as worker:
        short, long = begin(worker, "a"), begin(worker, "to be or not to be")
        await short.ended()
        assert not long.ends
        await long.ended()

    (together,) = (messages for messages in left if frames.written(Ended(0)) in messages)
    assert [message.running for message in together if isinstance(message, Load)] == [1]


def speaking(monkeypatch: pytest.MonkeyPatch, chunk: Chunk) -> None:
    """Have the engine say `chunk` first to whoever asks with the word "odd"."""
    start = EchoEngine.start

    def with_it(engine: EchoEngine, request: Any, sink: Sink) -> Any:
        if request.prompt == TextPrompt("odd"):
            sink.push(chunk)
        return start(engine, request, sink)

    monkeypatch.setattr(EchoEngine, "start", with_it)


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk(text="\ud800"),
        Chunk(token_ids=("one",)),  # type: ignore[arg-type]
        Chunk(token_ids=(1.5,)),  # type: ignore[arg-type]
        Chunk(token_ids=(2**70,)),
        Chunk(token_ids=(object(),)),  # type: ignore[arg-type]
        Chunk(reasoning=b"why"),  # type: ignore[arg-type]
        Chunk(reasoning="y" * 3000),
    ],
    ids=["surrogate", "text for an id", "fraction", "large id", "object", "bytes", "long"],
)
async def test_a_chunk_that_cannot_be_sent_ends_its_own_stream_only(
    monkeypatch: pytest.MonkeyPatch, chunk: Chunk
) -> None:
    speaking(monkeypatch, chunk)
    async with linked(delay_ms=1) as worker:
        monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 2000)
        good, bad = begin(worker), begin(worker, "odd")
        assert isinstance((await bad.ended()).error, EngineError)
        assert (await good.ended()).text == "to be or not"
        assert worker.state is WorkerState.READY


async def test_a_result_that_is_too_long_is_an_error_of_its_own_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async def much(*_: object) -> Embeddings:
        return Embeddings(b"0" * 3000, 750, 1)

    monkeypatch.setattr(EchoEngine, "embed", much)
    async with linked(loop=True, delay_ms=1) as worker:
        monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 2000)
        stream = await begin(worker).has(1)
        with pytest.raises(EngineError):
            await worker.embed(EMBED)
        seen = len(stream.chunks)
        await stream.has(seen + 2)


async def test_an_error_that_cannot_be_told_is_an_error_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(*_: object) -> Embeddings:
        raise InvalidRequest("no \ud800", param=5)  # type: ignore[arg-type]

    monkeypatch.setattr(EchoEngine, "embed", failing)
    async with linked(loop=True, delay_ms=1) as worker:
        stream = await begin(worker).has(1)
        with pytest.raises(EngineError):
            await worker.embed(EMBED)
        await stream.has(len(stream.chunks) + 2)


async def test_an_engine_that_cancels_a_call_of_its_own_accord_hurts_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def cancelling(*_: object) -> Embeddings:
        raise asyncio.CancelledError

    monkeypatch.setattr(EchoEngine, "embed", cancelling)
    went_on = False
    async with linked(loop=True, delay_ms=1) as worker:
        stream = await begin(worker).has(1)
        with pytest.raises(EngineError), anyio.fail_after(5):
            await worker.embed(EMBED)
        await stream.has(len(stream.chunks) + 2)
        went_on = True
    assert went_on


@pytest.mark.parametrize("used", [Fraction(1, 2), object()], ids=["a number of another kind", "no number"])
async def test_an_engine_may_say_anything_of_its_load(monkeypatch: pytest.MonkeyPatch, used: Any) -> None:
    monkeypatch.setattr(EchoEngine, "current_load", lambda _: EngineLoad(kv_used_fraction=used))
    async with linked(concurrency=1) as worker:
        assert (await begin(worker).ended()).text == "to be or not"
        assert worker.load().engine.kv_used_fraction == (0.5 if isinstance(used, Fraction) else 0.0)


async def test_what_is_too_long_together_travels_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked(concurrency=8) as worker:
        monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 2000)
        sinks = [begin(worker, "x" * 1000) for _ in range(8)]
        for sink in sinks:
            assert (await sink.ended()).text == "x" * 1000


async def test_a_request_that_is_too_long_is_refused_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked() as worker:
        monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 2000)
        with pytest.raises(PayloadTooLarge):
            begin(worker, "x" * 3000)
        assert worker.queue_length == 0
        assert (await begin(worker).ended()).text == "to be or not"


@pytest.mark.parametrize("how", ["silence", "expulsion"])
async def test_a_call_that_is_given_up_here_is_given_up_there(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    begun, cancelled = anyio.Event(), anyio.Event()

    async def endless(*_: object) -> Embeddings:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()
        raise AssertionError

    monkeypatch.setattr(EchoEngine, "embed", endless)
    async with called() as (worker, caller), anyio.create_task_group() as tasks:

        async def embed() -> None:
            with pytest.raises(EngineError):
                await worker.embed(EMBED)

        tasks.start_soon(embed)
        with anyio.fail_after(10):
            await begun.wait()
            if how == "silence":
                caller.silent()
                assert worker.reason == LOST
            else:
                worker.expel(lost_error())
            await cancelled.wait()


async def test_what_a_sink_has_not_taken_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller grants nothing: so many bytes are sent, so many are held, and then the stream ends."""
    sent: list[int] = []
    write = Link._flush

    def counted(sending: Link[Any, Any]) -> None:
        sent.append(sum(len(frames.frame([message])) for message in sending._outbox))
        write(sending)

    monkeypatch.setattr(host._Outgoing, "grant", lambda *_: None)
    monkeypatch.setattr(Link, "_flush", counted)
    async with linked(loop=True) as worker:
        sink = await begin(worker, "😀" * 500, max_tokens=10_000).ended()
        assert getattr(sink.error, "code", None) == "slow_reader"
        assert sum(sent) < 2 * host.WINDOW_BYTES
