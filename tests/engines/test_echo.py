"""The engine without a model: everything else is tested with it, so it is tested first."""

from __future__ import annotations

import math
import struct
from contextlib import aclosing

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastchat_serve import (
    Capability,
    ChatPrompt,
    Chunk,
    ContextOverflow,
    EmbedRequest,
    EngineError,
    GenerateRequest,
    InvalidRequest,
    Message,
    PushEngine,
    TextPrompt,
    TokenPrompt,
    Usage,
    pull,
)
from fastchat_serve.engines.echo import EchoEngine, EchoOptions
from tests.sinks import Remembering, a_request

pytestmark = pytest.mark.anyio

FAMILY = "👨‍👩‍👧‍👦 e\N{COMBINING ACUTE ACCENT} 漢字かな \N{ZERO WIDTH NO-BREAK SPACE}né"
TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from([*FAMILY, "👩🏽‍🚀", " ", "\n", "\r\n", "\t", "a"]), max_size=30).map("".join),
)


async def chunks_of(engine: EchoEngine, request: GenerateRequest) -> list[Chunk]:
    with anyio.fail_after(10):
        async with aclosing(engine.generate_stream(request)) as chunks:
            return [chunk async for chunk in chunks]


async def pushed_by(engine: EchoEngine, request: GenerateRequest) -> list[Chunk]:
    sink = Remembering()
    engine.start(request, sink)
    await sink.ended()
    assert sink.ends == [None]
    return sink.chunks


def collect(options: EchoOptions, request: GenerateRequest) -> list[Chunk]:
    """For properties: hypothesis does not know coroutines."""

    async def run() -> list[Chunk]:
        async with EchoEngine(options) as engine:
            return await pushed_by(engine, request)

    return anyio.run(run)


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def chat(*turns: tuple[str, str], continue_final: bool = False) -> GenerateRequest:
    messages = tuple(Message(role=role, content=content) for role, content in turns)
    return GenerateRequest(id="chat", prompt=ChatPrompt(messages, continue_final=continue_final))


# --------------------------------------------------------------------------------------------- text


async def test_it_is_a_push_engine_of_the_contract() -> None:
    assert isinstance(EchoEngine(), PushEngine)


async def test_it_says_the_last_user_message_a_word_a_token() -> None:
    request = chat(("user", "first"), ("assistant", "yes"), ("user", "to be  or\nnot "), ("tool", "42"))

    chunks = await chunks_of(EchoEngine(), request)

    assert [chunk.text for chunk in chunks] == ["to", " be", "  or", "\nnot", " "]
    assert [len(chunk.token_ids) for chunk in chunks] == [1] * 5
    assert [chunk.finish_reason for chunk in chunks] == [None] * 4 + ["stop"]
    assert [chunk.usage is not None for chunk in chunks] == [False] * 4 + [True]


async def test_a_final_message_that_is_to_be_continued_is_what_it_says() -> None:
    chunks = await chunks_of(EchoEngine(), chat(("user", "a b"), ("assistant", "c d"), continue_final=True))

    assert text_of(chunks) == "c d"


@given(TEXTS, st.sampled_from(["word", "character", "byte"]))
def test_however_it_splits_the_text_is_the_prompt_again(text: str, split: str) -> None:
    chunks = collect(msgspec.convert({"split": split}, EchoOptions), a_request(text))

    assert text_of(chunks) == text
    assert chunks[-1].usage is not None
    assert sum(len(chunk.token_ids) for chunk in chunks) == chunks[-1].usage.completion_tokens


def test_every_single_cut_and_every_pair_of_cuts_gives_the_same_text() -> None:
    data = FAMILY.encode()
    request = a_request(FAMILY)

    async def run() -> None:
        for first in range(len(data)):
            for second in range(first, len(data)):
                chunks = await pushed_by(EchoEngine(EchoOptions(cuts=(first, second))), request)
                assert text_of(chunks) == FAMILY
                assert len(chunks) == len({0, first, second})

    anyio.run(run)


@given(st.binary(max_size=30), st.lists(st.integers(0, 30), max_size=8))
def test_invalid_bytes_come_out_as_one_decoding_of_all_of_them_would_have_it(data: bytes, cuts: list[int]) -> None:
    chunks = collect(EchoOptions(raw=data.hex(), cuts=tuple(cuts)), a_request("whatever"))

    assert text_of(chunks) == data.decode(errors="replace")


async def test_a_prefix_comes_before_the_answer() -> None:
    assert text_of(await chunks_of(EchoEngine(EchoOptions(prefix="Echo: ")), a_request("hello"))) == "Echo: hello"


@pytest.mark.parametrize("raw", ["abc", "zz", "0 "])
def test_raw_bytes_that_are_no_hexadecimal_digits_are_refused_with_the_config(raw: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="raw"):
        msgspec.convert({"raw": raw}, EchoOptions)


async def test_half_a_surrogate_pair_and_an_empty_chat_are_the_callers_mistake() -> None:
    for request in (a_request("\ud83d"), chat()):
        with pytest.raises(InvalidRequest):
            await chunks_of(EchoEngine(), request)


# -------------------------------------------------------------------------------------------- length


async def test_a_loop_goes_on_until_max_tokens() -> None:
    chunks = await chunks_of(EchoEngine(EchoOptions(loop=True)), a_request("a b", max_tokens=5))

    assert text_of(chunks) == "a ba ba"
    assert (chunks[-1].finish_reason, chunks[-1].usage) == ("length", Usage(2, 5))


async def test_a_loop_over_nothing_ends_at_once() -> None:
    (chunk,) = await chunks_of(EchoEngine(EchoOptions(loop=True)), a_request(""))

    assert (chunk.text, chunk.finish_reason, chunk.usage) == ("", "stop", Usage(0, 0))


@pytest.mark.parametrize(
    ("max_tokens", "text", "reason"),
    [
        (0, "", "length"),
        (1, "to", "length"),
        (3, "to be or", "length"),
        (4, "to be or not", "stop"),
        (9, "to be or not", "stop"),
    ],
)
async def test_max_tokens_is_exact_and_the_finish_reason_says_whether_it_cut(
    max_tokens: int, text: str, reason: str
) -> None:
    chunks = await chunks_of(EchoEngine(), a_request(max_tokens=max_tokens))

    assert (text_of(chunks), chunks[-1].finish_reason) == (text, reason)
    assert chunks[-1].usage == Usage(4, min(max_tokens, 4))


async def test_without_its_end_token_it_goes_on_to_max_tokens() -> None:
    chunks = await chunks_of(EchoEngine(), a_request("a b", max_tokens=3, ignore_eos=True))

    assert (text_of(chunks), chunks[-1].finish_reason) == ("a ba", "length")


async def test_min_tokens_keeps_it_from_ending_early() -> None:
    chunks = await chunks_of(EchoEngine(), a_request("a b", min_tokens=3))

    assert (text_of(chunks), chunks[-1].finish_reason) == ("a ba", "stop")


async def test_the_context_holds_prompt_and_answer_or_both_counts_are_told() -> None:
    engine = EchoEngine(EchoOptions(context_length=6))

    assert text_of(await chunks_of(engine, a_request())) == "to be", "the two tokens that are left"
    with pytest.raises(ContextOverflow, match=r"6 tokens.* 7: 4 in the prompt and 3"):
        await chunks_of(engine, a_request(max_tokens=3))

    full = EchoEngine(EchoOptions(context_length=4))
    assert text_of(await chunks_of(full, a_request(max_tokens=0))) == "", "nothing wanted, nothing too long"
    with pytest.raises(ContextOverflow, match=r"4 tokens.* 5: 4 in the prompt and 1"):
        await chunks_of(full, a_request())


async def test_a_stop_string_ends_it_before_the_match() -> None:
    chunks = await chunks_of(EchoEngine(), a_request("to be or not", stop=("e o",)))

    assert (text_of(chunks), chunks[-1].finish_reason, chunks[-1].stop_match) == ("to b", "stop", "e o")
    assert chunks[-1].usage == Usage(4, 3), "the token that completed the match counts"


async def test_a_stop_string_that_was_only_waiting_for_a_longer_one_is_named_at_the_end() -> None:
    chunks = await chunks_of(EchoEngine(EchoOptions(split="byte")), a_request("abc", stop=("abcd", "bc")))

    assert (text_of(chunks), chunks[-1].finish_reason, chunks[-1].stop_match) == ("a", "stop", "bc")


async def test_a_stop_token_counts_but_is_no_part_of_the_text() -> None:
    engine = EchoEngine(EchoOptions(split="byte"))

    chunks = await chunks_of(engine, a_request("abcb", stop_token_ids=(ord("b"),)))
    assert (text_of(chunks), chunks[-1].stop_match, chunks[-1].usage) == ("a", ord("b"), Usage(4, 2))
    assert chunks[-1].finish_reason == "stop"

    later = await chunks_of(engine, a_request("abcb", stop_token_ids=(ord("b"),), min_tokens=2))
    assert text_of(later) == "abc"


# -------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    ("options", "request_"),
    [
        (EchoOptions(), a_request(FAMILY)),
        (EchoOptions(split="byte"), a_request(FAMILY)),
        (EchoOptions(split="byte"), a_request(FAMILY, stop=("漢字かな",), max_tokens=60)),
        (EchoOptions(split="byte"), a_request("abab abc", stop=("abc",))),
        (EchoOptions(split="byte"), a_request("abab", stop=("abc", "bd"), max_tokens=4)),
        (EchoOptions(loop=True), a_request("one two", max_tokens=7)),
        (EchoOptions(raw="e6bca2ff80c3"), a_request("x")),
    ],
    ids=["words", "bytes", "stop-string", "held-back-text", "held-back-end", "loop", "raw"],
)
async def test_a_stream_resumed_after_any_token_goes_on_as_if_nothing_had_happened(
    options: EchoOptions, request_: GenerateRequest
) -> None:
    whole = await pushed_by(EchoEngine(options), request_)

    for index in range(len(whole) + 1):
        sent = whole[:index]
        ids = tuple(token for chunk in sent for token in chunk.token_ids)
        rest = await pushed_by(EchoEngine(options), msgspec.structs.replace(request_, resume_token_ids=ids))

        assert text_of(sent) + text_of(rest) == text_of(whole)
        assert ids + tuple(token for chunk in rest for token in chunk.token_ids) == tuple(
            token for chunk in whole for token in chunk.token_ids
        )
        last = whole[-1]
        assert (rest[-1].finish_reason, rest[-1].usage, rest[-1].stop_match) == (
            last.finish_reason,
            last.usage,
            last.stop_match,
        )


def test_only_engines_that_say_the_same_have_equal_fingerprints() -> None:
    same = EchoEngine(EchoOptions(delay_ms=3, fail_at=2)).info.fingerprint
    others = [EchoOptions(split="byte"), EchoOptions(prefix="x"), EchoOptions(cuts=(1,)), EchoOptions(raw="00")]

    assert EchoEngine().info.fingerprint == same
    assert len({same, *(EchoEngine(options).info.fingerprint for options in others)}) == 5


# ------------------------------------------------------------------------------- tokens, embeddings


@given(TEXTS, st.sampled_from(["character", "byte"]))
def test_token_ids_turn_back_into_their_text(text: str, split: str) -> None:
    async def run() -> None:
        engine = EchoEngine(msgspec.convert({"split": split}, EchoOptions))
        ids = await engine.tokenize(TextPrompt(text))
        assert await engine.detokenize(ids) == text
        chunks = await pushed_by(engine, GenerateRequest(id="ids", prompt=TokenPrompt(ids)))
        assert text_of(chunks) == text
        assert tuple(token for chunk in chunks for token in chunk.token_ids) == ids

    anyio.run(run)


async def test_it_offers_tokenizing_only_where_ids_tell_their_token() -> None:
    assert Capability.TOKENIZE in EchoEngine(EchoOptions(split="byte")).info.capabilities
    assert Capability.TOKENIZE not in EchoEngine().info.capabilities
    with pytest.raises(InvalidRequest, match="neither a byte nor a character"):
        await EchoEngine().detokenize(await EchoEngine().tokenize(TextPrompt("words")))


async def test_log_probabilities_come_one_per_token_with_the_exact_bytes() -> None:
    engine = EchoEngine(EchoOptions(split="byte"))

    chunks = await chunks_of(engine, a_request("é", logprobs=1, prompt_logprobs=0))

    drawn = [entry for chunk in chunks for entry in chunk.logprobs or ()]
    assert b"".join(entry.data for entry in drawn) == "é".encode()
    assert [len(chunk.logprobs or ()) for chunk in chunks] == [len(chunk.token_ids) for chunk in chunks]
    assert all(entry.logprob == 0 and len(entry.top) == 1 for entry in drawn)
    prompt = chunks[0].prompt
    assert prompt is not None
    assert prompt.logprobs is not None
    assert [entry.logprob for entry in prompt.logprobs] == [None, 0.0]
    assert all(chunk.prompt is None for chunk in chunks[1:])


async def test_the_prompt_is_echoed_only_if_asked_for() -> None:
    (first, *_) = await chunks_of(EchoEngine(), a_request("a b", echo=True))
    assert first.prompt is not None
    assert (first.prompt.text, len(first.prompt.token_ids), first.prompt.logprobs) == ("a b", 2, None)

    assert (await chunks_of(EchoEngine(), a_request("a b")))[0].prompt is None


async def test_embeddings_are_unit_vectors_that_depend_on_every_byte() -> None:
    inputs = tuple(TextPrompt(text) for text in ("", "a", "b", "a", FAMILY))
    for dimensions in (1, 3, 64):
        engine = EchoEngine(EchoOptions(dimensions=dimensions))

        embeddings = await engine.embed(EmbedRequest(id="e", inputs=inputs))

        assert embeddings == await engine.embed(EmbedRequest(id="other", inputs=inputs))
        assert embeddings.dimensions == dimensions
        rows = list(struct.iter_unpack(f"<{dimensions}f", embeddings.data))
        assert len(rows) == len(inputs)
        assert all(math.isclose(math.hypot(*row), 1, rel_tol=1e-6) for row in rows)
    assert rows[1] == rows[3] != rows[2]
    assert embeddings.prompt_tokens == 0 + 1 + 1 + 1 + len(FAMILY.split(" "))


async def test_an_input_over_the_context_is_refused_unless_truncation_is_asked_for() -> None:
    engine = EchoEngine(EchoOptions(context_length=2))
    long = EmbedRequest(id="e", inputs=(TextPrompt("a b c"),))

    with pytest.raises(ContextOverflow, match="2 tokens"):
        await engine.embed(long)
    cut = await engine.embed(msgspec.structs.replace(long, truncate=True))
    assert cut.data == (await engine.embed(EmbedRequest(id="e", inputs=(TextPrompt("a b"),)))).data
    assert cut.prompt_tokens == 2


# --------------------------------------------------------------------------------- aborts and faults


async def test_push_and_pull_give_the_same_chunks() -> None:
    request = a_request(FAMILY, logprobs=2, echo=True, stop=("字",))
    engine = EchoEngine(EchoOptions(split="byte"))

    pushed = await pushed_by(engine, request)

    assert pushed == await chunks_of(engine, request)
    assert len(pushed) > 10


async def test_leaving_a_stream_early_aborts_it_and_nothing_is_held() -> None:
    engine = EchoEngine(EchoOptions(loop=True))
    with anyio.fail_after(5):
        async with aclosing(engine.generate_stream(a_request(id="first"))) as chunks:
            await anext(chunks)
            assert engine.current_load().running == 1

    assert engine.aborted == ["first"]
    assert engine.current_load().running == 0


async def test_reading_to_the_end_is_no_abort() -> None:
    engine = EchoEngine()
    await chunks_of(engine, a_request())

    assert engine.aborted == []
    assert engine.current_load().running == 0


@pytest.mark.parametrize("options", [EchoOptions(delay_ms=60_000), EchoOptions(stall_at=0)], ids=["slow", "stalled"])
async def test_an_abort_is_heard_at_once_however_slow_the_stream(options: EchoOptions) -> None:
    engine, sink = EchoEngine(options), Remembering()
    handle = engine.start(a_request(), sink)

    handle.abort()
    handle.abort()

    await sink.ended()
    assert (sink.chunks, sink.ends, engine.aborted) == ([], [None], ["request"])
    await engine.__aexit__()


async def test_tokens_are_paced() -> None:
    async with EchoEngine(EchoOptions(delay_ms=5)) as engine:
        began = anyio.current_time()
        await chunks_of(engine, a_request())

        assert anyio.current_time() - began >= 4 * 0.005 - 0.001


async def test_streams_step_together() -> None:
    """One wake-up of the loop serves all of them, as in an engine that batches."""
    async with EchoEngine(EchoOptions(loop=True)) as engine:
        sinks = [Remembering() for _ in range(5)]
        for sink in sinks:
            engine.start(a_request(max_tokens=50), sink)
        await sinks[-1].has(20)

        assert {len(sink.chunks) for sink in sinks} == {20}


@pytest.mark.parametrize("at", [0, 1, 3])
async def test_it_fails_where_it_is_told_to(at: int) -> None:
    engine, sink = EchoEngine(EchoOptions(fail_at=at)), Remembering()
    engine.start(a_request(), sink)

    await sink.ended()

    assert len(sink.chunks) == at
    assert isinstance(sink.error, EngineError)
    assert engine.current_load().running == 0


async def test_it_ends_without_a_finish_where_it_is_told_to() -> None:
    chunks = await chunks_of(EchoEngine(EchoOptions(end_without_finish_at=2)), a_request())

    assert [(chunk.text, chunk.finish_reason) for chunk in chunks] == [("to", None), (" be", None)]


async def test_a_stalled_stream_costs_nothing_and_holds_up_nobody() -> None:
    async with EchoEngine(EchoOptions(stall_at=2)) as engine:
        stalled = Remembering()
        engine.start(a_request(), stalled)
        await stalled.has(2)

        assert text_of(await chunks_of(engine, a_request("two words"))) == "two words"
        assert (len(stalled.chunks), stalled.ends) == (2, [])


async def test_a_deaf_engine_goes_on_after_an_abort() -> None:
    engine, sink = EchoEngine(EchoOptions(deaf=True)), Remembering()
    handle = engine.start(a_request(), sink)
    await sink.has(1)

    handle.abort()

    await sink.ended()
    assert sink.text == "to be or not"


async def test_a_leaking_engine_keeps_its_requests_and_never_ends_them() -> None:
    sinks = [Remembering(), Remembering()]
    async with EchoEngine(EchoOptions(leak=True)) as engine:
        engine.start(a_request(), sinks[0])
        await sinks[0].has(4)
        engine.start(a_request(), sinks[1]).abort()
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()

        assert engine.current_load().running == 2
        assert sinks[0].chunks[-1].finish_reason == "stop"
    assert [sink.ends for sink in sinks] == [[], []]
    assert engine.current_load().running == 0


async def test_it_dies_with_all_streams_where_it_is_told_to() -> None:
    engine = EchoEngine(EchoOptions(die_at=2))
    sinks = [Remembering(), Remembering()]
    for sink in sinks:
        engine.start(a_request(), sink)

    for sink in sinks:
        assert isinstance((await sink.ended()).error, EngineError)

    assert engine.fatal_error is not None
    with pytest.raises(EngineError, match="dead"):
        await chunks_of(engine, a_request())


async def test_closing_the_engine_ends_what_is_under_way() -> None:
    sink = Remembering()
    async with EchoEngine(EchoOptions(loop=True)) as engine:
        engine.start(a_request(), sink)
        await sink.has(1)

    assert isinstance(sink.error, EngineError)
    assert engine.current_load().running == 0


async def test_pull_reads_any_push_form() -> None:
    async with EchoEngine() as engine:
        assert "".join([chunk.text async for chunk in pull(engine.start, a_request())]) == "to be or not"
