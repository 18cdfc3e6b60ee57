"""Our histograms against prometheus_client's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as Theirs

from fastchat_serve.routes.histogram import Histogram

BOUNDS = (0.001, 0.5, 1.0, 4.0, 1024.0)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(BOUNDS) | st.floats(0, 2000))))
def test_what_is_counted_is_rendered_as_prometheus_client_does(figures):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = Histogram("h_seconds", "Help.", ("model",), BOUNDS, ours)
    other = Theirs("h_seconds", "Help.", ["model"], buckets=BOUNDS, registry=theirs)
    for model, figure in figures:
        mine.labels(model).observe(figure)
        other.labels(model).observe(figure)

    assert lines(ours) == lines(theirs)


def lines(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
