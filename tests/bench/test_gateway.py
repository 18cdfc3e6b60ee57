"""The gateway benchmark without its harness: what is missing is said, and what was measured is judged."""

from __future__ import annotations

import math
import socket
import sys
from pathlib import Path

import msgspec
import pytest

from tests.bench.gateway import WORKLOADS, measure, report
from tests.bench.harness import SCRIPTS, Cell, HarnessError, Peer, running
from tests.bench.report import Plan, Report, Verdict
from tests.ports import free_port

PLAIN = Cell(secs=2.0, requests=20_000, rps=10_000.0, cpu_pct=80.0, rss_mb=50.0, other_cpu_pct=5.0, fails=0)

LOAD_GENERATOR = """
import json, sys
print(json.dumps(
    {"name": "", "secs": 2, "requests": 100, "rps": 50, "cpu_pct": 1, "rss_mb": 9, "other_cpu_pct": 0, "fails": 0}
    | {"why": {" ".join(sys.argv[1:]): 1}}
))
"""
PEERS_SH = """
mkdir -p run
case $1 in
start)
    sleep 60 >/dev/null 2>&1 & echo $! > run/$2.pids
    if [ $2 = broken ]; then echo "no such library" > run/$2.log; echo "not up" >&2; fi
    ;;
stop) kill $(cat run/$2.pids); rm run/$2.pids ;;
esac
"""


def a_stream(cpu_us_per_token: float, *, lag_p99: float = 3.0, rss_mb: float = 80.0) -> Cell:
    """One second of 50,000 tokens."""
    return Cell(
        secs=1.0,
        requests=0,
        rps=0.0,
        tok_s=50_000.0,
        cpu_pct=cpu_us_per_token * 5,
        lag_p99=lag_p99,
        rss_mb=rss_mb,
        other_cpu_pct=0.0,
        fails=0,
    )


def verdicts(report: Report, workload: str) -> dict[str, Verdict]:
    """Those of one workload, by what they are about."""
    found = ((*verdict.what.partition(": ")[::2], verdict) for verdict in report.verdicts)
    return {what: verdict for name, what, verdict in found if name == workload}


def test_without_a_harness_the_report_says_where_it_was_looked_for(tmp_path: Path) -> None:
    plan = Plan(rounds=1, quick=True, harness=tmp_path / "nowhere", progress=lambda what: None)

    found = measure(plan)

    (note,) = found.notes
    assert str(tmp_path / "nowhere") in note
    assert not found.tables


def test_cost_per_unit_is_in_milliseconds_for_requests_and_microseconds_for_tokens() -> None:
    assert PLAIN.cpu_per_unit == pytest.approx(0.08)
    assert a_stream(7.5).cpu_per_unit == pytest.approx(7.5)


def test_a_server_that_answered_nothing_costs_infinitely_much() -> None:
    assert msgspec.structs.replace(PLAIN, requests=0).cpu_per_unit == math.inf
    assert msgspec.structs.replace(a_stream(7.5), tok_s=0.0).cpu_per_unit == math.inf


def test_medians_over_the_rounds_are_judged_as_ratios() -> None:
    cells = {
        ("paced-1000", "fastchat-serve"): [a_stream(6.0), a_stream(8.0), a_stream(100.0)],
        ("paced-1000", "mock"): [a_stream(5.0)] * 3,
        ("paced-1000", "sglang-router"): [a_stream(9.0)] * 3,
    }

    found = verdicts(report(cells, []), "paced-1000")

    assert found["ours / mock"].measured == pytest.approx(1.6)
    assert found["ours / mock"].met
    assert not found["ours / mock"].stretch_met
    assert found["sglang-router / ours"].measured == pytest.approx(9 / 8)
    assert not found["sglang-router / ours"].met
    assert "nginx / ours" not in found  # it was not there


def test_lag_memory_and_failures_of_the_product_are_judged() -> None:
    rounds = [a_stream(6.0, lag_p99=7.0, rss_mb=120.0), a_stream(6.0, lag_p99=5.0, rss_mb=120.0)]

    cells = {("paced-1000", "fastchat-serve"): rounds, ("paced-1000", "mock"): [a_stream(5.0, lag_p99=4.0)]}

    found = verdicts(report(cells, []), "paced-1000")

    assert found["token lag p99"].met  # of the best round
    assert found["token lag p99 beyond the mock's own"].measured == pytest.approx(1.0)
    assert not found["RSS"].met
    assert found["failures"].met


def test_every_table_has_the_same_columns_in_all_its_rows() -> None:
    cells = {("chat-c32", "fastchat-serve"): [PLAIN], ("paced-256", "mock"): [a_stream(1.0)]}

    for rows in report(cells, []).tables.values():
        assert len({tuple(row) for row in rows}) <= 1


def test_why_requests_failed_is_told() -> None:
    failed = msgspec.structs.replace(a_stream(1.0), fails=2, why={"HTTP 502": 2})
    cells = {("paced-256", "nginx"): [failed]}

    assert "nginx, paced-256: HTTP 502" in report(cells, []).notes


@pytest.mark.skipif(sys.platform != "linux", reason="the harness is for Linux")
def test_the_harness_is_copied_started_asked_and_stopped(tmp_path: Path) -> None:
    folder = a_harness(tmp_path)
    with running(folder, [a_peer("mock"), a_peer("nearby")]) as harness:
        mock, nearby = harness.peers
        cell = harness.measure(nearby.url, "chat-c32", pids=harness.pids(nearby), options={"secs": 1.5})
        at_mock = harness.measure(mock.url, "chat-c32", pids=harness.pids(mock), options={})
        pids = [int(harness.pids(peer)) for peer in harness.peers]
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)

    (asked,), (asked_at_mock,) = cell.why, at_mock.why
    assert f"--target {nearby.url} --workload chat-c32 --pid {pids[1]} --mock-pid {pids[0]} --secs 1.5" in asked
    assert asked_at_mock.endswith(f"--pid {pids[0]} --mock-pid ")
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not (folder / "run").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the harness is for Linux")
def test_a_peer_that_does_not_start_is_named_with_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(HarnessError, match="broken did not start: no such library"),
        running(a_harness(tmp_path), [a_peer("mock"), a_peer("broken")]),
    ):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="the harness is for Linux")
def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        peer = Peer(name="mock", service="mock", port=taken.getsockname()[1])
        with pytest.raises(HarnessError, match=str(peer.port)), running(a_harness(tmp_path), [peer]):
            pass


def test_every_workload_has_a_bar() -> None:
    assert {workload.name for workload in WORKLOADS} == {
        "chat-c32",
        "stream-c32",
        "paced-1000",
        "paced-256",
        "prompt100k-c8",
    }
    for workload in WORKLOADS:
        bar, stretch = workload.at_least["sglang-router"]
        assert bar < stretch


def a_peer(service: str) -> Peer:
    return Peer(name=service, service=service, port=free_port())


def a_harness(folder: Path) -> Path:
    """Stands in for the real one, which is not part of this repository."""
    (folder / "apps").mkdir()
    for script in SCRIPTS:
        (folder / script).touch()
    (folder / "gateway_bench.py").write_text(LOAD_GENERATOR)
    (folder / "peers.sh").write_text(PEERS_SH)
    return folder
