"""Messages between the server and the host."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from sglang_answers import asking

from fastchat_backend_sglang import SglangOptions
from fastchat_backend_sglang.faults import as_error, as_fault, from_abort, from_exception
from fastchat_backend_sglang.link import (
    Abort,
    Answer,
    Connection,
    Ended,
    FromHost,
    Generate,
    Open,
    Opened,
    Piece,
    ToHost,
    decoder,
    frame,
    receive,
    send,
)
from fastchat_serve import (
    Capability,
    Chunk,
    ContextOverflow,
    Embeddings,
    EngineError,
    EngineInfo,
    InvalidRequest,
    JsonSchema,
    Regex,
    TokenLogprob,
    Usage,
)

LENGTH = 4

TO_HOST = [
    Open("demo", SglangOptions(adapters={"a": Path("adapters/a")}, extra={"schedule_policy": "lpm"})),
    Generate(3, asking(logit_bias={1: -2.0}, constraint=JsonSchema({"type": "object"}), tenant="ümlaut")),
    Abort(3),
]
FROM_HOST = [
    Opened(EngineInfo(context_length=8, capabilities=frozenset({Capability.CHAT}), adapters=("a",))),
    Piece(3, Chunk(text="x", token_ids=(1,), logprobs=(TokenLogprob(1, "x", b"x", -0.5),), usage=Usage(1, 2))),
    Answer(4, Embeddings(b"\0" * 8, 2, 1)),
    Answer(5, (1, 2, 3)),
    Answer(6, "text"),
    Ended(3, as_fault(ContextOverflow(limit=8, prompt_tokens=9))),
]


@pytest.mark.parametrize("message", TO_HOST, ids=lambda message: type(message).__name__)
def test_what_the_server_says_arrives_as_it_was(message: ToHost) -> None:
    assert decoder(ToHost).decode(frame(message)[LENGTH:]) == message


@pytest.mark.parametrize("message", FROM_HOST, ids=lambda message: type(message).__name__)
def test_what_the_host_says_arrives_as_it_was(message: FromHost) -> None:
    assert decoder(FromHost).decode(frame(message)[LENGTH:]) == message


def test_a_host_without_an_event_loop_can_talk() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(frame(TO_HOST[0]))
        assert receive(theirs) == TO_HOST[0]
        send(theirs, FROM_HOST[0])
        assert decoder(FromHost).decode(ours.recv(65536)[LENGTH:]) == FROM_HOST[0]
        ours.close()
        with pytest.raises(EOFError):
            receive(theirs)


@pytest.mark.anyio
@pytest.mark.parametrize("piece", [1, 3, 7, 10_000])
async def test_messages_are_whole_however_they_are_cut(piece: int) -> None:
    ours, theirs = socket.socketpair()
    arrived: list[Any] = []
    lost = asyncio.Event()
    await Connection.over(ours, FromHost, arrived.append, lost.set)
    data = b"".join(map(frame, FROM_HOST))

    def dribble() -> None:
        for start in range(0, len(data), piece):
            theirs.sendall(data[start : start + piece])
        theirs.close()

    threading.Thread(target=dribble).start()
    async with asyncio.timeout(30):
        await lost.wait()
    assert arrived == FROM_HOST


def test_an_error_keeps_its_class_and_attributes() -> None:
    error = ContextOverflow(limit=8, prompt_tokens=9, param="prompt")
    copy = as_error(as_fault(error))
    assert type(copy) is ContextOverflow
    assert (str(copy), copy.param, copy.code) == (str(error), "prompt", "context_length_exceeded")


def test_sglangs_own_refusal_names_its_field() -> None:
    error = from_exception(ValueError("repetition_penalty must be in (0, 2], got 3.0."))
    assert isinstance(error, InvalidRequest)
    assert error.param == "repetition_penalty"


def test_a_foreign_failure_is_not_shown_to_clients() -> None:
    error = from_exception(RuntimeError("/home/somebody/secret"))
    assert isinstance(error, EngineError)
    assert "secret" not in str(error)


def test_an_answer_given_up_says_whose_fault_it_was() -> None:
    refused = from_abort({"status_code": 400, "message": "Failed to compile\n regex grammar"}, blame=Regex("("))
    assert isinstance(refused, InvalidRequest)
    assert (str(refused), refused.param) == ("Failed to compile regex grammar", "structured_outputs.regex")
    assert isinstance(from_abort({"type": "abort"}, blame=None), EngineError)
