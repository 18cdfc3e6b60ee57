"""What the command line costs before it does anything, and how it ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("fastchat_serve.app", "httpx", "litestar", "numpy", "prometheus_client", "rich", "uvicorn")
SCRIPT = """
import sys
from fastchat_serve.cli import main
try:
    main(sys.argv[2:])
except SystemExit:
    pass
print(*sorted(set(sys.argv[1].split(",")) & set(sys.modules)), file=sys.stderr)
"""


def loaded(modules: tuple[str, ...], *arguments: str) -> list[str]:
    """Which of `modules` a command imports."""
    command = [sys.executable, "-c", SCRIPT, ",".join(modules), *arguments]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", timeout=20, check=True, stdin=subprocess.DEVNULL
    )
    return done.stderr.splitlines()[-1].split()


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("chat", "--help")])
def test_help_imports_nothing_heavy(arguments):
    assert loaded(HEAVY, *arguments) == []


def test_commands_that_talk_to_a_server_import_no_server():
    assert loaded(("httpx", "litestar", "uvicorn"), "models", "--url", "http://127.0.0.1:1") == ["httpx"]
    assert loaded(("httpx", "litestar", "uvicorn"), "chat", "--url", "http://127.0.0.1:1") == ["httpx"]


def test_a_pipe_on_both_ends_is_enough(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text('[controller]\n[api]\n[[worker]]\nbackend = "echo"\n')
    command = [sys.executable, "-m", "fastchat_serve", "chat", "--config", str(config)]
    done = subprocess.run(command, input=b"to be\nor \xff not", capture_output=True, timeout=20, check=True)
    assert (done.stdout, done.stderr) == ("to be\nor \ufffd not\n".encode(), b"")


def test_a_reader_that_has_seen_enough_is_no_failure_to_print():
    command = f"{sys.executable} -m fastchat_serve check --json-schema | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, timeout=20, check=True)
    assert done.stderr == b""
