"""Outcomes as a picture: an SVG of two charts, and a line of blocks for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final
from xml.sax.saxutils import escape

from fastchat_serve.simulation.outcome import Outcome, quantile

__all__ = ["blocks", "svg"]

_COLOURS: Final = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")
_WIDTH: Final = 460
_HEIGHT: Final = 300
_MARGIN: Final = 60
_POINTS: Final = 100
_BLOCKS: Final = "▁▂▃▄▅▆▇█"

Curve = Callable[[Outcome, float], float]
"""The height of a policy's curve at a share of the way from left to right."""


def blocks(loads: Sequence[float], width: int = 24) -> str:
    """Loads, the most first, as blocks of which half the height is the mean."""
    mean = sum(loads) / len(loads) if loads else 0.0
    if not mean:
        return ""
    width = min(width, len(loads))
    picked = (loads[number * len(loads) // width] for number in range(width))
    return "".join(_BLOCKS[min(7, max(0, math.ceil(4 * load / mean) - 1))] for load in picked)


def svg(outcomes: Sequence[Outcome]) -> str:
    """How long first tokens take, and how evenly the load is spread, a curve for each policy."""
    height = _HEIGHT + 2 * _MARGIN
    legend = "".join(
        f'<text x="{_MARGIN + 130 * (place % 7)}" y="20" fill="{_colour(place)}">{escape(outcome.policy)}</text>'
        for place, outcome in enumerate(outcomes)
    )
    waits = _chart(outcomes, _first_token, "time to first token, s", ("50 %", "90 %", "99 %", "99.9 %"))
    loads = _chart(outcomes, _load, "load of a worker, in means", ("the most", "", "", "the least"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * (_WIDTH + 2 * _MARGIN)}" height="{height}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{legend}'
        f'<g transform="translate({_MARGIN} {_MARGIN})">{waits}</g>'
        f'<g transform="translate({3 * _MARGIN + _WIDTH} {_MARGIN})">{loads}</g></svg>\n'
    )


def _chart(outcomes: Sequence[Outcome], curve: Curve, title: str, marks: Sequence[str]) -> str:
    shares = [number / _POINTS for number in range(_POINTS + 1)]
    heights = [[curve(outcome, share) for share in shares] for outcome in outcomes]
    top = max((max(line) for line in heights), default=0.0) or 1.0
    parts = [f'<text x="0" y="-12">{escape(title)}</text>']
    for part in range(5):
        y = _HEIGHT * (1 - part / 4)
        parts.append(f'<line x1="0" y1="{y:.1f}" x2="{_WIDTH}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="-8" y="{y + 4:.1f}" text-anchor="end">{top * part / 4:.3g}</text>')
    for place, mark in enumerate(marks):
        x = _WIDTH * place / (len(marks) - 1)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT + 20}" text-anchor="middle">{escape(mark)}</text>')
    for place, line in enumerate(heights):
        points = " ".join(
            f"{_WIDTH * share:.1f},{_HEIGHT * (1 - height / top):.1f}"
            for share, height in zip(shares, line, strict=True)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{_colour(place)}" stroke-width="2"/>')
    return "".join(parts)


def _first_token(outcome: Outcome, share: float) -> float:
    """From the median to the slowest of a thousand: each third of the way is about ten times as rare."""
    rare = (0.5, 0.1, 0.01, 0.001)
    place = min(2, int(share * 3))
    within = share * 3 - place
    return quantile(outcome.first_token_s, 1 - rare[place] ** (1 - within) * rare[place + 1] ** within)


def _load(outcome: Outcome, share: float) -> float:
    loads = outcome.loads
    mean = sum(loads) / len(loads)
    return loads[min(len(loads) - 1, int(share * len(loads)))] / mean if mean else 0.0


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]
