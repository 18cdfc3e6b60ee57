"""Frames of a link: however they are cut, whatever they hold, and whatever else comes in their place."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastchat_serve import Chunk, GenerateRequest, SamplingParams, TextPrompt, TokenLogprob, Usage
from fastchat_serve.errors import EngineError
from fastchat_serve.protocol import frames
from fastchat_serve.protocol.frames import FrameReader, LinkBroken, frame, framed, written
from fastchat_serve.protocol.link import Abort, Delta, Deltas, Ended, Fault, FromCaller, FromHost, Generate, Piece

DELTAS = Deltas([Delta(1, "é😀", (7, 8)), Delta(2, "", ())])
LAST = Piece(
    1,
    Chunk(
        text="x",
        logprobs=(TokenLogprob(3, "x", b"\xff", -0.5, (TokenLogprob(4, "y", b"y", -1.0),)),),
        finish_reason="stop",
        stop_match=3,
        usage=Usage(1, 2),
    ),
)
ASKED = Generate(
    1,
    "worker",
    GenerateRequest(
        id="r", prompt=TextPrompt("hi"), sampling=SamplingParams(logit_bias={5: 1.5}, seed=2**63), resume_token_ids=(1,)
    ),
)


@given(st.data())
def test_messages_arrive_whole_however_their_bytes_are_cut(data: st.DataObject) -> None:
    sent: list[Any] = [DELTAS, LAST, Ended(1, Fault.of(EngineError("broken")))]
    stream = frame(sent) + frame([DELTAS])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    reader = FrameReader(list[FromHost])
    parts = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [message for part in parts for message in reader.feed(part)] == [*sent, DELTAS]


def test_a_request_arrives_as_it_was_sent() -> None:
    assert FrameReader(list[FromCaller]).feed(frame([ASKED, Abort(1)])) == [ASKED, Abort(1)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"not a list",
        msgspec.msgpack.encode([["Nonsense", 1]]),
        msgspec.msgpack.encode([["Abort", "one"]]),
        msgspec.msgpack.encode([["Text", 1]]) + b"more",
        b"\x91" * 100_000 + b"\x90",
        bytes(written([Abort(1)])),
    ],
    ids=["empty", "reserved", "text", "unknown", "types", "trailing", "deep", "of the other end"],
)
def test_what_cannot_be_read_breaks_the_link(body: bytes) -> None:
    with pytest.raises(LinkBroken):
        FrameReader(list[FromHost]).feed(framed(body))


def test_a_frame_is_refused_by_its_length_before_it_is_read() -> None:
    with pytest.raises(LinkBroken, match="too long"):
        FrameReader(list[FromHost]).feed(framed(bytes(frames.MAX_FRAME_BYTES + 1))[:12])


@pytest.mark.parametrize("bit", range(8 * len(frame([DELTAS]))))
def test_f43_a_frame_with_any_bit_flipped_breaks_the_link_before_anything_of_it_is_passed_on(bit: int) -> None:
    damaged = bytearray(frame([DELTAS]))
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(LinkBroken, match="damaged"):
        FrameReader(list[FromHost]).feed(bytes(damaged))


def test_a_frame_that_is_too_long_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 100)
    with pytest.raises(LinkBroken):
        frame([ASKED])
