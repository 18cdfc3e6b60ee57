"""A plugin of vLLM's own kind, which ends its processes with the server that started them.

vLLM's engine process goes on for ever when the process that opened it is killed, and keeps the device's memory. vLLM
calls this in each of its processes; it does something in those that were started for us.
"""

from __future__ import annotations

import os
import threading
from multiprocessing import parent_process

__all__ = ["OPENED_BY", "end_with_parent"]

OPENED_BY = "FASTCHAT_SERVE_VLLM_OPENED_BY"
"""The environment variable that marks processes as ours: the id of the one that opens vLLM."""


def end_with_parent() -> None:
    """End this process as soon as its parent has ended."""
    opener = os.environ.get(OPENED_BY)
    if opener is not None and opener != str(os.getpid()) and parent_process() is not None:
        threading.Thread(target=_wait, name="fastchat-orphan-watch", daemon=True).start()


def _wait() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # nobody is left for whom to clean up
