"""The program of the process that hosts SGLang: ``python -m fastchat_backend_sglang.host FD``.

It loads the model that the first message names, then answers what comes over the socket until the socket is closed.
It leaves when the server does, and when SGLang loses a process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from typing import NoReturn

from fastchat_backend_sglang.link import Open, Opened, Progress, Refused, receive, send
from fastchat_serve import StartupError

__all__ = ["main"]

_SERVER_CHECK_S = 1.0
"""How often a host that cannot look at its socket, because it is loading, looks whether the server lives."""

_GONE_WITHIN_S = 3.0
"""How long a killed process of SGLang may take to be gone."""


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # the server says when to leave; SGLang's parts inherit this
    try:
        first = receive(channel)
    except EOFError:
        return
    assert isinstance(first, Open)
    try:
        from fastchat_backend_sglang.loading import load

        loaded = load(first.model, first.options, lambda stage: send(channel, Progress(stage)))
    except StartupError as error:
        send(channel, Refused(str(error)))
        _leave()
    send(channel, Opened(loaded.info))

    from fastchat_backend_sglang.serving import serve

    asyncio.run(serve(loaded, channel))
    _leave()


def _leave() -> NoReturn:
    """At once: what SGLang does at exit takes seconds, and kills Python's resource tracker before it has tidied up."""
    for child in multiprocessing.active_children():
        child.kill()
        child.join(_GONE_WITHIN_S)
    os._exit(0)


def _leave_with(server: int) -> None:
    while os.getppid() == server:
        time.sleep(_SERVER_CHECK_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
