"""Processes to measure: the product with a config made here, and a bare ASGI app under the same uvicorn."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct

from tests.ports import free_port

__all__ = ["API_KEY", "Server", "bare", "configured", "cpu_s", "listed", "ours", "ready", "rss_mb"]

API_KEY = "sk-bench"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.005

_COMPLAINT = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b")


class Server(Struct, frozen=True):
    """A process that answers ``GET /health``."""

    pid: int
    port: int
    ready_s: float
    """From the start of the process to its first 200."""
    cpu_s: float
    """User and system time spent until then."""
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def complaints(self) -> list[str]:
        """Lines of the log that are warnings or worse: a server that logs something per request measures its log."""
        return [line for line in self.log.read_text().splitlines() if _COMPLAINT.search(line)]


@contextmanager
def ours(workers: str, *, core: int | None = None) -> Iterator[Server]:
    """fastchat-serve with these ``[[worker]]`` tables, keys and metrics on, pinned to `core`."""
    with configured(f'[controller]\n[api]\nkeys = ["{API_KEY}"]\n{workers}', core=core) as server:
        yield server


@contextmanager
def configured(tables: str, *, core: int | None = None) -> Iterator[Server]:
    """fastchat-serve with these tables, pinned to `core`."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "bench.toml"
        config.write_text(f"[server]\nport = {port}\n{tables}")
        with _running("-m", "fastchat_serve", "--config", str(config), port=port, core=core) as server:
            yield server


@contextmanager
def bare() -> Iterator[Server]:
    """`bare_app.py`."""
    port = free_port()
    with _running(str(Path(__file__).with_name("bare_app.py")), str(port), port=port) as server:
        yield server


def listed(server: Server, model: str, count: int = 1) -> None:
    """Wait until so many workers of a model are ready there."""
    began = time.perf_counter()
    while ready(server, model) < count:
        if time.perf_counter() - began > START_TIMEOUT_S:
            raise RuntimeError(f"{model} is not served by {count} workers after {START_TIMEOUT_S:g} s")
        time.sleep(POLL_S)


def ready(server: Server, model: str) -> int:
    """How many workers of a model are ready there."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request("GET", "/ready")
        states = msgspec.json.decode(connection.getresponse().read())["models"].get(model, [])
        return len([state for state in states if state == "ready"])
    finally:
        connection.close()


def cpu_s(pid: int) -> float:
    """User and system time that a process has used."""
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def rss_mb(pid: int) -> float:
    """Memory of a process, in units of 2**20 bytes as the harness counts."""
    return float(psutil.Process(pid).memory_info().rss) / (1 << 20)


@contextmanager
def _running(*arguments: str, port: int, core: int | None = None) -> Iterator[Server]:
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    with tempfile.NamedTemporaryFile("w", suffix=".log") as log:
        began = time.perf_counter()
        process = subprocess.Popen([*pinned, sys.executable, *arguments], stdout=log, stderr=log)
        try:
            while not _answers(port):
                if process.poll() is not None or time.perf_counter() - began > START_TIMEOUT_S:
                    said = Path(log.name).read_text()
                    raise RuntimeError(f"The server did not start: {' '.join(arguments)}\n{said}")
                time.sleep(POLL_S)
            yield Server(process.pid, port, time.perf_counter() - began, cpu_s(process.pid), Path(log.name))
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
