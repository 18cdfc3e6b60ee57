"""``fastchat-serve workers`` where some of them are of other processes."""

from __future__ import annotations

import json
from typing import Any


def card(**more: Any) -> dict[str, Any]:
    numbers = {"running": 0, "waiting": 0, "slots": 1, "queue_limit": 0, "kv_used_fraction": 0.0}
    return {"id": "echo-1", "models": ["echo"], "state": "ready", "context_length": None} | numbers | more


def test_the_nodes_of_workers_are_named_as_the_log_names_them(run, foreign_server):
    there = card(id="echo-2", node="0123456789abcdef", address="http://10.0.0.3:8001", notes=["a remark"])
    listed = json.dumps({"workers": [card(), there]})
    head, own, remote = run("workers", "--url", foreign_server(200, "application/json", listed)).stdout.splitlines()
    assert head.split()[-2:] == ["node", "remarks"]
    assert remote.split()[-5:] == ["01234567", "at", "http://10.0.0.3:8001", "a", "remark"]
    assert "at" not in own


def test_where_all_are_of_one_process_no_node_is_shown(run, foreign_server):
    listed = json.dumps({"workers": [card()]})
    head, _ = run("workers", "--url", foreign_server(200, "application/json", listed)).stdout.splitlines()
    assert "node" not in head
