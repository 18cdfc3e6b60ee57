"""Several API processes behind one port: ``[server] processes = N``.

This process binds the socket and forks; whoever of its children is free accepts. Each child is a whole API process with
links of its own, and listens on a second port as well: workers that dial out have to reach each of them, and so has
whoever adds their metrics up. Signals are passed on. A child that dies is started anew as `Restarts` allows; all end
together.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from fastchat_serve.config import Config, Secret
from fastchat_serve.routes.siblings import Siblings
from fastchat_serve.server import bind
from fastchat_serve.worker.restarts import Restarts

__all__ = ["Place", "in_processes"]

_REFUSED: Final = 2
"""The exit code of a process that refuses to start: others would, too."""


class Place(Struct, frozen=True):
    """What one of several processes is given."""

    shared: socket.socket
    """Where clients come in."""
    own: socket.socket
    """Where it alone listens."""
    siblings: Siblings
    index: int
    """Which of them it is, from 0."""


def in_processes(config: Config, serve: Callable[[Config, Place], int]) -> int:
    """Fork, and look after the children until all have ended. In a child: the exit code of `serve`.

    Raises:
        StartupError: The port is taken.
    """
    shared = bind(config.server)
    own = [bind(replace(config.server, port=0)) for _ in range(config.server.processes)]
    config, key = _with_key_of_siblings(config)
    siblings = _siblings(config, own, key)
    watched = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    lifeline, ours = os.pipe()

    def serve_as(index: int) -> int:
        return serve(config, Place(shared, own[index], siblings.but(index), index))

    def start() -> int:
        """The child's process id; 0 in the child itself."""
        pid = os.fork()
        if not pid:
            os.close(ours)
            _end_with(lifeline)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
        return pid

    children: dict[int, int] = {}
    for index in range(len(own)):
        if not (pid := start()):
            return serve_as(index)
        children[pid] = index
    return _look_after(children, watched, start, serve_as)


def _look_after(
    children: dict[int, int],
    watched: set[signal.Signals],
    start: Callable[[], int],
    serve: Callable[[int], int],
) -> int:
    """The parent's life. Returns the exit code of all, or, in a child that was started anew, its own."""
    restarts = Restarts(time.monotonic)
    result, stopping = 0, False
    while children:
        number = signal.sigwait(watched)
        if number != signal.SIGCHLD:
            stopping = True
            _tell(children, number)
            continue
        for pid, code in _ended():
            index = children.pop(pid, None)
            if index is None:
                continue
            if stopping:
                told_while_starting = code in (-signal.SIGTERM, -signal.SIGINT)
                result = result or (0 if told_while_starting else abs(code))
                continue
            if code != _REFUSED and restarts.allow():
                _say(f"API process {index} has ended with code {code}; it is started anew.")
                if not (new := start()):
                    return serve(index)
                children[new] = index
                continue
            if code != _REFUSED:
                _say("API processes have ended too often; all are stopped.")
            result, stopping = abs(code) or 1, True
            _tell(children, signal.SIGTERM)
    return result


def _ended() -> list[tuple[int, int]]:
    """Children that have ended, and their exit codes; negative: the signal that ended them."""
    found: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if not pid:
            return found
        found.append((pid, os.waitstatus_to_exitcode(status)))


def _tell(children: Iterable[int], number: int) -> None:
    for pid in children:
        os.kill(pid, number)


def _end_with(lifeline: int) -> None:
    """Drain when the parent is gone: its end of the pipe closes with it."""

    def wait() -> None:
        os.read(lifeline, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def _siblings(config: Config, own: Sequence[socket.socket], key: str) -> Siblings:
    addresses = [each.getsockname()[:2] for each in own]
    reachable = [(_LOOPBACK.get(host, host), port) for host, port in addresses]
    names = [name for name in config.server.allowed_hosts if name != "*"]
    return Siblings(
        reachable, key, name=names[0] if names else "localhost", tls=config.server.tls_certificate is not None
    )


_LOOPBACK: Final = MappingProxyType({"0.0.0.0": "127.0.0.1", "::": "::1"})


def _with_key_of_siblings(config: Config) -> tuple[Config, str]:
    """One more key, which nobody else knows, if keys are wanted at all: they ask each other for metrics."""
    assert config.api is not None
    key = secrets.token_hex(16)
    if not config.api.keys:
        return config, key
    return replace(config, api=replace(config.api, keys=(*config.api.keys, Secret(key)))), key


def _say(line: str) -> None:
    """To the log of all; this process has no loop that a slow reader of it could hold up."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
