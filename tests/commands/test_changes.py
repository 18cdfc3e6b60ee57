"""``fastchat-serve drain`` and ``models load|unload|reload|alias|unalias``, with a real server."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

TOKEN = "a-token-for-tests"
NOBODY = "http://127.0.0.1:1"
CONFIG = f"""
[server]
port = 0
[cluster]
token = "{TOKEN}"
[controller]
[api]
[[worker]]
backend = "echo"
names = ["echo"]
"""


class Server(subprocess.Popen[str]):
    """A server of the test's own."""

    def __init__(self, config: Path) -> None:
        command = [sys.executable, "-m", "fastchat_serve", "--config", str(config)]
        super().__init__(command, stderr=subprocess.PIPE, encoding="utf-8")
        assert self.stderr is not None
        lines = iter(self.stderr.readline, "")
        self.url = next(match[1] for line in lines if (match := re.search(r"Serving .* at (http://\S+)", line)))
        threading.Thread(target=lambda: [None for _ in lines], daemon=True).start()


@pytest.fixture
def started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> Iterator[Callable[[str], Server]]:
    """``started(toml)``: such a server; commands have its token."""
    environ["FASTCHAT_TOKEN"] = TOKEN
    monkeypatch.setenv("FASTCHAT_TOKEN", TOKEN)
    with ExitStack() as stack:

        def start(toml: str) -> Server:
            config = tmp_path / "config.toml"
            config.write_text(toml)
            server = stack.enter_context(Server(config))
            stack.callback(server.kill)
            return server

        yield start


@pytest.fixture
def server(started: Callable[[str], Server]) -> Server:
    return started(CONFIG)


@pytest.fixture
def at(server: Server) -> list[str]:
    return ["--url", server.url]


def names(run, at) -> list[str]:
    return [line.split()[0] for line in run("models", *at).stdout.splitlines()[1:]]


def test_a_model_is_loaded_renamed_reloaded_and_unloaded(run, server, at):
    loaded = run("models", "load", "two", "--backend", "echo", "--set", "options.delay_ms=1", *at)
    assert (loaded.returncode, loaded.stdout.endswith("(two) is ready.\n")) == (0, True), loaded
    aliased = run("models", "alias", "prod", "two", *at)
    assert (aliased.returncode, aliased.stdout) == (0, "two is called prod as well.\n")
    assert names(run, at) == ["echo", "prod", "two"]
    reloaded = run("models", *at, "reload", "prod")
    assert reloaded.returncode == 0
    assert [line.partition(" is ")[2] for line in reloaded.stdout.splitlines()] == ["gone.", "ready."]
    assert run("models", "unalias", "prod", *at).returncode == 0
    assert run("models", "unload", "two", *at).stdout.endswith(" is gone.\n")
    assert names(run, at) == ["echo"]


def test_a_model_is_loaded_beside_a_worker(run, server, at):
    (row,) = run("workers", *at).stdout.splitlines()[1:]
    done = run("models", "load", "two", "--backend", "echo", "--beside", row.split()[0], *at)
    assert (done.returncode, names(run, at)) == (0, ["echo", "two"]), done
    unknown = run("models", "load", "two", "--backend", "echo", "--beside", "nobody", *at)
    assert (unknown.returncode, "'nobody'" in unknown.stderr) == (1, True)


def test_in_a_terminal_a_load_has_a_bar(terminal, server, at):
    load = terminal("models", "load", "two", "--backend", "echo", *at)
    load.expect("is ready.")
    assert load.wait() == 0


def test_a_mistake_is_told_by_its_key(run, server, at):
    done = run("models", "load", "two", "--backend", "echo", "--set", "options.delay=1", *at)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith('fastchat-serve: options.delay: unknown key. Did you mean "delay_ms"?')


def test_what_cannot_be_loaded_is_told(run, server, at):
    done = run("models", "load", "x", "--backend", "echo", "--set", "placement=process", "--set", "backend=none", *at)
    assert done.returncode == 1
    assert "No plugin is called 'none'" in done.stderr


def test_a_worker_is_drained(run, server, at):
    (row,) = run("workers", *at).stdout.splitlines()[1:]
    done = run("drain", row.split()[0], *at)
    assert (done.returncode, done.stdout.endswith(" is gone.\n")) == (0, True), done
    assert names(run, at) == []
    assert run("drain", row.split()[0], *at).returncode == 1


def test_all_workers_of_a_model_are_drained_by_its_name(run, started):
    at = ("--url", started(CONFIG + '[[worker]]\nbackend = "echo"\nnames = ["echo"]\n').url)
    rows = run("workers", *at).stdout.splitlines()[1:]
    done = run("drain", "echo", *at)
    assert done.returncode == 0
    assert len(rows) == 2
    assert all(f"{row.split()[0]}: gone" in done.stdout + done.stderr for row in rows), done
    assert names(run, at) == []


def test_a_process_is_drained_and_ends_well(run, server, at):
    done = run("drain", "--process", *at)
    assert (done.returncode, done.stdout) == (0, f"The process at {at[1]} is gone.\n"), done
    assert server.wait(20) == 0


def test_all_processes_behind_a_port_are_drained_together(run, started):
    two = "[server]\nport = 0\nprocesses = 2\n"
    server = started(f'{two}[cluster]\ntoken = "{TOKEN}"\n[api]\ncontrollers = ["{NOBODY}"]\n')
    done = run("drain", "--process", "--url", server.url)
    assert done.returncode == 0, done
    assert server.wait(20) == 0


def test_it_has_to_be_said_what_is_to_be_drained(run):
    assert run("drain").returncode == 2
    assert run("drain", "x", "--process").returncode == 2


@pytest.mark.parametrize("token", ["wrong", ""])
def test_without_the_token_it_is_said_how_to_give_it(run, server, at, token):
    for command in (("drain", "x"), ("drain", "--process"), ("models", "unload", "echo"), ("models", "unalias", "x")):
        done = run(*command, "--token", token, *at)
        assert done.returncode == 1
        assert done.stderr.endswith("Give the cluster's token with --token or in FASTCHAT_TOKEN.\n")
        assert "wrong" not in done.stderr


def test_a_server_that_has_no_token_says_what_to_set(run, url):
    done = run("models", "unload", "echo", "--token", "a-key-for-tests", "--url", url)
    assert done.returncode == 1
    assert "this server has none: set cluster.token" in done.stderr
    assert "--set cluster.token=SECRET" in done.stderr


@pytest.mark.parametrize(
    ("body", "complaint"), [("data: {}\n\n", "is not what this command expects"), ("", "The server broke off")]
)
def test_a_reply_of_another_kind_is_one_clear_line(run, foreign_server, body, complaint):
    done = run("models", "unload", "echo", "--url", foreign_server(200, "text/event-stream", body))
    assert (done.returncode, done.stdout) == (1, "")
    assert complaint in done.stderr


CONTROLLER = f'[server]\nport = 0\n[cluster]\ntoken = "{TOKEN}"\n[controller]\n'


def test_operators_may_look_with_the_token(run, server, at, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-key")
    assert run("workers", *at).returncode == 0
    monkeypatch.delenv("FASTCHAT_TOKEN")
    assert run("workers", "--token", TOKEN, *at).returncode == 0
    assert run("explain", "x", "--token", TOKEN, *at).stderr.startswith("fastchat-serve: Nothing is remembered")
    assert run("workers", "--token", TOKEN, "--api-key", "x", *at).returncode == 2


def test_what_a_controller_wants_is_called_a_token(run, started, monkeypatch):
    at = ("--url", started(CONTROLLER).url)
    assert run("workers", *at).returncode == 0
    for command in ("workers", ("explain", "x"), ("drain", "x"), ("models", "unload", "x")):
        words = (command,) if isinstance(command, str) else command
        wrong = run(*words, "--token", "wrong", *at)
        assert wrong.stderr.startswith("fastchat-serve: This is not the cluster's token. Give the cluster's token with")
    monkeypatch.delenv("FASTCHAT_TOKEN")
    monkeypatch.delenv("OPENAI_API_KEY")
    without = run("workers", *at)
    assert without.stderr.startswith("fastchat-serve: Send the cluster's token in the header")


def test_a_controller_says_that_it_is_no_api(run, started):
    done = run("models", "--url", started(CONTROLLER).url, "--api-key", TOKEN)
    assert done.returncode == 1
    assert done.stderr.startswith("fastchat-serve: This process has no [api]: ask one that has.")


def test_a_name_that_is_unknown_is_said_with_a_list_that_every_process_has(run, started):
    at = ("--url", started(CONTROLLER).url)
    for command in (("alias", "x", "nope"), ("unalias", "nope")):
        done = run("models", *command, *at)
        assert done.returncode == 1
        assert "GET /cluster/workers lists those that do." in done.stderr


def test_a_process_without_workers_names_the_option_before_anything_else(run, started):
    at = (
        "--url",
        started(f'[server]\nport = 0\n[cluster]\ntoken = "{TOKEN}"\n[api]\ncontrollers = ["{NOBODY}"]\n').url,
    )
    done = run("models", "load", "two", "--backend", "echo", *at)
    assert done.returncode == 1
    assert done.stderr.startswith("fastchat-serve: This process was started without workers")
    assert "--beside WORKER_ID" in done.stderr
