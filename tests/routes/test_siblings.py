"""What several processes count is told as one's."""

from __future__ import annotations

from fastchat_serve.routes.siblings import merged

ONE = """
# HELP requests_total Requests.
# TYPE requests_total counter
requests_total{model="a"} 2.0
requests_total{model="b"} 1.0
# HELP took_seconds Time.
# TYPE took_seconds histogram
took_seconds_bucket{le="1.0"} 1.0
took_seconds_bucket{le="+Inf"} 2.0
took_seconds_count 2.0
took_seconds_sum 3.5
# HELP ready Whether.
# TYPE ready gauge
ready{worker="w"} 1.0
"""
OTHER = """
# HELP requests_total Requests.
# TYPE requests_total counter
requests_total{model="a"} 5.0
# HELP took_seconds Time.
# TYPE took_seconds histogram
took_seconds_bucket{le="1.0"} 4.0
took_seconds_bucket{le="+Inf"} 4.0
took_seconds_count 4.0
took_seconds_sum 1.0
# HELP ready Whether.
# TYPE ready gauge
ready{worker="w"} 0.0
"""


def test_counters_and_histograms_are_added_up_and_of_gauges_the_largest_counts() -> None:
    lines = merged([ONE, OTHER]).decode().splitlines()

    assert 'requests_total{model="a"} 7.0' in lines
    assert 'requests_total{model="b"} 1.0' in lines
    assert 'took_seconds_bucket{le="1.0"} 5.0' in lines
    assert "took_seconds_count 6.0" in lines
    assert "took_seconds_sum 4.5" in lines
    assert 'ready{worker="w"} 1.0' in lines
    assert "# TYPE took_seconds histogram" in lines


def test_what_all_of_them_see_of_one_worker_is_not_added_up() -> None:
    text = """
# HELP restarts_total Restarts.
# TYPE restarts_total counter
restarts_total{model="a",worker="w"} %s
"""
    lines = merged([text % 2, text % 3, text % 3]).decode().splitlines()

    assert 'restarts_total{model="a",worker="w"} 3.0' in lines
