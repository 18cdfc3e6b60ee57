"""Chance that everybody can work out again."""

from __future__ import annotations

from statistics import fmean

from fastchat_serve import uniform


def test_a_draw_is_known_by_seed_and_position() -> None:
    """Numbers of an independent implementation (numpy, uint64) of the same definition."""
    assert uniform(0, 0) == 0.6524484863740322
    assert uniform(2**64 - 1, 5) == uniform(-1, 5)
    assert len({uniform(seed, position) for seed in range(50) for position in range(50)}) == 2500


def test_draws_are_even() -> None:
    drawn = [uniform(seed, position) for seed in range(100) for position in range(100)]

    assert 0 <= min(drawn) < 0.001
    assert 0.999 < max(drawn) < 1
    assert abs(fmean(drawn) - 0.5) < 0.01
    assert all(abs(sum(n / 10 <= value < (n + 1) / 10 for value in drawn) - 1000) < 120 for n in range(10))
