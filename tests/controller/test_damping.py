"""Who comes and goes is kept out ever longer, and who stays is steady again."""

from __future__ import annotations

from fastchat_serve.controller.damping import FREE, MOST_S, STEADY_S, Damping


def flapped(damping: Damping, times: int) -> list[float]:
    """How long after each of its losses, one a second, it was kept out."""
    out: list[float] = []
    for now in range(times):
        damping.lost("there", float(now), since=now - 0.3)
        out.append(max(0.0, damping.until("there") - now))
    return out


def test_a_few_short_lives_have_no_consequences_and_more_keep_it_out_ever_longer() -> None:
    assert flapped(Damping(), FREE + 7) == [0.0] * FREE + [1.0, 2.0, 4.0, 8.0, 16.0, MOST_S, MOST_S]


def test_who_stayed_for_a_while_is_steady_again() -> None:
    damping = Damping()
    flapped(damping, FREE + 3)
    damping.lost("there", 1000.0, since=1000.0 - STEADY_S)
    assert damping.until("there") == 0.0
    assert flapped(damping, FREE) == [0.0] * FREE


def test_one_place_has_no_part_in_the_troubles_of_another_and_all_are_forgotten() -> None:
    damping = Damping()
    flapped(damping, FREE + 3)
    assert damping.until("elsewhere") == 0.0
    damping.forget(1000.0)
    assert damping.until("there") == 0.0
