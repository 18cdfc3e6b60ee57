"""The process that hosts SGLang: started, watched and ended.

SGLang takes the process it is in for its own. It kills every child of that process, handles its signals, sends it
SIGQUIT when a part of SGLang fails, and sets its logging, event loop policy and garbage collector. A server has other
engines in its process, so SGLang gets one to itself: a session of its own, which is killed as a whole.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

__all__ = ["HostProcess"]

logger = logging.getLogger(__name__)

_KILLED_WITHIN_S = 5.0
"""How long a killed process may take to be gone: it is in the kernel's hands."""

_TIDY_WITHIN_S = 0.2


class HostProcess:
    """A running host.

    Attributes:
        channel: The server's end of the socket pair.
        pid: Of the host, and of its process group.
    """

    def __init__(self) -> None:
        """Starts it. Blocking, if not for long."""
        self.channel, theirs = socket.socketpair()
        self._folder = Path(tempfile.mkdtemp(prefix="fastchat-sglang-"))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fastchat_backend_sglang.host", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what SGLang prints is for the operator; the server's own output may be somebody's data
                start_new_session=True,
                env=_environment(self._folder),
            )
        except BaseException:
            self.channel.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid

    def end(self, patience_s: float) -> None:
        """Let it leave by itself for as long, then kill what is left of it. Blocking. Idempotent."""
        if patience_s and self._wait(patience_s) is not None:
            self._let_others_leave()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left in the group
            os.killpg(self.pid, signal.SIGKILL)
        if self._wait(_KILLED_WITHIN_S) is None:
            logger.error("SGLang's process %d does not die", self.pid)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _let_others_leave(self) -> None:
        """Python's resource tracker outlives the host by a moment: it removes the semaphores that SGLang left."""
        deadline = time.monotonic() + _TIDY_WITHIN_S
        with contextlib.suppress(ProcessLookupError, PermissionError):
            while time.monotonic() < deadline:
                os.killpg(self.pid, 0)
                time.sleep(0.01)

    def _wait(self, timeout_s: float) -> int | None:
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None


def _environment(folder: Path) -> dict[str, str]:
    """What SGLang reads when it is imported, so before it knows its arguments."""
    environment = dict(os.environ) | {
        "TMPDIR": str(folder),  # its sockets, which it leaves behind
        "SGLANG_RETURN_ORIGINAL_LOGPROB": "1",  # of the distribution before temperature
        "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1",  # some tokens more than we let in: it keeps a few to itself
        "PYTHONWARNINGS": "ignore",
        "TQDM_DISABLE": "1",
    }
    cache = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))  # torch's own default, but for our TMPDIR
    return environment
