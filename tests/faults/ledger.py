"""How requests end, by what their clients saw (G1, G2): whole, or with one error that can be parsed."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from tests.end_to_end.raw import Reply, events, expect_error, post

__all__ = ["Ending", "completion", "ending"]


class Ending(Struct, frozen=True):
    """`code`: of the error; empty if the answer is whole."""

    text: str
    code: str = ""


def completion(prompt: str, *, authorization: str = "", **more: Any) -> bytes:
    """A request for as many tokens as there are."""
    body = {"model": "faulty", "prompt": prompt, "max_tokens": 10_000, "stream": True} | more
    return post("/v1/completions", body, authorization=authorization)


def ending(reply: Reply) -> Ending:
    """How a completion with one choice ended, streamed or not; fails if it did not end exactly once."""
    if reply.status != 200:
        return Ending("", expect_error(reply, reply.status)["code"])
    if reply.headers["content-type"] == "application/json":
        (choice,) = reply.json()["choices"]
        assert choice["finish_reason"] in ("stop", "length")
        return Ending(choice["text"])
    *chunks, end = events(reply.body)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    finishes = [choice["finish_reason"] for choice in choices if choice["finish_reason"] is not None]
    text = "".join(choice["text"] for choice in choices)
    if end == "[DONE]":
        assert len(finishes) == 1
        assert choices[-1]["finish_reason"] in ("stop", "length")
        return Ending(text)
    assert finishes == []
    assert set(end) == {"error"}
    assert set(end["error"]) == {"message", "type", "param", "code"}
    return Ending(text, end["error"]["code"])
