"""``fastchat-serve explain``."""

from __future__ import annotations

import json

import httpx


def a_request(url, key="a-key-for-tests"):
    """The id of a request that was answered."""
    reply = httpx.post(
        f"{url}/v1/completions",
        json={"model": "echo", "prompt": "hi"},
        headers={"authorization": f"Bearer {key}"},
    )
    return reply.headers["x-request-id"]


def test_it_says_where_a_request_went(run, url):
    done = run("explain", a_request(url), "--url", url)
    assert done.returncode == 0
    heading, row = done.stdout.splitlines()[:2]
    assert heading.split()[:2] == ["decision", "worker"]
    assert "chosen: no other worker had this model" in row
    assert "queue" not in heading, "with nothing to compare, there are no columns for it"


def test_candidates_are_compared_as_far_as_they_are_known(run, foreign_server):
    candidates = [{"id": "a", "standing": "open", "score": 0, "speed": 2}, {"id": "b", "standing": "not ready"}]
    decision = {"request_id": "r", "at": 0, "model": "m", "policy": "shortest_queue", "chosen": "a", "others": 3}
    reply = json.dumps({"decisions": [decision | {"candidates": candidates}, decision]})
    done = run("explain", "r", "--url", foreign_server(200, "application/json", reply))

    heading, *rows = (line.split() for line in done.stdout.splitlines())
    assert heading == ["decision", "worker", "score", "queue", "tokens", "read", "speed"]
    assert rows[0][-7:] == ["a", "chosen", "0", "0", "0", "0", "2"]
    assert rows[1] == ["b", "not", "ready", "0", "0", "0"], "how fast it is, is not known"
    assert rows[2] == ["and", "3", "others"]
    assert " ".join(rows[3]).endswith("a chosen: what else there was is no longer known")


def test_a_request_that_nobody_remembers_is_one_line_and_exit_code_1(run, url):
    done = run("explain", "never/was?", "--url", url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("fastchat-serve: Nothing is remembered here of a request 'never/was?'.")
    assert done.stderr.endswith(" Ask the API process that answered it.\n")
