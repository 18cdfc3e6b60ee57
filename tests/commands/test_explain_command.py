"""``fastchat-serve explain``."""

from __future__ import annotations

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
    assert "no choice" in row
    assert "chosen" in row


def test_a_request_that_nobody_remembers_is_one_line_and_exit_code_1(run, url):
    done = run("explain", "never/was?", "--url", url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("fastchat-serve: Nothing is remembered here of a request 'never/was?'.")
    assert done.stderr.endswith(" Ask the API process that answered it.\n")
