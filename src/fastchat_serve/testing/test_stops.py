"""Stop strings: nothing of them is sent, wherever tokens and chunks are cut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastchat_serve.engine import Capability
from fastchat_serve.testing.answers import Answer
from fastchat_serve.testing.marks import in_both_forms, needs
from fastchat_serve.testing.subject import Subject

pytestmark = needs(Capability.GENERATE)

MOST = 10
"""Stop strings to try, each by itself."""

NEVER = "\x07\x07"


async def stopped(subject: Subject, whole: Answer, *stops: str, form: str = "generator") -> Answer:
    """The answer with `stops`, after the checks that hold for all of them."""
    answer = await subject.answer(subject.again(whole.request, stop=stops), form)
    at = min((found for stop in stops if (found := whole.text.find(stop)) >= 0), default=None)
    assert all(stop not in answer.text for stop in stops), "a stop string is in the text"
    if at is None:
        subject.expect_equal(answer.text, whole.text, "an answer that holds no stop string")
        subject.expect_equal(answer.finish_reason, whole.finish_reason, "its finish reason")
        return answer
    subject.expect_equal(answer.text, whole.text[:at], f"the text before {stops!r}")
    subject.expect_equal(answer.finish_reason, "stop", "the finish reason")
    if answer.finish_reason == "stop" and answer.text == whole.text[:at]:
        assert answer.stop_match in [stop for stop in stops if whole.text.startswith(stop, at)]
    return answer


def across_cuts(whole: Answer) -> Iterator[str]:
    """Pieces of the text with the end of a chunk within, and where they are met first."""
    seen = set()
    for before, after in ((1, 1), (2, 3), (5, 1), (1, 6)):
        for cut in whole.cuts:
            stop = whole.text[max(cut - before, 0) : cut + after]
            if stop.strip() and stop not in seen and whole.text.find(stop) + len(stop) > cut:
                seen.add(stop)
                yield stop


def some(stops: list[str]) -> list[str]:
    """At most `MOST`, evenly from all."""
    return stops[:: max(1, -(-len(stops) // MOST))]


@in_both_forms
async def test_across_chunks(subject: Subject, form: str) -> None:
    """A stop string that begins in one chunk and ends in another ends the answer, and no part of it is sent."""
    whole = await subject.baseline(characters=12)
    stops = some(list(across_cuts(whole)))
    if not stops:
        pytest.skip("the answer is one chunk")
    for stop in stops:
        await stopped(subject, whole, stop, form=form)
    subject.note(f"{len(stops)} stop strings")


@in_both_forms
async def test_anywhere(subject: Subject, form: str) -> None:
    """A stop string ends the answer at its start, in its middle and at its very end."""
    whole = await subject.baseline(characters=12)
    text = whole.text
    middle = len(text) // 2
    for stop in (text[:1], text[:4], text[middle : middle + 3], text[-4:], text[-1:]):
        await stopped(subject, whole, stop, form=form)


async def test_the_first_of_several(subject: Subject) -> None:
    """Of several stop strings the one that is met first ends the answer."""
    whole = await subject.baseline(characters=12)
    text = whole.text
    third = len(text) // 3
    await stopped(subject, whole, text[2 * third : 2 * third + 3], text[third : third + 3], NEVER)
    await stopped(subject, whole, NEVER, text[third : third + 3], text[2 * third : 2 * third + 3])


async def test_prefixes_of_each_other(subject: Subject) -> None:
    """A stop string may begin as another does: neither leaks, and a beginning that comes to nothing is sent."""
    whole = await subject.baseline(characters=12)
    middle = len(whole.text) // 2
    piece = whole.text[middle : middle + 5]
    await stopped(subject, whole, piece, piece[:3])
    await stopped(subject, whole, piece + NEVER, piece[:2])
    await stopped(subject, whole, piece + NEVER, piece[1:4])


@in_both_forms
async def test_a_near_miss_is_sent(subject: Subject, form: str) -> None:
    """What only begins as a stop string does is held back and then sent, also at the end."""
    whole = await subject.baseline(characters=12)
    for start in (0, 3, len(whole.text) // 2, len(whole.text) - 4):
        await stopped(subject, whole, whole.text[start : start + 4] + NEVER, form=form)


async def test_usage_counts_up_to_the_match(subject: Subject) -> None:
    """Usage counts the tokens drawn until the stop string was complete, no fewer than its text needs."""
    whole = await subject.baseline(characters=12)
    middle = len(whole.text) // 2
    answer = await stopped(subject, whole, whole.text[middle : middle + 3])
    assert 1 <= answer.usage.completion_tokens <= whole.usage.completion_tokens
    if subject.can(Capability.TOKEN_IDS):
        assert answer.usage.completion_tokens == len(answer.token_ids)
        drawn = len(answer.token_ids)
        subject.expect_equal(answer.token_ids, whole.token_ids[:drawn], "the ids before a stop string")


async def test_nothing_comes_after(subject: Subject) -> None:
    """The chunk in which a stop string is found is the last, and the engine lets go at once."""
    whole = await subject.baseline(characters=12)
    sink = await subject.push(subject.again(whole.request, stop=(whole.text[2:4],)))
    sink.answer.whole()
    assert sink.faults == []
    assert [chunk.finish_reason for chunk in sink.answer.chunks[:-1]] == [None] * (len(sink.answer.chunks) - 1)
    await subject.idle()
