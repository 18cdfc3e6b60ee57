"""Messages of a link: what they mean is the same at the other end, of whatever kind it is there."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fastchat_serve import errors
from fastchat_serve.errors import ContextOverflow, EngineError, ModelNotFound, Overloaded, ServeError, shutting_down
from fastchat_serve.protocol.frames import FrameReader, LinkBroken, frame
from fastchat_serve.protocol.link import Ended, Fault, FromHost, Statement


@pytest.mark.parametrize(
    "error",
    [
        ContextOverflow(limit=10, prompt_tokens=9, max_tokens=5),
        ModelNotFound("gone"),
        *(
            kind("It is so.", param="n", code="odd", retry_after_s=2.5)
            for kind in vars(errors).values()
            if isinstance(kind, type) and issubclass(kind, ServeError) and kind not in (ContextOverflow, ModelNotFound)
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_same_at_the_other_end(error: ServeError) -> None:
    (ended,) = FrameReader(list[FromHost]).feed(frame([Ended(1, Fault.of(error))]))
    assert isinstance(ended, Ended)
    assert ended.fault is not None
    there = ended.fault.error()
    assert type(there) is type(error)
    assert (there.to_openai(), there.retry_after_s) == (error.to_openai(), error.retry_after_s)


def test_a_plugins_own_kind_of_error_is_the_one_of_ours_that_it_is() -> None:
    class Busy(Overloaded):
        """Of a plugin."""

    fault = Fault.of(Busy("later", retry_after_s=3.0))
    there = fault.error()
    assert (type(there), there.status, there.retry_after_s) == (Overloaded, 429, 3.0)


def test_that_a_process_goes_down_is_told_by_a_kind_that_every_release_knows() -> None:
    fault = Fault.of(shutting_down())
    assert fault == Fault("Unavailable", "The server is shutting down.", "shutting_down", None, 1.0)


def test_an_error_of_an_unknown_kind_is_the_engines() -> None:
    assert type(Fault("Config", "no", None, None, None).error()) is EngineError


@pytest.mark.parametrize(
    "wrong",
    [{"names": ()}, {"slots": -1}, {"back_in_s": float("nan")}, {"back_in_s": float("inf")}, {"protocol_errors": -1}],
    ids=["no names", "slots", "never back", "back at no time", "errors"],
)
def test_what_no_worker_can_be_is_no_statement(wrong: dict[str, Any]) -> None:
    said = Statement("w", ("m",), (), 1.0, "ready", "", None, "", 1, 0, 0, 0, 0.0)
    assert FrameReader(list[FromHost]).feed(frame([said])) == [said]
    with pytest.raises(LinkBroken):
        FrameReader(list[FromHost]).feed(frame([msgspec.structs.replace(said, **wrong)]))
