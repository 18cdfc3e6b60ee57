"""``fastchat-serve models`` and ``workers``."""

from __future__ import annotations

import json
import socket

import pytest

from fastchat_serve.commands import client

ERROR = '{"error": {"message": "Out of\\nservice.", "type": "x", "param": null, "code": null}}'


def test_models_are_listed_one_a_line(run, url):
    done = run("models", "--url", url)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["model", "echo", "slow"]
    assert "131,072" in done.stdout


def test_workers_are_listed_with_their_load(run, url):
    done = run("workers", "--url", url)
    assert done.returncode == 0
    echo, slow = done.stdout.splitlines()[1:]
    assert "ready" in echo
    assert "0 of 16" in echo
    assert "0 of 1 " in slow


@pytest.mark.parametrize(("command", "key"), [("models", "data"), ("workers", "workers")])
def test_json_is_the_reply_as_it_came(run, url, command, key):
    assert len(json.loads(run(command, "--url", url, "--json").stdout)[key]) == 2


def test_what_foreign_servers_leave_out_or_overdo_does_no_harm(run, foreign_server):
    card = {"id": "[red]m[/red]", "object": "model", "created": 10**17, "owned_by": "them"}
    done = run("models", "--url", foreign_server(200, "application/json", json.dumps({"data": [card]})))
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].split() == ["[red]m[/red]", "them"]


def test_in_a_terminal_the_table_has_a_frame(terminal, url):
    models = terminal("models", "--url", url)
    models.expect("┃ model ┃")
    models.expect("slow")
    assert models.wait() == 0


def test_a_key_that_is_missing_or_wrong_is_said_so_and_never_shown(run, url, monkeypatch):
    wrong = run("workers", "--url", url, "--api-key", "not-the-key")
    monkeypatch.delenv("OPENAI_API_KEY")
    without = run("models", "--url", url)
    for done in (without, wrong):
        assert (done.returncode, done.stdout) == (1, "")
        assert "a key with --api-key or in OPENAI_API_KEY" in done.stderr
        assert done.stderr.count("\n") == 1
    assert "not-the-key" not in wrong.stderr


def test_a_key_that_no_header_can_carry_is_refused_and_never_shown(run, url):
    done = run("models", "--url", url, "--api-key", "two\nlines")
    assert done.returncode == 2
    assert "two" not in done.stderr


@pytest.mark.parametrize("command", ["models", "workers"])
def test_no_server_is_one_clear_line(run, command):
    done = run(command, "--url", "http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("fastchat-serve: Cannot connect to http://127.0.0.1:1: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("status", "body", "complaint"),
    [
        (503, ERROR, "Out of service."),
        (502, "<html>Bad gateway</html>", "The server answered 502 Bad Gateway."),
        (200, "<html>Hello</html>", "is not what this command expects"),
        (200, '{"data": 1}', "is not what this command expects"),
    ],
)
def test_a_reply_of_another_kind_is_one_clear_line(run, foreign_server, status, body, complaint):
    done = run("models", "--url", foreign_server(status, "text/html", body))
    assert (done.returncode, done.stdout) == (1, "")
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_server_that_does_not_answer_is_not_waited_for_long(run, monkeypatch):
    monkeypatch.setattr(client, "REPLY_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = run("workers", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert done.returncode == 1
    assert done.stderr.endswith("did not answer in time.\n")
