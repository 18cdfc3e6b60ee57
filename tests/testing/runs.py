"""Runs of the kit for its own tests, in processes of their own.

``python -m tests.testing.runs FOLDER FAULT…`` runs, for each fault, the check that must catch it, and writes
``FOLDER/FAULT.json``. One process for all: starting one costs more than most runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from fastchat_serve.testing.report import Report
from tests.testing.broken_engines import FAULTS

__all__ = ["HURRIED", "REPOSITORY", "kit", "pytest_in", "read", "run_faults"]

REPOSITORY = Path(__file__).parents[2]
KIT = "fastchat_serve.testing"
HURRIED = ("--wait", "3", "--abort-grace", "0.5", "--concurrency", "4")
"""The toy engine takes no time; a fault that makes a check wait should not."""


def as_plugin(folder: Path) -> dict[str, str]:
    """The environment in which ``broken`` is an installed plugin."""
    info = folder / "broken-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fastchat_serve]\nbroken = tests.testing.broken_engines\n")
    paths = os.pathsep.join([str(folder), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths.rstrip(os.pathsep)}


def kit(folder: Path, *arguments: str, topics: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """``pytest --pyargs fastchat_serve.testing``, in a folder that has nothing."""
    modules = [f"{KIT}.test_{topic}" for topic in topics] or [KIT]
    return pytest_in(folder, "--pyargs", *modules, *arguments)


def pytest_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=as_plugin(folder), capture_output=True, text=True, timeout=300)


def run_faults(folder: Path, faults: Sequence[str]) -> None:
    """Each of `faults`, with the check that must catch it."""
    command = [sys.executable, "-m", "tests.testing.runs", str(folder), *faults]
    done = subprocess.run(command, cwd=folder, env=as_plugin(folder), capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout + done.stderr


def read(path: Path) -> Report:
    return msgspec.json.decode(path.read_bytes(), type=Report)


def _run(folder: Path, faults: Sequence[str]) -> None:
    for fault in faults:
        topic, _, check = FAULTS[fault].caught_by.partition(".")
        report = ("--report", str(folder / f"{fault}.json"))
        options = ("--backend", "broken", "--backend-option", f"fault={fault}", *report, *HURRIED)
        pytest.main(["-q", "-p", "no:cacheprovider", "--pyargs", f"{KIT}.test_{topic}::test_{check}", *options])


if __name__ == "__main__":
    _run(Path(sys.argv[1]), sys.argv[2:])
