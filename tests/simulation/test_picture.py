"""The picture of outcomes: well-formed, one curve for each policy, and equal for equal outcomes."""

from __future__ import annotations

from array import array
from xml.etree import ElementTree

from fastchat_serve.simulation.outcome import Outcome
from fastchat_serve.simulation.picture import blocks, svg


def an_outcome(policy: str = "<mine>", slowest: float = 2.0) -> Outcome:
    times = array("d", [slowest * number / 1000 for number in range(1, 1001)])
    return Outcome(policy=policy, first_token_s=times, loads=[6.0, 3.0, 3.0])


def test_it_has_a_curve_for_each_policy_in_both_charts() -> None:
    picture = svg([an_outcome(), an_outcome("other", 8.0)])
    tree = ElementTree.fromstring(picture)
    curves = [element for element in tree.iter() if element.tag.endswith("polyline")]
    assert len(curves) == 4
    assert "&lt;mine&gt;" in picture
    assert picture == svg([an_outcome(), an_outcome("other", 8.0)])


def test_it_can_be_drawn_of_nothing() -> None:
    ElementTree.fromstring(svg([Outcome(policy="idle", loads=[0.0])]))


def test_blocks_show_the_mean_at_half_their_height() -> None:
    assert blocks([1.0, 1.0, 1.0]) == "▄▄▄"
    assert blocks([9.0, 0.0, 0.0]) == "█▁▁"
    assert blocks([0.0]) == ""
    assert len(blocks([1.0] * 10_000)) == 24
