"""Virtual time goes from event to event, and only there."""

from __future__ import annotations

from fastchat_serve.simulation.timeline import Timeline


def test_events_happen_by_time_and_those_of_one_time_in_the_order_they_were_planned() -> None:
    timeline, seen = Timeline(), []

    def note(what: str) -> None:
        seen.append((timeline.now, what))

    timeline.at(2.0, note, "later")
    timeline.at(1.0, note, "first")
    timeline.at(1.0, timeline.after, 0.0, note, "planned meanwhile")
    timeline.at(1.0, note, "second")
    timeline.run(until=lambda: False)
    assert seen == [(1.0, "first"), (1.0, "second"), (1.0, "planned meanwhile"), (2.0, "later")]
    assert timeline.clock() == 2.0


def test_what_is_planned_for_the_past_happens_now_and_the_clock_never_goes_back() -> None:
    timeline, seen = Timeline(), []
    timeline.at(5.0, lambda: timeline.at(1.0, lambda: seen.append(timeline.now)))
    timeline.run(until=lambda: False)
    assert seen == [5.0]


def test_it_stops_when_it_is_told_that_it_is_enough() -> None:
    timeline, seen = Timeline(), []
    for number in range(10):
        timeline.at(number, seen.append, number)
    timeline.run(until=lambda: len(seen) == 3)
    assert seen == [0, 1, 2]
