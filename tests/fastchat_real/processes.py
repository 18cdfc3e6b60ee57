"""FastChat's own processes, unmodified, as children of a test."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

__all__ = ["api_server", "controller", "free_port", "model_worker", "output_of", "wait_until"]

PATIENCE_S = 90
BEAT_S = 1
LEASE_S = 4


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def demo_weights() -> Path:
    spec = find_spec("fastchat_model_demo")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "weights"


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "FASTCHAT_CONTROLLER_HEART_BEAT_EXPIRATION": str(LEASE_S),
        "FASTCHAT_WORKER_HEART_BEAT_INTERVAL": str(BEAT_S),
        "HF_HUB_OFFLINE": "1",
        "LOGDIR": str(folder),
        "OMP_NUM_THREADS": "1",
    }


@contextlib.contextmanager
def running(folder: Path, module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """``python -m fastchat.serve.MODULE``, ended when this is left."""
    with (folder / f"{module}.out").open("ab") as out:
        command = [sys.executable, "-m", f"fastchat.serve.{module}", *arguments]
        process = subprocess.Popen(command, stdout=out, stderr=out, env=_environment(folder), cwd=folder)
        try:
            yield process
        finally:
            process.kill()
            process.wait(PATIENCE_S)


def output_of(folder: Path, module: str, *arguments: str) -> str:
    """What ``python -m fastchat.serve.MODULE`` prints."""
    command = [sys.executable, "-m", f"fastchat.serve.{module}", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=_environment(folder), cwd=folder, timeout=PATIENCE_S, check=True
    )
    return done.stdout


@contextlib.contextmanager
def controller(folder: Path, port: int | None = None) -> Iterator[str]:
    """Its URL."""
    port = port or free_port()
    with running(folder, "controller", "--host", "127.0.0.1", "--port", str(port)):
        _wait(f"http://127.0.0.1:{port}/test_connection")
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def model_worker(
    folder: Path, controller_url: str, *arguments: str, port: int | None = None, names: str = "tiny"
) -> Iterator[subprocess.Popen[bytes]]:
    """With the demo model, on a CPU. It may not listen yet."""
    port = port or free_port()
    address = f"http://127.0.0.1:{port}"
    served = ("--host", "127.0.0.1", "--port", str(port), "--worker-address", address)
    model = ("--model-path", str(demo_weights()), "--model-names", names, "--device", "cpu")
    template = ("--conv-template", "vicuna_v1.1", "--controller-address", controller_url)
    with running(folder, "model_worker", *served, *model, *template, *arguments) as process:
        yield process


@contextlib.contextmanager
def api_server(folder: Path, controller_url: str) -> Iterator[str]:
    """Its URL."""
    port = free_port()
    served = ("--host", "127.0.0.1", "--port", str(port), "--controller-address", controller_url)
    with running(folder, "openai_api_server", *served):
        _wait(f"http://127.0.0.1:{port}/openapi.json")
        yield f"http://127.0.0.1:{port}"


def wait_until(condition: Callable[[], bool]) -> None:
    """Bounded by what a model takes to load on a busy machine."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def _wait(url: str) -> None:
    """Until something answers there."""

    def answers() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return True
        except OSError:
            return False

    wait_until(answers)
