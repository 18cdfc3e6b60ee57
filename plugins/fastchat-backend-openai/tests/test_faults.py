"""What an upstream does wrong ends one answer, in the right kind of error, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from raw_upstream import DONE, PATIENCE_S, Handler, Request, answer_of, asking, chat_event, event, head

from fastchat_backend_openai.connection import MAX_HEAD_BYTES
from fastchat_backend_openai.failures import UncountedOverflow
from fastchat_backend_openai.sse import MAX_EVENT_BYTES
from fastchat_serve import (
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    Overloaded,
    SamplingParams,
    Secret,
    ServeError,
    Unavailable,
    Unsupported,
)

pytestmark = pytest.mark.anyio

WHOLE = chat_event("hello") + chat_event(finish="stop", usage=(3, 2)) + DONE


def sends(*pieces: bytes, close: bool = True, pause_s: float = 0.0) -> Handler:
    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        if close:
            writer.close()

    return handler


def refuses(status: int, body: str, **headers: str) -> Handler:
    return sends(head(status, content_type="application/json", content_length=str(len(body)), **headers), body.encode())


async def failure(behind: Any, handler: Handler, **options: Any) -> ServeError:
    async with behind(handler, **options) as (engine, _):
        with pytest.raises(ServeError) as caught:
            await answer_of(engine)
        assert engine.current_load().running == 0
        assert engine.fatal_error is None
    return caught.value


async def test_an_answer_that_is_whole_is_passed_on(behind: Any) -> None:
    async with behind(sends(head(), WHOLE)) as (engine, _):
        chunks = await answer_of(engine)

    assert "".join(chunk.text for chunk in chunks) == "hello"
    assert (chunks[-1].finish_reason, chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (
        "stop",
        3,
        2,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16])
async def test_bytes_may_be_cut_anywhere(behind: Any, size: int) -> None:
    stream = head() + chat_event("héllo 🌍") + b": ping\n\n" + chat_event(finish="stop", usage=(1, 1)) + DONE
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]

    async with behind(sends(*pieces)) as (engine, _):
        assert "".join(chunk.text for chunk in await answer_of(engine)) == "héllo 🌍"


@pytest.mark.parametrize("line_end", [b"\r\n", b"\r"])
async def test_other_line_ends_are_understood(behind: Any, line_end: bytes) -> None:
    stream = WHOLE.replace(b"\n", line_end)

    async with behind(sends(head(), *(bytes([byte]) for byte in stream))) as (engine, _):
        assert "".join(chunk.text for chunk in await answer_of(engine)) == "hello"


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"", id="at once"),
        pytest.param(chat_event("hel"), id="in the middle"),
        pytest.param(chat_event("hel") + b'data: {"choices"', id="within an event"),
        pytest.param(chat_event("hel") + DONE, id="by DONE without a finish"),
    ],
)
async def test_a_stream_that_is_cut_off_is_an_error(behind: Any, stream: bytes) -> None:
    assert isinstance(await failure(behind, sends(head(), stream)), EngineError)


async def test_an_answer_that_lacks_only_the_word_done_is_whole(behind: Any) -> None:
    async with behind(sends(head(), WHOLE.removesuffix(DONE))) as (engine, _):
        assert (await answer_of(engine))[-1].finish_reason == "stop"


async def test_an_answer_without_token_counts_is_an_error_unless_estimates_are_allowed(behind: Any) -> None:
    stream = chat_event("a") + chat_event("b") + chat_event(finish="stop") + DONE

    assert (await failure(behind, sends(head(), stream))).code == "upstream_no_usage"
    async with behind(sends(head(), stream), usage="estimate") as (engine, upstream):
        assert (await answer_of(engine))[-1].usage.completion_tokens == 3
        assert "stream_options" not in upstream.requests[0].json()


@pytest.mark.parametrize(
    "junk",
    [
        pytest.param(b"data: {not json}\n\n", id="no JSON"),
        pytest.param(b'data: {"choices": 7}\n\n', id="another type"),
        pytest.param(b'data: {"choices": [{"delta": {"content": "\xff\xfe"}}]}\n\n', id="no UTF-8"),
        pytest.param(b"data: " + b"[" * 100_000 + b"\n\n", id="deep"),
        pytest.param(b'data: {"choices": [{"delta": {}, "finish_reason": "bored"}]}\n\n', id="unknown finish"),
        pytest.param(b'data: {"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}\n\n' + WHOLE, id="nameless call"),
    ],
)
async def test_junk_in_a_stream_is_an_error(behind: Any, junk: bytes) -> None:
    assert isinstance(await failure(behind, sends(head(), chat_event("hel"), junk)), EngineError)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="another protocol"),
        pytest.param(b"HTTP/1.1 200 X\r\n" + b"a: " + b"b" * (MAX_HEAD_BYTES + 2**17), id="endless header"),
        pytest.param(head(content_type="text/html") + b"<html>", id="a web page"),
        pytest.param(head(content_type="application/json") + b'{"choices": []}', id="no stream"),
        pytest.param(head(content_encoding="gzip") + b"\x1f\x8b", id="compressed"),
        pytest.param(head() + b"data: " + b"x" * (MAX_EVENT_BYTES + 2**17), id="endless line"),
        pytest.param(head() + b"data: x\n" * (MAX_EVENT_BYTES // 4), id="endless event"),
        pytest.param(head(transfer_encoding="chunked") + b"zz\r\n", id="broken chunks"),
        pytest.param(head(301, location="http://other.example/v1"), id="a redirect"),
    ],
)
async def test_what_is_no_stream_is_an_error(behind: Any, reply: bytes) -> None:
    assert isinstance(await failure(behind, sends(reply)), EngineError)


async def test_a_redirect_is_not_followed(behind: Any) -> None:
    async with behind(sends(head(307, location="/v1/other")), api_key=Secret("sk-secret")) as (engine, upstream):
        with pytest.raises(EngineError):
            await answer_of(engine)

        assert len(upstream.requests) == 1


async def test_an_error_in_json_with_status_200_is_an_error(behind: Any) -> None:
    error = await failure(behind, refuses(200, '{"error": "no such route"}'))

    assert "no such route" in str(error)


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (
            400,
            '{"error": {"message": "bad top_p", "param": "top_p", "code": "bad_value"}}',
            InvalidRequest,
            "bad_value",
        ),
        (400, '{"error": {"message": "no tools", "code": "unsupported"}}', Unsupported, "unsupported"),
        (
            400,
            '{"error": {"message": "x", "code": "context_length_exceeded"}}',
            UncountedOverflow,
            "context_length_exceeded",
        ),
        (
            400,
            '{"object": "error", "message": "This model\'s maximum context length is 8 tokens.", "code": 400}',
            UncountedOverflow,
            "context_length_exceeded",
        ),
        (422, '{"detail": [{"loc": ["body", "n"], "msg": "too many"}]}', InvalidRequest, None),
        (401, '{"error": {"message": "Incorrect API key provided: sk-1234567"}}', EngineError, "upstream_credentials"),
        (403, "", EngineError, "upstream_credentials"),
        (404, '{"error": {"message": "no model m"}}', EngineError, "upstream_not_found"),
        (413, "", InvalidRequest, "payload_too_large"),
        (429, '{"error": {"message": "slow down"}}', Overloaded, "upstream_overloaded"),
        (429, '{"error": {"message": "pay", "code": "insufficient_quota"}}', Unavailable, "upstream_quota"),
        (500, "<html>oops</html>", EngineError, "engine_failed"),
        (502, "", Unavailable, "upstream_unavailable"),
        (503, '{"error": "Loading model"}', Unavailable, "upstream_unavailable"),
        (504, "", DeadlineExceeded, "deadline_exceeded"),
    ],
)
async def test_refusals_become_ours(
    behind: Any, status: int, body: str, kind: type[ServeError], code: str | None
) -> None:
    error = await failure(behind, refuses(status, body))

    assert type(error) is kind
    assert error.code == code
    assert "sk-" not in str(error)


async def test_the_upstreams_words_and_param_reach_the_client(behind: Any) -> None:
    error = await failure(behind, refuses(400, '{"error": {"message": "bad top_p", "param": "top_p"}}'))

    assert (str(error), error.param) == ("bad top_p", "top_p")


async def test_when_to_come_back_is_passed_on(behind: Any) -> None:
    assert (await failure(behind, refuses(429, "{}", retry_after="17"))).retry_after_s == 17
    assert (await failure(behind, refuses(429, "{}", retry_after="soon"))).retry_after_s == 1


async def test_messages_hold_no_key_address_or_path(behind: Any) -> None:
    body = (
        '{"error": {"message": "key s3cr3t-key of http://10.0.0.7:8000/v1 (10.0.0.7:8000) at /srv/models/x '
        'with Bearer abc\\u0000def and hf_abcdefgh12"}}'
    )

    text = str(await failure(behind, refuses(400, body), api_key=Secret("s3cr3t-key")))

    assert not [part for part in ("s3cr3t", "10.0.0.7", "/srv", "abc", "\0") if part in text], text


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (
            {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"},
            UncountedOverflow,
        ),
        ({"message": "busy", "type": "rate_limit_error"}, Overloaded),
        ({"message": "busy", "code": 503}, Unavailable),
        ({"message": "boom"}, EngineError),
        ("boom", EngineError),
    ],
)
async def test_an_error_event_before_the_first_token_is_of_its_kind(
    behind: Any, error: object, kind: type[ServeError]
) -> None:
    assert type(await failure(behind, sends(head(), event({"error": error})))) is kind


async def test_an_error_event_after_the_first_token_is_the_engines(behind: Any) -> None:
    stream = chat_event("hel"), event({"error": {"message": "bad", "type": "invalid_request_error"}})

    error = await failure(behind, sends(head(), *stream, pause_s=0.05))

    assert type(error) is EngineError
    assert "bad" in str(error)


async def test_a_filtered_answer_says_so(behind: Any) -> None:
    error = await failure(behind, sends(head(), chat_event("hel"), chat_event(finish="content_filter")))

    assert error.code == "content_filter"


async def test_silence_has_an_end(behind: Any) -> None:
    error = await failure(behind, sends(head() + chat_event("hel"), pause_s=30), read_timeout_s=0.1)

    assert isinstance(error, DeadlineExceeded)


async def test_a_stream_that_goes_on_is_not_silent(behind: Any) -> None:
    pieces = [chat_event(str(number)) for number in range(12)]

    async with behind(sends(head(), *pieces, WHOLE, pause_s=0.05), read_timeout_s=0.3) as (engine, _):
        assert (await answer_of(engine))[-1].finish_reason == "stop"


async def test_nobody_there_is_unavailable_and_no_end_of_the_engine(opened: Any) -> None:
    async with opened("http://127.0.0.1:9/v1", "m", lazy=True) as engine:
        for _ in range(3):
            with pytest.raises(Unavailable) as caught:
                await answer_of(engine)
            assert "127.0.0.1" not in str(caught.value)

        assert engine.fatal_error is None
        assert any("does not answer" in note for note in engine.info.notes)


async def test_an_upstream_that_comes_back_is_used_again(behind: Any) -> None:
    answers = iter([refuses(503, "")] * 3 + [sends(head(), WHOLE)])

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        await next(answers)(request, writer)

    async with behind(handler) as (engine, _):
        for _ in range(3):
            with pytest.raises(Unavailable):
                await answer_of(engine)
        away = engine.info.notes
        await answer_of(engine)

        assert len(engine.info.notes) == len(away) - 1


async def test_connections_are_kept(behind: Any) -> None:
    async with behind(sends(head(content_length=str(len(WHOLE))), WHOLE, close=False)) as (engine, upstream):
        for _ in range(3):
            await answer_of(engine)

        assert upstream.connections == 1


async def test_a_kept_connection_that_was_closed_meanwhile_is_no_error(behind: Any) -> None:
    length = str(len(WHOLE))
    answers = iter([sends(head(content_length=length), WHOLE, close=False), sends(close=True), sends(head(), WHOLE)])

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        await next(answers)(request, writer)

    async with behind(handler) as (engine, upstream):
        await answer_of(engine)
        await answer_of(engine)

        assert (upstream.connections, len(upstream.requests)) == (2, 3)


async def test_leaving_closes_the_connection_at_once(behind: Any) -> None:
    async with behind(sends(head() + chat_event("hel"), pause_s=30)) as (engine, upstream):
        stream = engine.generate_stream(asking())
        await anext(stream)
        await stream.aclose()

        async with asyncio.timeout(PATIENCE_S):
            await upstream.left.wait()
        assert engine.current_load().running == 0


async def test_closing_the_engine_ends_its_answers(opened: Any, behind: Any) -> None:
    async with behind(sends(head() + chat_event("hel"), pause_s=30)) as (engine, _):
        stream = engine.generate_stream(asking())
        await anext(stream)
        await engine.__aexit__()

        with pytest.raises(EngineError):
            await anext(stream)


async def test_stop_strings_are_cut_off_even_if_the_upstream_leaves_them_in(behind: Any) -> None:
    stream = chat_event("one tw") + chat_event("o three") + chat_event(finish="length", usage=(1, 9)) + DONE

    async with behind(sends(head(), stream, pause_s=0.01)) as (engine, _):
        chunks = await answer_of(engine, asking(sampling=SamplingParams(stop=("two",))))

    assert "".join(chunk.text for chunk in chunks) == "one "
    assert (chunks[-1].finish_reason, chunks[-1].stop_match) == ("stop", "two")


async def test_a_short_header_of_ours_is_no_secret_to_be_struck_out(behind: Any) -> None:
    body = '{"error": {"message": "temperature must be at most 1, and team-red is over its share"}}'
    headers = {"x-tier": Secret("1"), "x-team": Secret("team-red")}

    error = await failure(behind, refuses(400, body), extra_headers=headers)

    assert str(error) == "temperature must be at most 1, and … is over its share"
