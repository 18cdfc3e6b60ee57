"""Compiling on trial, in a process of its own.

llguidance lets Python's other threads run while it compiles, and counts what it spends, but not everything: some
constraints of a hundred bytes take it minutes or all memory, and nothing can stop it. A process can be stopped. What
came through there in time is compiled here, which takes as long again.

The process is this file (`_main`): it is started when the first constraint comes, serves one after the other, and ends
with the pipe to it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import weakref
from typing import Any

__all__ = ["Trial"]


class Trial:
    """Compiles grammars in another process. `limits` are arguments of ``LLParserLimits``."""

    def __init__(self, *, seconds: float, memory_bytes: int, limits: dict[str, Any]) -> None:
        self._seconds = seconds
        self._first_line = json.dumps({"memory_bytes": memory_bytes, "limits": limits})
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def problem(self, grammar: str) -> str | None:
        """The library's error about `grammar`, empty if there is none; None if it takes too long or too much."""
        with self._lock:
            process = self._running()
            timer = threading.Timer(self._seconds, process.kill)
            timer.daemon = True
            timer.start()
            try:
                return _asked(process, grammar)
            except (OSError, ValueError):  # it has ended, however it came to that
                _stop(process)
                self._process = None
                return None
            finally:
                timer.cancel()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
            )
            weakref.finalize(self, _stop, self._process)
            _asked(self._process, self._first_line)  # outside of the time limit: starting is not compiling
        return self._process


def _asked(process: subprocess.Popen[str], text: str) -> str:
    """One line there and one back, both JSON. Raises `OSError` or `ValueError` if the process has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(text) + "\n")
    process.stdin.flush()
    return str(json.loads(process.stdout.readline()))


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # what was not written yet has nowhere to go
                continue
    process.wait()


def _main() -> None:
    import llguidance

    def answer(text: str) -> None:
        sys.stdout.write(json.dumps(text) + "\n")
        sys.stdout.flush()

    first = json.loads(json.loads(sys.stdin.readline()))
    limits = llguidance.LLParserLimits(**first["limits"])
    tokenizer = llguidance.LLTokenizer("byte")
    _limit_memory(first["memory_bytes"])
    answer("")
    for line in sys.stdin:
        matcher = llguidance.LLMatcher(tokenizer, json.loads(line), log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        answer(matcher.get_error())


def _limit_memory(most: int) -> None:
    """Of what is taken from now on, where the system can do that."""
    try:
        import resource
        from pathlib import Path

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        size = pages * resource.getpagesize() + most
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):  # time is limited all the same
        return


if __name__ == "__main__":
    _main()
