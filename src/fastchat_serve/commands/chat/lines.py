"""Where a chat's lines come from: a terminal with line editing and history, or whatever stdin is."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from fastchat_serve.commands.chat.interrupts import on_interrupt

__all__ = ["Lines", "piped_lines", "typed_lines"]

HISTORY_LINES = 1000

_PROMPT = "> "
_STYLED_PROMPT = "\x01\x1b[1;36m\x02> \x01\x1b[0m\x02"
"""Bold cyan. Readline does not count what stands between ^A and ^B."""


class Lines(Protocol):
    """Gives the next line."""

    def __call__(self) -> str | None:
        """None: there are no more, or the person leaves."""
        ...


@contextlib.contextmanager
def typed_lines(words: Sequence[str], *, styled: bool) -> Iterator[Lines]:
    """Lines from a person: edited with readline, remembered over sessions, `words` completed by Tab.

    Ctrl-D leaves. Ctrl-C drops what was typed; if nothing was, it leaves. Between prompts Ctrl-C does nothing
    unless somebody gives it something to do.
    """
    import readline  # here: from its import on, every `input` of the process goes through it

    prompt = _STYLED_PROMPT if styled else _PROMPT

    def complete(text: str, state: int) -> str | None:
        found = [word for word in words if text and word.startswith(text)]
        return found[state] if state < len(found) else None

    def read() -> str | None:
        while True:
            try:
                with on_interrupt(signal.default_int_handler):
                    return input(prompt)
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                print()
                if not readline.get_line_buffer():
                    return None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    if "libedit" in (readline.__doc__ or ""):  # in its place on macOS, with bindings of its own
        readline.parse_and_bind("bind ^I rl_complete")
    else:
        readline.parse_and_bind("tab: complete")
        readline.parse_and_bind("set enable-bracketed-paste on")  # so pasted lines are one message
    readline.set_history_length(HISTORY_LINES)
    file = _history_file()
    with contextlib.suppress(OSError):  # the first time, or a home that cannot be read
        readline.read_history_file(file)
    try:
        with on_interrupt(lambda *_: None):
            yield read
    finally:
        with contextlib.suppress(OSError):  # a chat without a history is still a chat
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            readline.write_history_file(file)


@contextlib.contextmanager
def piped_lines() -> Iterator[Lines]:
    """Lines from stdin as they are; if a person types them, after a prompt on stderr."""

    def read() -> str | None:
        if sys.stdin.isatty():
            print(_PROMPT, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None

    yield read


def _history_file() -> Path:
    """By the XDG base directory specification."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return base / "fastchat-serve" / "chat_history"
