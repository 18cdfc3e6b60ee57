"""Histograms that cost a fraction of a microsecond to count into.

prometheus_client walks through all buckets and takes two locks for every figure, and a small request has four
of them. Everything here happens on one event loop, so a bucket is found by bisection and counted as it is;
prometheus_client still renders what was counted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

__all__ = ["Counts", "Histogram"]


class Counts:
    """The figures of one set of labels."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Per bucket, not cumulative; the last is for all above the highest bound."""
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count `value`; a bucket includes its upper bound."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Histogram:
    """One metric: `labels` gives what to count into.

    Args:
        bounds: Upper bounds of the buckets, ascending.
    """

    def __init__(
        self, name: str, help_: str, labels: tuple[str, ...], bounds: tuple[float, ...], registry: CollectorRegistry
    ) -> None:
        self._name, self._help, self._labels, self._bounds = name, help_, labels, bounds
        self._shown = [*map(floatToGoString, bounds), "+Inf"]
        self._children: dict[tuple[str, ...], Counts] = {}
        registry.register(self)

    def labels(self, *values: str) -> Counts:
        """Keep what this returns: looking it up costs more than counting."""
        return self._children.setdefault(values, Counts(self._bounds))

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        for values, child in self._children.items():
            seen, buckets = 0, []
            for bound, count in zip(self._shown, child.counts, strict=True):
                seen += count
                buckets.append((bound, seen))
            family.add_metric(values, buckets, child.total)
        yield family
