"""What is said of processes that cannot be reached, again and again."""

from __future__ import annotations

import logging
import weakref

import pytest

from fastchat_serve.worker.complaints import Complaints


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_complaint_is_made_at_once_and_then_once_a_minute(caplog: pytest.LogCaptureFixture):
    clock = Clock()
    complaints = Complaints(clock)
    said = [complaints.say("No controller", "nothing listens there") for clock.now in range(180)]
    assert (len(caplog.records), said.count(True)) == (3, 3), "and whoever complains knows of it"


def test_problems_that_come_by_turns_are_told_once_a_minute_each(caplog: pytest.LogCaptureFixture):
    """As one is refused by a router now and then, and not answered otherwise."""
    clock = Clock()
    complaints = Complaints(clock)
    for clock.now in range(120):
        complaints.say("No controller", ("it does not answer", "it cannot be reached")[int(clock.now) % 2])
    assert len(caplog.records) == 4


def test_what_went_well_in_between_is_complained_of_anew(caplog: pytest.LogCaptureFixture):
    complaints = Complaints(Clock())
    complaints.say("No controller", "nothing listens there")
    complaints.forget("No controller")
    complaints.say("No controller", "nothing listens there")
    assert len(caplog.records) == 2


def test_what_nobody_complains_of_any_more_is_forgotten(caplog: pytest.LogCaptureFixture):
    """Nodes have a new id each time they start."""
    caplog.set_level(logging.ERROR)  # else the log remembers them

    class Remembered(str):
        """A string that can be watched."""

    clock, said = Clock(), []
    complaints = Complaints(clock)
    for clock.now in range(0, 600, 10):
        about = Remembered(f"Node {clock.now} cannot be called")
        said.append(weakref.ref(about))
        complaints.say(about, "nothing listens there")
        del about
    assert sum(about() is not None for about in said) <= 12, "those of two minutes at most"


def test_a_peers_own_words_make_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    Complaints(Clock()).say("about", "no\n2026-01-01 INFO all is well\r\n" + "x" * 5000)

    (line,) = caplog.messages
    assert line.startswith("about: no 2026-01-01 INFO all is well xxx")
    assert len(line) < 1100
