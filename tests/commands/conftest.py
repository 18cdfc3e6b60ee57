"""Commands as a person meets them: on a real terminal, with a real server."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from fastchat_serve.cli import main
from fastchat_serve.protocol.cluster import WorkerCard, WorkerList

KEY = "a-key-for-tests"
CONFIG = f"""
[server]
port = 0
[controller]
[api]
keys = ["{KEY}"]
[[worker]]
backend = "echo"
names = ["echo"]
[[worker]]
backend = "echo"
names = ["slow"]
concurrency = 1
options = {{delay_ms = 100}}
"""
PATIENCE_S = 20.0
ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]?|[@-Z\\-_]?)")


class Done(NamedTuple):
    """A command that was run to its end."""

    returncode: int
    stdout: str
    stderr: str


class Terminal:
    """A command on a pseudo-terminal; what it wrote is read without escape sequences."""

    def __init__(self, arguments: tuple[str, ...], environ: Mapping[str, str], columns: int) -> None:
        self._main, inner = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fastchat_serve", *arguments],
            env={**environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": "40"},
            preexec_fn=lambda: os.login_tty(inner),
        )
        os.close(inner)
        self._raw = b""
        self._read_up_to = 0

    @property
    def seen(self) -> str:
        """All it wrote."""
        return ESCAPES.sub(b"", self._raw).decode(errors="replace")

    def type(self, keys: str) -> None:
        """Press `keys`; ``\\r`` is Enter, ``\\x04`` Ctrl-D."""
        os.write(self._main, keys.encode())

    def expect(self, text: str) -> str:
        """Read until `text` appears, and return all up to its end. What follows is left for the next call."""
        return self._expect(text, time.monotonic() + PATIENCE_S)

    def interrupt(self, text: str) -> str:
        """Press Ctrl-C and expect `text`.

        Python does not notice a signal that comes in the instant before readline starts to wait for a key.
        A person would press again, and so does this.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.type("\x03")
            with contextlib.suppress(TimeoutError):
                return self._expect(text, min(time.monotonic() + 5, deadline))
            assert time.monotonic() < deadline, f"Ctrl-C did nothing; it said:\n{self.seen}"

    def wait(self) -> int:
        """The exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read(deadline):
            pass
        return self._process.wait(PATIENCE_S)

    def close(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE_S)
        os.close(self._main)

    def _expect(self, text: str, deadline: float) -> str:
        while (found := self.seen.find(text, self._read_up_to)) < 0:
            assert self._read(deadline), f"the command ended before {text!r}; it said:\n{self.seen}"
        begin, self._read_up_to = self._read_up_to, found + len(text)
        return self.seen[begin : self._read_up_to]

    def _read(self, deadline: float) -> bool:
        """Take in what comes next; False if the command has ended."""
        ready, _, _ = select.select([self._main], [], [], max(deadline - time.monotonic(), 0))
        if not ready:
            raise TimeoutError(f"nothing came in time; it said:\n{self.seen}")
        try:
            data = os.read(self._main, 65536)
        except OSError:  # how Linux reports that nobody holds the other end any more
            return False
        self._raw += data
        return bool(data)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The environment of commands: with the key, and with a home of its own."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("FASTCHAT_", "XDG_"))},
        "OPENAI_API_KEY": KEY,
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "PYTHONIOENCODING": "utf-8",
    }


@pytest.fixture
def terminal(environ: dict[str, str]) -> Iterator[Callable[..., Terminal]]:
    """``terminal("chat", …)`` starts a command on a terminal; it is ended with the test."""
    opened: list[Terminal] = []

    def open_terminal(*arguments: str, columns: int = 200) -> Terminal:
        opened.append(Terminal(arguments, environ, columns))
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.close()


@pytest.fixture
def run(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """``run("models", …, stdin=…)`` runs a command here, not on a terminal, to its end."""
    for name in os.environ.keys() - environ.keys():
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    def run_command(*arguments: str, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as exit_:  # argparse
            code = int(exit_.code or 0)
        return Done(code, *capsys.readouterr())

    return run_command


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real server with the models ``echo`` and ``slow``; it wants the key."""
    config = tmp_path_factory.mktemp("server") / "config.toml"
    config.write_text(CONFIG)
    with subprocess.Popen(
        [sys.executable, "-m", "fastchat_serve", "--config", str(config)], stderr=subprocess.PIPE, encoding="utf-8"
    ) as server:
        try:
            assert server.stderr is not None
            lines = iter(server.stderr.readline, "")
            found = next(match for line in lines if (match := re.search(r"Serving .* at (http://\S+)", line)))
            # Nobody reads on; a pipe that fills up would stop the server.
            threading.Thread(target=lambda: [None for _ in lines], daemon=True).start()
            yield found[1]
        finally:
            server.kill()


@pytest.fixture
def workers(url: str, run: Callable[..., Done]) -> Callable[[], dict[str, WorkerCard]]:
    """The server's workers right now, by model."""

    def fetch() -> dict[str, WorkerCard]:
        cards = msgspec.json.decode(run("workers", "--url", url, "--json").stdout, type=WorkerList).workers
        return {card.models[0]: card for card in cards}

    return fetch


@pytest.fixture
def foreign_server() -> Iterator[Callable[..., str]]:
    """``foreign_server(status, content_type, body)``: the address of a server that says just that to every request."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, content_type: str, body: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                self.send_response(status)
                self.send_header("content-type", content_type)
                self.end_headers()
                self.wfile.write(body.encode())

            do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
