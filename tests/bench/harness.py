"""The gateway harness: mock, peers and load generator, which live in a folder beside the repository.

Here it is copied, as it writes logs and process ids beside its scripts, started, asked for one cell of the
table at a time, and stopped.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct

__all__ = ["ENVIRONMENTS", "GATEWAYS", "PEERS", "SGLANG_PYTHON", "Cell", "Harness", "HarnessError", "Peer", "running"]

SGLANG_PYTHON = "FASTCHAT_BENCH_SGLANG_PYTHON"
"""Environment variable: the interpreter of an environment that has sglang-router."""
VLLM_ROUTER_PYTHON = "FASTCHAT_BENCH_VLLM_ROUTER_PYTHON"
LITELLM_PYTHON = "FASTCHAT_BENCH_LITELLM_PYTHON"
FASTCHAT_PYTHON = "FASTCHAT_BENCH_FASTCHAT_PYTHON"
ENVIRONMENTS = {
    "sglang": ("sglr", SGLANG_PYTHON),
    "vllmr": ("vllmr", VLLM_ROUTER_PYTHON),
    "litellm": ("litellm", LITELLM_PYTHON),
    "fastchat": ("fastchat1", FASTCHAT_PYTHON),
}
"""By service: what the harness calls its environment, and the variable that says where it is."""
SCRIPTS = (
    "gateway_bench.py",
    "mock_engine.py",
    "peers.sh",
    "apps/common.py",
    "apps/raw_app.py",
    "apps/litestar_app.py",
)
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0
CELL_TIMEOUT_S = 90.0


class HarnessError(Exception):
    """There is no harness, or it does not run here."""


class Peer(Struct, frozen=True, kw_only=True):
    """Something that answers as an OpenAI server does."""

    name: str
    service: str
    """What the harness calls the process."""
    port: int
    path: str = ""
    also_needs: tuple[int, ...] = ()
    """Other ports of the process."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"


PEERS = (
    Peer(name="mock", service="mock", port=9001, also_needs=(9002, 9009)),
    Peer(name="asgi/sink", service="raw", port=8202, path="/sink"),
    Peer(name="asgi/fast", service="raw", port=8202, path="/fast"),
    Peer(name="litestar/direct", service="litestar", port=8201, path="/direct"),
    Peer(name="sglang-router", service="sglang", port=8101, also_needs=(29001,)),
    Peer(name="nginx", service="nginx", port=8106),
)
GATEWAYS = (
    PEERS[0],
    Peer(name="sglang-router", service="sglang", port=8101, also_needs=(29001,)),
    Peer(name="vllm-router", service="vllmr", port=8102, also_needs=(29002,)),
    Peer(name="LiteLLM", service="litellm", port=8103),
    Peer(name="FastChat", service="fastchat", port=8104, also_needs=(8105,)),
    Peer(name="nginx", service="nginx", port=8106),
)
"""In front of the mock's two processes, as we are in front of our workers."""


class Cell(Struct, frozen=True, kw_only=True):
    """What the load generator found in one run. Times in milliseconds."""

    secs: float
    requests: int
    rps: float
    cpu_pct: float
    """CPU of the gateway's processes, in per cent of one core."""
    tok_s: float | None = None
    tok_per_read: float | None = None
    ttft_p50: float | None = None
    ttft_p99: float | None = None
    lag_p99: float | None = None
    rss_mb: float
    other_cpu_pct: float
    """What neither gateway nor mock nor client used: how disturbed the run was."""
    fails: int
    why: dict[str, int] = {}

    @property
    def cpu_per_unit(self) -> float:
        """Microseconds per token of a stream, milliseconds per plain request. Infinite if nothing came."""
        cpu_s = self.cpu_pct / 100 * self.secs
        if self.tok_s is not None:
            return cpu_s * 1e6 / (self.tok_s * self.secs) if self.tok_s else float("inf")
        return cpu_s * 1e3 / self.requests if self.requests else float("inf")


class Harness:
    """A copy of the scripts, and the peers that run from it. `running` makes it.

    Args:
        folder: Where the copy is.
        peers: All that one would want.

    Attributes:
        gateway_core: Where all gateways are pinned.
        load_core: Another, if there is one: of mock and client.
        peers: Those that are up, the mock first.
        missing: Which are not here, and how to get them.
    """

    def __init__(self, folder: Path, peers: Sequence[Peer]) -> None:
        self._folder, self._wanted = folder, peers
        self.gateway_core, self.load_core = (sorted(os.sched_getaffinity(0)) * 2)[:2]
        self.peers: list[Peer] = []
        self.missing: list[str] = []

    def start(self) -> None:
        """Start all peers that are there."""
        venvs = self._folder / "venvs"
        venvs.mkdir()
        (venvs / "gwbench").symlink_to(sys.prefix)  # the prototypes run on the same libraries as the product
        absent = {}
        for service in self._services(self._wanted):
            if service in ENVIRONMENTS:
                folder, variable = ENVIRONMENTS[service]
                if python := os.environ.get(variable):
                    (venvs / folder).symlink_to(Path(python).absolute().parents[1])
                else:
                    absent[service] = f"{service}: `nox -s bench` makes its environment; by hand, set {variable}."
        if shutil.which("nginx") is None:
            absent["nginx"] = "nginx: `apt-get install nginx`."
        self.missing = list(absent.values())
        self.peers = [peer for peer in self._wanted if peer.service not in absent]
        for peer in self.peers:
            _require_free(peer)
        for service in self._services():
            self._script("start", service)

    def stop(self) -> None:
        """Stop all peers, and wait until they are gone."""
        pids = [int(pid) for file in (self._folder / "run").glob("*.pids") for pid in file.read_text().split()]
        processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
        for service in reversed(self._services()):
            self._script("stop", service)
        _, alive = psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)
        for process in alive:
            process.kill()

    def pids(self, peer: Peer) -> str:
        return ",".join((self._folder / "run" / f"{peer.service}.pids").read_text().split())

    def measure(self, url: str, workload: str, *, pids: str, options: dict[str, object]) -> Cell:
        """One run of the load generator; `options` are its own, without their dashes.

        Raises:
            HarnessError: It gave no result.
        """
        mock = self.pids(self.peers[0])
        command = [sys.executable, "gateway_bench.py", "--json", "--core", str(self.load_core)]
        command += ["--target", url, "--workload", workload, "--pid", pids, "--mock-pid", "" if pids == mock else mock]
        command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        try:
            done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, timeout=CELL_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise HarnessError(f"{workload} at {url} took longer than {CELL_TIMEOUT_S:g} s.") from error
        if done.returncode:
            raise HarnessError(f"{workload} at {url}: {done.stderr.strip()}")
        return msgspec.json.decode(done.stdout, type=Cell)

    def _services(self, peers: Sequence[Peer] | None = None) -> list[str]:
        return list(dict.fromkeys(peer.service for peer in (self.peers if peers is None else peers)))

    def _script(self, action: str, service: str) -> None:
        cores = {"CORE": str(self.gateway_core), "MOCKCORE": str(self.load_core)}
        done = subprocess.run(
            ["bash", "peers.sh", action, service],
            cwd=self._folder,
            env={**os.environ, **cores, "VENVS": "venvs"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=START_TIMEOUT_S,
        )
        if action == "start" and "not up" in done.stderr:
            log = (self._folder / "run" / f"{service}.log").read_text().strip()
            raise HarnessError(f"{service} did not start: {log or 'it does not say why'}")


@contextmanager
def running(folder: Path, peers: Sequence[Peer] = PEERS) -> Iterator[Harness]:
    """The harness in `folder` with its mock, which is the first of `peers`, and those of the others that are here.

    Raises:
        HarnessError: It is not there, this system cannot run it, or one of its ports is taken.
    """
    if absent := [script for script in SCRIPTS if not (folder / script).is_file()]:
        raise HarnessError(f"no {absent[0]} in {folder.resolve()}; name the harness's folder with --harness.")
    if sys.platform != "linux" or shutil.which("taskset") is None:
        raise HarnessError("the harness reads /proc and pins with taskset: it runs on Linux only.")
    with tempfile.TemporaryDirectory(prefix="fastchat-bench-") as temporary:
        copy = Path(temporary) / "harness"
        copy.mkdir()
        for script in SCRIPTS:
            (copy / script).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / script, copy / script)
        harness = Harness(copy, peers)
        try:
            harness.start()
            yield harness
        finally:
            harness.stop()


def _require_free(peer: Peer) -> None:
    for port in (peer.port, *peer.also_needs):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            raise HarnessError(f"port {port}, which {peer.name} needs, is taken.") from None
